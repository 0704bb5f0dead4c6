"""One HTTP exchange over a unix socket: a request, its answer, and the connection is closed.

`http.client` does this too, and takes 20 of the 60 ms that a command may take to start, for TLS
and mail headers that a unix socket has no use for. We ask in HTTP/1.0, which is answered without
chunked encoding: the body ends where the server closes. A length that the server announced is
checked, and a stream's last line is known by what it says.
"""

import io
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from damselfly.errors import AgentUnavailableError, RemoteProtocolError

HEAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 64 * 1024 * 1024
LINE_BYTES_MAX = 1024 * 1024


class Exchange:
    """An answer that is being read. Used by one thread; closing it hangs up."""

    def __init__(self, connection: socket.socket, path: str) -> None:
        self._connection = connection
        self._path = path
        self._stream = io.BufferedReader(socket.SocketIO(connection, "r"), 64 * 1024)
        self.status = 0
        self._length: int | None = None

    @classmethod
    def begin(cls, path: str, method: str, target: str, body: bytes, *, patience_s: float) -> Self:
        """Connect to the socket at `path`, ask, and read the head of the answer.

        `patience_s` bounds every silence of the agent, not the whole exchange.

        Raises:
            AgentUnavailableError: Nobody answers.
            RemoteProtocolError: Somebody answers, and it is not HTTP.
        """
        assert "\r" not in target
        assert " " not in target
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(patience_s)
        exchange = cls(connection, path)
        try:
            try:
                connection.connect(path)
                head = f"{method} {target} HTTP/1.0\r\nHost: agent\r\nAccept: */*\r\n"
                if body:
                    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                connection.sendall(head.encode() + b"\r\n" + body)
                exchange._read_head()
            except (OSError, ValueError) as exc:
                raise _unavailable(path, exc) from exc
        except BaseException:
            exchange.close()
            raise
        return exchange

    def _read_head(self) -> None:
        words = self._head_line().split(" ", 2)
        if (
            len(words) < 2
            or not words[0].startswith("HTTP/1.")
            or len(words[1]) != 3
            or not words[1].isdigit()
        ):
            raise RemoteProtocolError(f"what listens on {self._path} does not speak HTTP")
        self.status = int(words[1])
        read = 0
        while line := self._head_line():
            read += len(line)
            if read > HEAD_BYTES_MAX:
                raise RemoteProtocolError(f"the head of the answer on {self._path} does not end")
            name, _, value = line.partition(":")
            if name.lower() == "content-length" and value.strip().isdigit():
                self._length = int(value)

    def _head_line(self) -> str:
        line = self._stream.readline(HEAD_BYTES_MAX)
        if not line.endswith(b"\n"):
            raise RemoteProtocolError(f"the answer on {self._path} broke off in its head")
        return line.decode("latin-1").rstrip("\r\n")

    def read(self) -> bytes:
        """Read the whole body."""
        try:
            body = self._stream.read(BODY_BYTES_MAX + 1)
        except OSError as exc:
            raise _unavailable(self._path, exc) from exc
        if len(body) > BODY_BYTES_MAX:
            raise RemoteProtocolError(f"the answer on {self._path} is longer than any we know")
        if self._length is not None and len(body) != self._length:
            raise RemoteProtocolError(
                f"the answer on {self._path} broke off after {len(body)} of {self._length} bytes"
            )
        return body

    def lines(self) -> Iterator[bytes]:
        """Read the body by lines as they come; empty ones, which say `still here`, are left out."""
        while True:
            try:
                line = self._stream.readline(LINE_BYTES_MAX)
            except OSError as exc:
                raise _unavailable(self._path, exc) from exc
            if not line:
                return
            if not line.endswith(b"\n"):
                raise RemoteProtocolError(f"the answer on {self._path} broke off within a line")
            if line.strip():
                yield line

    def close(self) -> None:
        """Hang up."""
        self._stream.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _unavailable(path: str, exc: Exception) -> AgentUnavailableError:
    """Say what to do about it: that is all the person in front of it wants to know."""
    match exc:
        case FileNotFoundError():
            advice = "start one with `damselfly agent`, or name its socket with --socket"
        case PermissionError():
            advice = "ask for membership in the socket's group, or run as its owner"
        case ConnectionRefusedError():
            advice = "the agent that made it is gone: start it again with `damselfly agent`"
        case TimeoutError():
            advice = "it may be overloaded, or stopped by a debugger; its log tells more"
        case ConnectionError():
            advice = "it broke off; its log may tell why, and pulls go on when asked for again"
        case _:
            advice = "name the agent's socket with --socket"
    return AgentUnavailableError(f"no agent answers on {path} ({advice})")
