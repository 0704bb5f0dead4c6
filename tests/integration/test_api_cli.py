"""The command line as a process: its answers, its exit codes, its manners."""

import asyncio
import json
import os
import pty
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from damselfly.agent.api import APIServer
from damselfly.cli import VERBS
from damselfly.client.answers import PullRequest
from tests.conformance.agent_api import files_below
from tests.fakes.memory_node import MemoryNode

REF = "file:///models/llama/"
PRIVATE_REF = "file:///models/private/"
FILES = {
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 4096,
    "tokenizer/vocab.txt": b"",
}
CLIENT_VERBS = sorted(set(VERBS) - {"agent", "csi", "push"})


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


@dataclass
class Shell:
    """Runs the command line against one agent."""

    node: MemoryNode
    socket: Path
    environ: dict[str, str] = field(default_factory=dict[str, str])

    async def start(self, *args: str, **more: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "damselfly", *args),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=more.get("stdout", asyncio.subprocess.PIPE),
            stderr=more.get("stderr", asyncio.subprocess.PIPE),
            env={**os.environ, "DAMSELFLY_SOCKET": str(self.socket), **self.environ},
        )

    async def run(self, *args: str) -> Ended:
        return await ended(await self.start(*args))


async def ended(process: asyncio.subprocess.Process) -> Ended:
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, (out or b"").decode(), (err or b"").decode())


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    origin = {REF: FILES, PRIVATE_REF: FILES}
    node = MemoryNode(tmp_path / "views", origin, {PRIVATE_REF: "s3cret-t0ken"})
    socket = tmp_path / "agent.sock"
    async with APIServer(node, socket):
        yield Shell(node, socket)
        await node.close()


async def running(shell: Shell) -> None:
    """Wait until the agent has a pull under way."""
    async with asyncio.timeout(60):
        while not any(pull.phase == "fetching" for pull in await shell.node.pulls()):
            await asyncio.sleep(0.01)


class TestPull:
    async def test_the_answer_is_the_path_of_a_view(self, shell: Shell) -> None:
        done = await shell.run("pull", REF)

        assert done.code == 0
        assert files_below(done.out.rstrip("\n")) == FILES
        assert "pulled blake3:" in done.err
        assert "1.0 MiB" in done.err

    async def test_json_is_one_object_on_stdout(self, shell: Shell) -> None:
        done = await shell.run("pull", REF, "--json")

        assert done.code == 0
        assert done.out.count("\n") == 1
        answer = done.json
        assert files_below(str(answer["path"])) == FILES
        assert answer["bytes"] == answer["bytes_from_origin"] == 1048578
        assert {"artifact", "seconds", "bytes_from_peers", "bytes_from_store"} <= set(answer)

    async def test_quiet_says_nothing_but_the_answer(self, shell: Shell) -> None:
        done = await shell.run("pull", REF, "--quiet")

        assert (done.code, done.err) == (0, "")

    async def test_to_makes_a_tree(self, shell: Shell, tmp_path: Path) -> None:
        done = await shell.run("pull", REF, "--to", str(tmp_path / "to"), "--json")

        assert done.code == 0
        assert done.json["path"] == str(tmp_path / "to")
        assert files_below(str(tmp_path / "to")) == FILES

    async def test_link_opts_into_hard_links(self, shell: Shell, tmp_path: Path) -> None:
        done = await shell.run("pull", REF, "--to", str(tmp_path / "to"), "--link", "--json")

        assert done.json["linked"] == len(FILES)
        assert (tmp_path / "to" / "config.json").stat().st_nlink == 2

    async def test_a_file_that_differs_stays_unless_forced(
        self, shell: Shell, tmp_path: Path
    ) -> None:
        (tmp_path / "config.json").write_text("mine")

        refused = await shell.run("pull", REF, "--to", str(tmp_path))
        forced = await shell.run("pull", REF, "--to", str(tmp_path), "--force")

        assert refused.code == 2
        assert "config.json is there and differs (--force replaces it)" in refused.err
        assert forced.code == 0
        assert (tmp_path / "config.json").read_bytes() == b"{}"

    async def test_filters_may_be_given_again(self, shell: Shell) -> None:
        done = await shell.run(
            *("pull", REF, "--include", "*.json", "--include", "*.txt", "--exclude", "config.*")
        )

        assert set(files_below(done.out.rstrip("\n"))) == {"tokenizer/vocab.txt"}

    async def test_a_token_comes_from_a_file(self, shell: Shell, tmp_path: Path) -> None:
        place = tmp_path / "token"
        place.write_text("s3cret-t0ken\n")

        opened = await shell.run("pull", PRIVATE_REF, "--token-file", str(place))
        denied = await shell.run("pull", PRIVATE_REF, "--exclude", "none")

        assert opened.code == 0
        assert files_below(opened.out.rstrip("\n")) == FILES
        assert denied.code == 61
        assert "s3cret" not in opened.out + opened.err + denied.err

    @pytest.mark.parametrize("text", ["", "two s3crets", "s3crét", "s3cret" * 10_000])
    async def test_what_is_no_token_is_refused_without_telling_it(
        self, shell: Shell, tmp_path: Path, text: str
    ) -> None:
        place = tmp_path / "token"
        place.write_text(text)

        done = await shell.run("pull", REF, "--token-file", str(place))

        assert done.code == 2
        assert str(place) in done.err
        assert "s3cr" not in done.err

    async def test_a_token_file_that_is_not_there_is_named(
        self, shell: Shell, tmp_path: Path
    ) -> None:
        done = await shell.run("pull", REF, "--token-file", str(tmp_path / "none"))

        assert done.code == 2
        assert "none" in done.err

    async def test_only_who_copies_asks_the_agent_to_keep_it(
        self, shell: Shell, tmp_path: Path
    ) -> None:
        await shell.run("pull", REF)
        await shell.run("pull", REF, "--to", str(tmp_path / "to"))

        assert [request.hold for request in shell.node.asked] == [False, True]

    async def test_link_without_to_makes_no_sense(self, shell: Shell) -> None:
        done = await shell.run("pull", REF, "--link")

        assert done.code == 2
        assert "--to DIR" in done.err

    async def test_interrupting_leaves_the_pull_going_and_says_so(self, shell: Shell) -> None:
        shell.node.hold()
        process = await shell.start("pull", REF)
        assert process.stderr is not None
        async with asyncio.timeout(60):
            await process.stderr.readuntil(b"fetching")

        process.send_signal(signal.SIGINT)
        done = await ended(process)

        assert done.code == 130
        assert done.out == ""
        assert "the pull goes on in the agent" in done.err
        assert f"damselfly cancel {REF}" in done.err
        assert "Traceback" not in done.err
        assert [pull.ref for pull in await shell.node.pulls()] == [REF]

    async def test_cancelling_ends_it_with_an_exit_code_of_its_own(self, shell: Shell) -> None:
        shell.node.hold()
        process = await shell.start("pull", REF)
        await running(shell)

        cancel = await shell.run("cancel", REF)
        done = await ended(process)

        assert (cancel.code, cancel.out) == (0, f"cancelled the pull of {REF}\n")
        assert done.code == 70
        assert "cancelled" in done.err

    async def test_an_agent_that_stops_is_told_apart(self, tmp_path: Path) -> None:
        node = MemoryNode(tmp_path / "views", {REF: FILES})
        node.hold()
        socket = tmp_path / "agent.sock"
        shell = Shell(node, socket)
        async with APIServer(node, socket):
            process = await shell.start("pull", REF)
            await running(shell)
        done = await ended(process)
        await node.close()

        assert done.code == 33
        assert "the agent stops" in done.err

    async def test_a_person_sees_one_line_that_moves_and_goes(self, shell: Shell) -> None:
        main, side = pty.openpty()
        shell.environ = {"TERM": "xterm", "NO_COLOR": "1"}
        shell.node.hold()
        process = await shell.start("pull", REF, stderr=side)
        os.close(side)
        seen = bytearray()

        def look(until: bytes) -> None:
            try:
                while until not in seen:
                    seen.extend(os.read(main, 4096))
            except OSError:
                pass  # The other side is closed.

        await asyncio.to_thread(look, b"fetching")
        shell.node.release()
        done = await ended(process)
        await asyncio.to_thread(look, b"nothing more")
        os.close(main)

        assert done.code == 0
        moving, _, rest = seen.decode().rpartition("\r\x1b[K")
        assert "fetching" in moving
        assert "\n" not in moving
        assert rest.startswith("pulled blake3:")


class TestOtherVerbs:
    async def test_ls_lists_and_json_lists_all_of_it(self, shell: Shell) -> None:
        artifact = str((await shell.run("pull", REF, "--json")).json["artifact"])

        listed = await shell.run("ls")
        told = await shell.run("ls", "--json")

        head, line = listed.out.splitlines()
        assert head.split()[:4] == ["ARTIFACT", "SIZE", "HELD", "FILES"]
        assert line.startswith(artifact.removeprefix("blake3:")[:12])
        assert REF in line
        items = cast("list[dict[str, object]]", told.json["artifacts"])
        assert [item["artifact"] for item in items] == [artifact]

    async def test_an_empty_store_is_said_on_stderr(self, shell: Shell) -> None:
        done = await shell.run("ls")

        assert (done.code, done.out) == (0, "")
        assert "empty" in done.err

    async def test_an_artifact_is_pinned_unpinned_and_removed(self, shell: Shell) -> None:
        artifact = str((await shell.run("pull", REF, "--json")).json["artifact"])
        digits = artifact.removeprefix("blake3:")[:6]

        assert (await shell.run("pin", digits, "--json")).json["pinned"] is True
        kept = await shell.run("rm", digits)
        assert (kept.code, kept.out) == (42, "")
        assert (await shell.run("unpin", digits, "--json")).json["pinned"] is False
        gone = await shell.run("rm", digits)

        assert gone.code == 0
        assert "1.0 MiB freed" in gone.out
        assert (await shell.run("rm", digits)).code == 11

    async def test_status_tells_of_pulls(self, shell: Shell) -> None:
        shell.node.hold()
        process = await shell.start("pull", REF)
        await running(shell)

        shown = await shell.run("status")
        told = await shell.run("status", "--json")

        assert "192.0.2.1:7460 ready" in shown.out
        assert REF in shown.out
        assert told.json["state"] == "ready"
        shell.node.release()
        assert (await ended(process)).code == 0

    async def test_verify_names_what_is_bad_and_fails(self, shell: Shell) -> None:
        view = (await shell.run("pull", REF)).out.rstrip("\n")
        assert (await shell.run("verify")).code == 0
        Path(view, "config.json").write_bytes(b"[]")

        bad = await shell.run("verify", "--json")
        named = await shell.run("verify", REF)
        repaired = await shell.run("verify", "--repair")

        assert bad.code == 20
        assert bad.json["chunks_bad"] == 1
        assert [item["path"] for item in bad.json["bad"]] == ["config.json"]
        assert "bad: config.json at 0, 2 bytes" in named.out
        assert repaired.code == 0
        assert (await shell.run("verify")).code == 0

    async def test_verify_names_what_could_not_be_repaired_and_fails(self, shell: Shell) -> None:
        shell.node.unrepaired = ("blake3:00: no ref is known",)

        told = await shell.run("verify", "--repair")
        shown = await shell.run("verify", "--repair", "--json")

        assert told.code == shown.code == 20
        assert "not repaired: blake3:00: no ref is known\n" in told.out
        assert shown.json["unrepaired"] == ["blake3:00: no ref is known"]

    async def test_gc_tells_what_it_freed(self, shell: Shell) -> None:
        assert (await shell.run("gc")).out == "removed 0 files, 0 B freed\n"
        assert (await shell.run("gc", "--json")).json["bytes_freed"] == 0

    async def test_the_doctor_tells_of_both_sides(self, shell: Shell) -> None:
        shown = await shell.run("doctor")
        told = await shell.run("doctor", "--json")

        assert shown.code == 0
        assert "lots of room" in shown.out
        assert "agent.listen" in shown.out
        assert {"client", "socket", "disk"} <= {check["name"] for check in told.json["checks"]}

    async def test_the_doctor_comes_without_an_agent_too(self, shell: Shell) -> None:
        done = await shell.run("doctor", "--socket", "/nonexistent/s", "--json")

        assert done.code == 33
        checks = {check["name"]: check for check in done.json["checks"]}
        assert checks["socket"]["verdict"] == "bad"
        assert "/nonexistent/s" in checks["socket"]["detail"]

    async def test_push_writes_a_directory_that_can_be_pulled(
        self, shell: Shell, tmp_path: Path
    ) -> None:
        source = tmp_path / "source"
        source.mkdir()
        (source / "config.json").write_bytes(b"{}")

        done = await shell.run("push", str(source), str(tmp_path / "dest"), "--json")
        nothing = await shell.run("push", str(tmp_path / "none"), str(tmp_path / "dest"))

        assert done.code == 0, done.err
        assert (tmp_path / "dest" / "config.json").read_bytes() == b"{}"
        assert (done.json["files"], done.json["bytes"]) == (1, 2)
        assert str(done.json["artifact"]).startswith("blake3:")
        assert nothing.code == 13

    async def test_a_reader_that_has_enough_is_no_error(self, shell: Shell) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        await shell.node.pull(PullRequest(ref=REF)).__anext__()
        process = await shell.start("ls", stdout=writer)
        os.close(writer)
        done = await ended(process)

        assert done.code in {0, 141}
        assert "Traceback" not in done.err
        assert "BrokenPipe" not in done.err


class TestManners:
    @pytest.mark.parametrize("verb", CLIENT_VERBS)
    async def test_without_an_agent_every_verb_says_where_it_looked(
        self, shell: Shell, verb: str
    ) -> None:
        named = {"pull", "warm", "cancel", "explain", "rm", "pin", "unpin"}
        target = [REF] if verb in named else []
        target += ["--wait-agent", "0s"] if verb in {"pull", "warm"} else []

        done = await shell.run(verb, *target, "--socket", "/nonexistent/agent.sock")

        assert done.code == 33
        assert "/nonexistent/agent.sock" in done.out + done.err
        assert len(done.err.splitlines()) <= 1

    async def test_an_agent_that_was_started_just_now_is_waited_for(self, tmp_path: Path) -> None:
        node = MemoryNode(tmp_path / "views", {REF: FILES})
        path = tmp_path / "agent.sock"
        process = await Shell(node, path).start("pull", REF, "--wait-agent", "30s")
        assert process.stderr is not None
        said = await asyncio.wait_for(process.stderr.readline(), 30)

        async with APIServer(node, path):
            done = await ended(process)
            await node.close()

        assert f"no agent listens on {path} yet, waiting" in said.decode()
        assert done.code == 0, done.err

    async def test_a_socket_that_a_dead_agent_left_is_waited_for_as_well(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "agent.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))

        done = await Shell(MemoryNode(tmp_path / "views", {}), path).run(
            "pull", REF, "--wait-agent", "0.2s"
        )

        assert done.code == 33
        assert "waiting" in done.err.splitlines()[0]
        assert "is gone" in done.err.splitlines()[-1]

    async def test_an_error_is_one_line_with_its_chain(self, shell: Shell) -> None:
        done = await shell.run("pull", "file:///models/none/")

        assert (done.code, done.out) == (13, "")
        assert done.err.splitlines() == [
            "resolving",
            "damselfly pull: there is nothing at file:///models/none/",
        ]
