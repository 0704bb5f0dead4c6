"""Fewer wake-ups while a body comes in: the kernel gathers a little before it tells us.

On 1500-byte links a socket becomes readable for a few packets, and every time costs the loop, the
HTTP parser and a timer. Amid a body nothing but its bytes can come, so SO_RCVLOWAT may ask for more
of them at a time (socket(7); poll honours it for TCP, and lowering it wakes who waits).
"""

import socket
import time
from typing import Protocol

WAKE_BYTES = 128 << 10
WAKE_BYTES_MIN = 16 << 10
"""The end of a body, and slow ones, are told as they come."""
WAKE_S = 0.05
"""At the rate so far a wake-up is at most so late, so that no time limit takes it for silence."""


class Socket(Protocol):
    """What a transport shows of its socket."""

    def setsockopt(self, level: int, name: int, value: int, /) -> None:
        """Set an option."""
        ...


class LowWater:
    """How much of one body has to be there before we are woken."""

    def __init__(self, sock: Socket | None) -> None:
        self._socket = sock
        self._began_s: float | None = None
        self._level = 1

    def expect(self, done: int, remaining: int) -> None:
        """So many bytes of the body have come, and so many are still to come.

        Never more than will come on this connection: a level that is not reached wakes nobody.
        """
        if self._began_s is None:
            self._began_s = time.monotonic()
            return
        rate = done / max(1e-6, time.monotonic() - self._began_s)
        level = int(min(WAKE_BYTES, remaining, rate * WAKE_S))
        # Powers of two, so that it seldom changes: each change is a system call.
        self._set(1 << level.bit_length() - 1 if level >= WAKE_BYTES_MIN else 1)

    def end(self) -> None:
        """The body is read, or given up: whoever uses the connection next is told of every byte."""
        self._set(1)

    def _set(self, level: int) -> None:
        if self._socket is None or level == self._level:
            return
        self._level = level
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, level)
        except (OSError, ValueError):
            # No TCP, or closed: uvloop says of a closed one that its descriptor is negative.
            self._socket = None
