"""The narrow seam between the driver and a socket: what a TLS variant has to offer as well."""

import os
import socket
from collections.abc import Sequence
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class Channel(Protocol):
    """A connected, non-blocking byte stream.

    What receives and sends raises BlockingIOError when the socket is not ready, and another OSError
    when the connection is lost.
    """

    def fileno(self) -> int:
        """The descriptor to watch."""
        ...

    def recv_into(self, views: Sequence[memoryview]) -> int:
        """Receive into the views in order, perhaps only the first; 0 at the end of the stream."""
        ...

    def wake_at(self, count: int) -> None:
        """Call the socket readable only when `count` bytes are there, or the stream has ended."""
        ...

    def send(self, buffers: Sequence[Buffer], *, more: bool = False) -> int:
        """Send from the buffers in order; `more` when payload follows at once."""
        ...

    def sendfile(self, fd: int, offset: int, count: int) -> int:
        """Send bytes of an open file, perhaps not all; 0 at the end of the file."""
        ...

    def has_more(self) -> bool:
        """Whether there are bytes to receive of which the descriptor does not tell."""
        ...

    def finish(self) -> None:
        """Send no more; the peer reads an end of stream."""
        ...

    def close(self) -> None:
        """Let go of the socket."""
        ...


class PlainChannel:
    """A TCP socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._wake_at = 1

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._socket.fileno()

    def recv_into(self, views: Sequence[memoryview]) -> int:
        """Receive into the views in order; 0 at the end of the stream."""
        if len(views) == 1:
            return self._socket.recv_into(views[0])
        return self._socket.recvmsg_into(views)[0]

    def wake_at(self, count: int) -> None:
        """Set SO_RCVLOWAT: poll honours it for TCP (socket(7)), and grows the buffer if need be."""
        if count != self._wake_at:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
            self._wake_at = count

    def send(self, buffers: Sequence[Buffer], *, more: bool = False) -> int:
        """Send from the buffers in order."""
        flags = socket.MSG_MORE if more else 0
        if len(buffers) == 1:
            return self._socket.send(buffers[0], flags)
        return self._socket.sendmsg(buffers, [], flags)

    def sendfile(self, fd: int, offset: int, count: int) -> int:
        """Send bytes of an open file without copying them."""
        return os.sendfile(self._socket.fileno(), fd, offset, count)

    def has_more(self) -> bool:
        """Never: what is here is in the kernel, and it tells."""
        return False

    def finish(self) -> None:
        """Send no more."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()
