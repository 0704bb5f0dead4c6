"""The client's side of an HTTP exchange, against a scripted socket."""

import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from damselfly.client.agent import AgentClient
from damselfly.client.answers import Progress, Pulled, PullRequest
from damselfly.client.exchange import HEAD_BYTES_MAX, LINE_BYTES_MAX, Exchange
from damselfly.errors import AgentUnavailableError, DamselflyError, RemoteProtocolError

HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n"
DONE = Pulled(
    ref="file:///x/",
    artifact="blake3:00",
    path="/x",
    bytes=0,
    files=0,
    seconds=0.0,
    bytes_from_origin=0,
    bytes_from_peers=0,
    bytes_from_store=0,
)


@contextmanager
def scripted(path: Path, answer: bytes) -> Generator[list[bytes]]:
    """A server that answers one request with these very bytes and hangs up."""
    heard: list[bytes] = []
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(1)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            heard.append(connection.recv(64 * 1024))
            try:
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
            except OSError:
                pass  # The client had heard enough.

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield heard
    finally:
        thread.join()
        listener.close()
        path.unlink()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def asked(path: Path, answer: bytes, ask: Callable[[AgentClient], object]) -> object:
    with scripted(path, answer):
        return ask(AgentClient(str(path)))


def test_a_body_is_read_to_its_announced_end(path: Path) -> None:
    with (
        scripted(path, HEAD + b"Content-Length: 2\r\n\r\n{}") as heard,
        Exchange.begin(str(path), "POST", "/v1/gc", b"[]", patience_s=20) as exchange,
    ):
        assert (exchange.status, exchange.read()) == (200, b"{}")

    assert heard[0].startswith(b"POST /v1/gc HTTP/1.0\r\n")
    assert heard[0].endswith(b"Content-Length: 2\r\n\r\n[]")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"220 mail.example.org ESMTP\r\n",
        b"HTTP/1.0 OK\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n",
        HEAD + b"Content-Length: 3\r\n\r\n{}",
        HEAD + b"\r\nno json",
        HEAD + b"\r\n[]",
        HEAD + b'\r\n{"artifacts": 7}',
        HEAD + b'\r\n{"artifacts": [{}]}',
        HEAD + b"X: " + b"x" * HEAD_BYTES_MAX + b"\r\n\r\n{}",
        HEAD + b"X: y\r\n" * HEAD_BYTES_MAX + b"\r\n{}",
    ],
)
def test_what_is_no_answer_of_ours_is_a_protocol_error(path: Path, answer: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        asked(path, answer, lambda client: client.artifacts())


@pytest.mark.parametrize(
    "lines",
    [
        b'{"event": "progress", "ref": "file:///x/"',
        b'{"event": "progress"}\n',
        b'{"event": "done", "ref": "file:///x/"}\n',
        b"7\n",
        b"x" * (LINE_BYTES_MAX + 1) + b"\n",
    ],
)
def test_a_stream_that_is_none_is_a_protocol_error(path: Path, lines: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        asked(path, HEAD + b"\r\n" + lines, lambda c: list(c.pull(PullRequest(ref="file:///x/"))))


def test_a_stream_without_an_end_means_that_the_agent_crashed(path: Path) -> None:
    line = b'{"event": "progress", "ref": "file:///x/"}\n'

    with pytest.raises(AgentUnavailableError, match="crashed or was killed"):
        asked(path, HEAD + b"\r\n" + line, lambda c: list(c.pull(PullRequest(ref="file:///x/"))))


def test_what_a_newer_agent_says_is_passed_over(path: Path) -> None:
    lines = (
        b"\n"
        b'{"event": "weather", "sky": "blue"}\n'
        b'{"event": "progress", "ref": "file:///x/", "mood": "good"}\n'
        b'{"event": "done", "ref": "file:///x/", "artifact": "blake3:00", "path": "/x", "bytes": 0,'
        b' "files": 0, "seconds": 0, "bytes_from_origin": 0, "bytes_from_peers": 0,'
        b' "bytes_from_store": 0, "bytes_from_space": 1}\n'
    )

    items = asked(path, HEAD + b"\r\n" + lines, lambda c: list(c.pull(PullRequest(ref="x"))))

    assert items == [Progress(ref="file:///x/"), DONE]


def test_an_error_of_a_class_unknown_here_is_still_an_error(path: Path) -> None:
    answer = HEAD.replace(b"200", b"418") + b'\r\n{"error": "TeapotError", "message": "short"}'

    with pytest.raises(DamselflyError, match="short") as caught:
        asked(path, answer, lambda client: client.status())

    assert type(caught.value) is DamselflyError


def test_nobody_there_is_said_with_advice(path: Path) -> None:
    with pytest.raises(AgentUnavailableError) as caught:
        AgentClient(str(path)).status()

    assert str(path) in str(caught.value)
    assert "damselfly agent" in str(caught.value)
    assert "--socket" in str(caught.value)


def test_a_socket_of_a_dead_agent_is_said_with_advice(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    with pytest.raises(AgentUnavailableError, match="is gone"):
        AgentClient(str(path)).status()


def test_an_agent_that_keeps_silent_is_given_up(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen(1)

        with pytest.raises(AgentUnavailableError, match="overloaded"):
            Exchange.begin(str(path), "GET", "/v1/status", b"", patience_s=0.01)


def test_a_path_that_no_socket_can_have_is_said(tmp_path: Path) -> None:
    for path in (tmp_path / ("x" * 200), "a\0b"):
        with pytest.raises(AgentUnavailableError):
            AgentClient(str(path)).status()


@settings(max_examples=60, deadline=None)
@given(garbage=st.binary(max_size=200))
def test_garbage_raises_our_errors_and_no_others(
    tmp_path_factory: pytest.TempPathFactory, garbage: bytes
) -> None:
    path = tmp_path_factory.mktemp("garbage") / "s"
    for answer in (garbage, HEAD + b"\r\n" + garbage):
        with pytest.raises((RemoteProtocolError, AgentUnavailableError)):
            asked(path, answer, lambda client: list(client.pull(PullRequest(ref="x"))))
