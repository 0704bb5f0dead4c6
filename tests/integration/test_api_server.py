"""The agent's API as strangers see it: raw HTTP, bad questions, bugs behind it, and its socket."""

import asyncio
import json
import os
import shutil
import socket
import stat
from collections.abc import AsyncIterator, Sequence
from http.client import HTTPConnection
from pathlib import Path

import pytest
import uvloop

from damselfly.agent.api import STATUSES, APILimits, APIServer, status_of
from damselfly.client.agent import AgentClient
from damselfly.client.answers import HeldArtifact, Progress, Pulled, PullRequest
from damselfly.errors import (
    AgentUnavailableError,
    ConfigError,
    DamselflyError,
    DigestMismatchError,
    LocalProtocolError,
    StoreInUseError,
    error_classes,
)
from tests.conformance.agent_api import Served as _Served, files_below, pulled, until
from tests.fakes.memory_node import MemoryNode

REF = "file:///models/llama/"
FILES = {"model.safetensors": b"weights" * 1000, "config.json": b"{}"}


class UnixConnection(HTTPConnection):
    """The standard library's HTTP/1.1 client on a unix socket: a stranger to our own."""

    def __init__(self, path: Path) -> None:
        super().__init__("agent", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(str(self._path))


def exchange(path: Path, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
    connection = UnixConnection(path)
    try:
        connection.request(method, target, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.fixture
def node(tmp_path: Path) -> MemoryNode:
    return MemoryNode(tmp_path / "views", {REF: FILES})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


def served_by(node: MemoryNode, path: Path) -> _Served:
    return _Served(path, REF, FILES, "file:///none/", REF, node.hold, node.release)


class TestQuestions:
    @pytest.mark.parametrize(
        ("method", "target", "body", "status"),
        [
            ("POST", "/v1/pulls", b"", 400),
            ("POST", "/v1/pulls", b"{", 400),
            ("POST", "/v1/pulls", b"[]", 400),
            ("POST", "/v1/pulls", b'{"ref": 7}', 400),
            ("POST", "/v1/pulls", b'{"ref": "file:///x/", "inlcude": []}', 400),
            ("POST", "/v1/pulls", b'{"ref": "file:///x/", "include": "*.json"}', 400),
            ("POST", "/v1/pulls", b"[" * 100_000, 400),
            ("POST", "/v1/pulls", b'{"ref": "\xff"}', 400),
            ("POST", "/v1/pulls", b" " * 300_000, 413),
            ("POST", "/v1/cancel", b"{}", 400),
            ("POST", "/v1/rm", b'{"artifact": null}', 400),
            ("DELETE", "/v1/pulls", b"", 405),
            ("GET", "/v1/nothing", b"", 404),
            ("GET", "/", b"", 404),
        ],
    )
    async def test_a_bad_question_gets_a_named_error(
        self, node: MemoryNode, path: Path, method: str, target: str, body: bytes, status: int
    ) -> None:
        async with APIServer(node, path):
            answered, text = await asyncio.to_thread(exchange, path, method, target, body)

        assert answered == status
        told = json.loads(text)
        assert told["error"] == "UsageError"
        assert target in told["message"]

    async def test_a_misspelt_key_is_named(self, node: MemoryNode, path: Path) -> None:
        question = b'{"ref": "file:///x/", "inlcude": []}'
        async with APIServer(node, path):
            _, text = await asyncio.to_thread(exchange, path, "POST", "/v1/pulls", question)

        assert "inlcude" in json.loads(text)["message"]

    async def test_a_stream_is_lines_of_json_in_http_1_1(
        self, node: MemoryNode, path: Path
    ) -> None:
        question = json.dumps({"ref": REF}).encode()
        async with APIServer(node, path):
            status, text = await asyncio.to_thread(exchange, path, "POST", "/v1/pulls", question)

        assert status == 200
        lines = [json.loads(line) for line in text.splitlines()]
        assert {line["event"] for line in lines[:-1]} == {"progress"}
        assert lines[-1]["event"] == "done"
        assert lines[-1]["bytes"] == lines[-1]["bytes_from_origin"] == 7002

    @pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
    async def test_curl_can_ask(self, node: MemoryNode, path: Path) -> None:
        async with APIServer(node, path):
            curl = await asyncio.create_subprocess_exec(
                *("curl", "--silent", "--fail", "--unix-socket", str(path)),
                *("--json", json.dumps({"ref": REF}), "http://agent/v1/pulls"),
                stdout=asyncio.subprocess.PIPE,
            )
            text, _ = await curl.communicate()

        assert curl.returncode == 0
        assert json.loads(text.splitlines()[-1])["event"] == "done"

    def test_it_serves_under_uvloop(self, tmp_path: Path, path: Path) -> None:
        async def serve() -> Pulled:
            node = MemoryNode(tmp_path / "views", {REF: FILES})
            async with APIServer(node, path):
                return await pulled(served_by(node, path))

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            done = runner.run(serve())

        assert files_below(done.path) == FILES
        assert not path.exists()


class Failing(MemoryNode):
    """A node whose every answer is one error."""

    error: BaseException = AssertionError()

    async def artifacts(self) -> Sequence[HeldArtifact]:
        raise self.error

    async def pull(self, request: PullRequest) -> AsyncIterator[Progress | Pulled]:
        yield Progress(ref=request.ref)
        raise self.error


def one_of(cls: type[DamselflyError]) -> DamselflyError:
    if cls is DigestMismatchError:
        return DigestMismatchError("blake3:aa", "blake3:bb", "10.0.0.3:7460")
    return cls(f"something about {cls.__name__}")


class TestErrors:
    @pytest.mark.parametrize("cls", error_classes().values(), ids=lambda cls: cls.__name__)
    async def test_every_class_crosses_the_socket(
        self, tmp_path: Path, path: Path, cls: type[DamselflyError]
    ) -> None:
        node = Failing(tmp_path, {})
        node.error = one_of(cls)
        node.error.__cause__ = OSError("reset by peer")
        client = AgentClient(str(path))
        async with APIServer(node, path):
            with pytest.raises(DamselflyError) as answered:
                await asyncio.to_thread(client.artifacts)
            with pytest.raises(DamselflyError) as streamed:
                await asyncio.to_thread(list, client.pull(PullRequest(ref=REF)))

        for caught in (answered, streamed):
            assert type(caught.value) is cls
            assert str(caught.value) == f"{node.error}: reset by peer"

    @pytest.mark.parametrize("cls", error_classes().values(), ids=lambda cls: cls.__name__)
    def test_every_class_has_a_status_that_says_whose_turn_it_is(
        self, cls: type[DamselflyError]
    ) -> None:
        status = status_of(cls)

        assert (status == 503) == cls.retryable
        assert 400 <= status < 600

    def test_the_table_has_no_row_that_its_parent_says_too(self) -> None:
        for cls, status in STATUSES.items():
            if cls is not DamselflyError:
                assert status_of(cls.__mro__[1]) != status, cls

    async def test_secrets_do_not_cross(self, tmp_path: Path, path: Path) -> None:
        node = Failing(tmp_path, {})
        node.error = DamselflyError("reading https://me:pw@host/x?X-Amz-Signature=abc")
        async with APIServer(node, path):
            _, text = await asyncio.to_thread(exchange, path, "GET", "/v1/artifacts")

        assert json.loads(text)["message"] == "reading https://host/x?[hidden]"

    async def test_a_bug_is_said_to_be_one_and_told_in_the_log(
        self, tmp_path: Path, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        node = Failing(tmp_path, {})
        node.error = AssertionError("an invariant with details")
        client = AgentClient(str(path))
        async with APIServer(node, path):
            with pytest.raises(LocalProtocolError) as answered:
                await asyncio.to_thread(client.artifacts)
            with pytest.raises(LocalProtocolError):
                await asyncio.to_thread(list, client.pull(PullRequest(ref=REF)))

        assert "details" not in str(answered.value)
        assert [record.message for record in caplog.records] == ["api.failed"] * 2
        assert "an invariant with details" in caplog.text


class TestStreams:
    async def test_a_silent_stream_says_that_it_is_still_there(
        self, node: MemoryNode, path: Path
    ) -> None:
        node.hold()
        limits = APILimits(still_here_s=0.01)
        async with APIServer(node, path, limits=limits):
            reader, writer = await asyncio.open_unix_connection(path)
            question = json.dumps({"ref": REF}).encode()
            writer.write(
                b"POST /v1/pulls HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s"
                % (len(question), question)
            )
            async with asyncio.timeout(20):
                while await reader.readline() != b"\n":
                    pass

            assert await reader.readline() != b""
            writer.close()
            await node.close()

    async def test_hanging_up_is_noticed(self, tmp_path: Path, path: Path) -> None:
        closed = asyncio.Event()

        class Watched(MemoryNode):
            async def pull(self, request: PullRequest) -> AsyncIterator[Progress | Pulled]:
                try:
                    async for item in super().pull(request):
                        yield item
                finally:
                    closed.set()

        node = Watched(tmp_path / "views", {REF: FILES})
        node.hold()
        async with APIServer(node, path, limits=APILimits(still_here_s=0.01)):
            items = AgentClient(str(path)).pull(PullRequest(ref=REF))
            await asyncio.to_thread(lambda: next(items))
            await asyncio.to_thread(items.close)

            async with asyncio.timeout(20):
                await closed.wait()

            assert len(await node.pulls()) == 1
            await node.close()

    async def test_an_agent_that_stops_says_so(self, node: MemoryNode, path: Path) -> None:
        node.hold()
        async with APIServer(node, path):
            watcher = asyncio.create_task(pulled(served_by(node, path)))
            await until(lambda: len(AgentClient(str(path)).pulls()) > 0)

        with pytest.raises(AgentUnavailableError, match="the agent stops"):
            await watcher
        assert len(await node.pulls()) == 1
        await node.close()

    async def test_a_slow_first_item_is_waited_for(self, tmp_path: Path, path: Path) -> None:
        go = asyncio.Event()

        class Slow(MemoryNode):
            async def pull(self, request: PullRequest) -> AsyncIterator[Progress | Pulled]:
                await go.wait()
                async for item in super().pull(request):
                    yield item

        node = Slow(tmp_path / "views", {REF: FILES})
        async with APIServer(node, path, limits=APILimits(first_item_s=0.0)):
            watcher = asyncio.create_task(pulled(served_by(node, path)))
            await asyncio.sleep(0)
            go.set()

            assert files_below((await watcher).path) == FILES


class TestSocketFile:
    async def test_only_its_user_and_group_may_open_it(self, node: MemoryNode, path: Path) -> None:
        async with APIServer(node, path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert [entry.name for entry in path.parent.iterdir()] == [path.name]

    async def test_its_mode_can_be_said(self, node: MemoryNode, path: Path) -> None:
        async with APIServer(node, path, mode=0o600):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600

    async def test_its_directory_is_made(self, node: MemoryNode, tmp_path: Path) -> None:
        path = tmp_path / "run" / "damselfly" / "agent.sock"
        async with APIServer(node, path):
            assert path.is_socket()

    async def test_it_goes_with_its_agent(self, node: MemoryNode, path: Path) -> None:
        async with APIServer(node, path):
            pass

        assert not os.path.lexists(path)
        with pytest.raises(AgentUnavailableError, match=str(path)):
            await asyncio.to_thread(AgentClient(str(path)).status)

    async def test_one_left_by_a_dead_agent_is_replaced(self, node: MemoryNode, path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))

        async with APIServer(node, path):
            assert await asyncio.to_thread(AgentClient(str(path)).artifacts) == []

    async def test_one_that_answers_is_left_alone(self, node: MemoryNode, path: Path) -> None:
        async with APIServer(node, path):
            with pytest.raises(StoreInUseError, match=str(path)):
                async with APIServer(node, path):
                    pass

            assert await asyncio.to_thread(AgentClient(str(path)).artifacts) == []

    async def test_what_is_no_socket_is_left_alone(self, node: MemoryNode, path: Path) -> None:
        path.write_text("precious")

        with pytest.raises(ConfigError, match="no socket"):
            async with APIServer(node, path):
                pass

        assert path.read_text() == "precious"

    async def test_a_successors_socket_is_not_taken_away(
        self, node: MemoryNode, path: Path
    ) -> None:
        async with APIServer(node, path):
            path.unlink()
            successor = APIServer(node, path)
            await successor.__aenter__()

        assert await asyncio.to_thread(AgentClient(str(path)).artifacts) == []
        await successor.__aexit__(None, None, None)
        assert not path.exists()

    async def test_a_place_that_cannot_be_is_said(self, node: MemoryNode, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")

        with pytest.raises(ConfigError, match="agent.sock"):
            async with APIServer(node, tmp_path / "file" / "agent.sock"):
                pass
