"""A TLS connection as a channel: OpenSSL on our non-blocking socket.

OpenSSL takes and gives a record (16 KiB) at a time, so both directions loop here. Three traps:

- What is not fetched of a record that was decrypted waits inside of OpenSSL, where no poll sees it:
  `has_more`.
- A record that the socket did not take is kept encrypted inside, and the next call has to bring the
  same bytes again, or more (SSL_write(3)). The driver does: it never leaves a frame half-way.
- A record that has only half arrived is inside as well, so the kernel has less than what is due:
  SO_RCVLOWAT must not wait for all of that.

There is no sendfile: Python reaches no kernel TLS before 3.12. Bytes are read from the page cache.
"""

import contextlib
import os
import socket
import ssl
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from damselfly.p2p.transport.channel import Buffer

RECORD_BYTES = 16 << 10
_READ_BYTES = 8 * RECORD_BYTES
"""Of a file at a time: fewer system calls, and in the processor's cache until it is encrypted."""
_INSIDE_BYTES = 2 * RECORD_BYTES
"""At most so much of what is due is no longer in the kernel."""


class TLSChannel:
    """A TCP socket with TLS on it, whose hands have been shaken."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._wake_at = 1
        self._held = b""  # The head of a frame, which goes with its payload in one record.
        self._scratch = memoryview(b"")

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._socket.fileno()

    def recv_into(self, views: Sequence[memoryview]) -> int:
        """Receive into the first view until it is full or nothing is here; 0 at the end."""
        view, done = views[0], 0
        try:
            while done < len(view):
                count = self._socket.recv_into(view[done:])
                if not count:
                    break
                done += count
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if not done:
                raise BlockingIOError from None
        except ssl.SSLError as exc:
            # Among them what the peer thinks of our certificate: it says so after our handshake.
            raise ConnectionError(f"TLS: {(exc.reason or 'broken').lower()}") from exc
        return done

    def has_more(self) -> bool:
        """Whether part of a record is left that was decrypted."""
        return self._socket.pending() > 0

    def wake_at(self, count: int) -> None:
        """Set SO_RCVLOWAT to what the kernel alone will surely get of `count` bytes."""
        count = max(1, count - _INSIDE_BYTES)
        if count != self._wake_at:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
            self._wake_at = count

    def send(self, buffers: Sequence[Buffer], *, more: bool = False) -> int:
        """Send from the buffers in order; what is followed by `more` waits for it."""
        if more:
            self._held += b"".join(buffers)
            return sum(len(buffer) for buffer in buffers)
        if len(buffers) == 1:
            return self._write(memoryview(buffers[0]))
        return self._write(memoryview(b"".join(buffers)))

    def sendfile(self, fd: int, offset: int, count: int) -> int:
        """Read bytes of an open file, and send them."""
        if not self._scratch:
            self._scratch = memoryview(bytearray(_READ_BYTES))
        read = os.preadv(fd, (self._scratch[:count],), offset)
        return self._write(self._scratch[:read]) if read else 0

    def finish(self) -> None:
        """Say that there will be no more, and send no more."""
        # Where the socket takes nothing now, the end of the stream has to say it.
        with contextlib.suppress(OSError), _not_ready():
            self._socket.unwrap()
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()

    def _write(self, data: memoryview) -> int:
        """Send what is held and then `data`; returns how many bytes of `data` went."""
        done = 0
        try:
            if self._held:
                room = RECORD_BYTES - len(self._held)
                sent = self._socket.send(self._held + data[:room])
                of_held = min(sent, len(self._held))
                self._held, done = self._held[of_held:], sent - of_held
            while done < len(data) and not self._held:
                done += self._socket.send(data[done : done + RECORD_BYTES])
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if not done:
                raise BlockingIOError from None
        return done


@contextmanager
def _not_ready() -> Generator[None]:
    with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
        yield
