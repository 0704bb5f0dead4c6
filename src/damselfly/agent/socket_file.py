"""The socket file: made in one step with its permissions, and removed only if it is still ours."""

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from damselfly.errors import ConfigError, StoreInUseError

BACKLOG = 128
ANSWER_PATIENCE_S = 1.0


class SocketFile:
    """A unix socket that a server listens on. Belongs to one event loop."""

    def __init__(self, path: Path, mode: int) -> None:
        self._path = path
        self._mode = mode
        self._identity: tuple[int, int] | None = None
        self._server: asyncio.AbstractServer | None = None

    async def serve(self, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        """Listen. A file left by an agent that is gone is replaced, anything else is not.

        Raises:
            StoreInUseError: Another agent answers there.
            ConfigError: The socket cannot be made.
        """
        loop = asyncio.get_running_loop()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            try:
                self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                await self._check_free(loop)
                self._bind(listener)
            except OSError as exc:
                raise ConfigError(f"making the agent's socket {self._path}") from exc
            listener.setblocking(False)
            self._server = await loop.create_unix_server(factory, sock=listener)
        except BaseException:
            listener.close()
            self._remove()
            raise

    async def _check_free(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._is_there():
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                async with asyncio.timeout(ANSWER_PATIENCE_S):
                    await loop.sock_connect(probe, str(self._path))
            except TimeoutError:
                pass  # Its backlog is full: somebody is there, and busy.
            except OSError as exc:
                if exc.errno in {errno.ECONNREFUSED, errno.ENOENT}:
                    return
                raise
        raise StoreInUseError(f"another agent answers on {self._path}: stop it, or give --socket")

    def _is_there(self) -> bool:
        if self._path.is_socket():
            return True
        if os.path.lexists(self._path):
            raise ConfigError(f"{self._path} is there and is no socket: not replacing it")
        return False

    def _bind(self, listener: socket.socket) -> None:
        # Bound and restricted under another name, then renamed: nobody can connect before the mode
        # is right, and no moment passes without a socket when an old one is replaced.
        aside = self._path.with_name(f".{os.getpid():x}")
        with suppress(FileNotFoundError):
            aside.unlink()
        try:
            listener.bind(str(aside))
            aside.chmod(self._mode)
            status = aside.stat()
            listener.listen(BACKLOG)
            aside.rename(self._path)
        except BaseException:
            with suppress(FileNotFoundError):
                aside.unlink()
            raise
        self._identity = (status.st_dev, status.st_ino)

    def close(self) -> None:
        """Stop listening and take the file away. Connections that are open are not touched."""
        if self._server is not None:
            self._server.close()
        self._remove()

    def _remove(self) -> None:
        """Take the file away, unless a successor has put its own there."""
        if self._identity is None:
            return
        with suppress(FileNotFoundError):
            status = self._path.lstat()
            if (status.st_dev, status.st_ino) == self._identity:
                self._path.unlink()
        self._identity = None
