"""Accepting connections on a raw socket."""

import asyncio
import errno
import socket
from collections.abc import Callable

# What accept() says when the machine, not the connection, is to blame: rest, and try again.
_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_REST_S = 0.5
_ACCEPTS_PER_CALLBACK = 32


class Listener:
    """A listening socket in the loop; every connection goes to `accepted` as it comes."""

    def __init__(
        self, sock: socket.socket, accepted: Callable[[socket.socket, tuple[str, int]], None]
    ) -> None:
        self.port = int(sock.getsockname()[1])
        self._socket = sock
        self._accepted = accepted
        self._loop = asyncio.get_running_loop()
        self._rest: asyncio.TimerHandle | None = None
        self._watch()

    @classmethod
    async def open(
        cls,
        host: str,
        port: int,
        backlog: int,
        accepted: Callable[[socket.socket, tuple[str, int]], None],
    ) -> "Listener":
        """Listen on an address; raises OSError when that is not possible."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setblocking(False)
            sock.bind(address)
            sock.listen(backlog)
        except OSError:
            sock.close()
            raise
        return cls(sock, accepted)

    def close(self) -> None:
        """Listen no more."""
        if self._rest is not None:
            self._rest.cancel()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _watch(self) -> None:
        self._rest = None
        self._loop.add_reader(self._socket.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        for _ in range(_ACCEPTS_PER_CALLBACK):
            try:
                connection, address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno in _EXHAUSTED:
                    self._loop.remove_reader(self._socket.fileno())
                    self._rest = self._loop.call_later(_REST_S, self._watch)
                    return
                continue  # That connection was gone before we took it.
            self._accepted(connection, (address[0], address[1]))
