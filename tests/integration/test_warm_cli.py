"""`damselfly warm` as a process: what people and programs see of a warm-up."""

import asyncio
import contextlib
import json
import os
import pty
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from damselfly.agent.api import APIServer
from damselfly.client.answers import Warmed, WarmNode
from damselfly.errors import UsageError
from tests.fakes.memory_node import MemoryNode
from tests.fakes.memory_warmer import MemoryWarmer
from tests.fakes.screen import Screen
from tests.integration.test_api_cli import Shell, ended

REF = "https://host/models/llama/"
ARTIFACT = "blake3:" + "ab" * 32
MIB = 1 << 20


def node(number: int, state: str, share: float = 0.0, **more: object) -> WarmNode:
    return WarmNode(
        agent=f"10.0.0.{number}:7460",
        node=f"gpu-{number:03}",
        state=state,
    ).but(
        phase="fetching",
        bytes_done=int(100 * MIB * share),
        bytes_total=100 * MIB,
        bytes_from_origin=MIB if share else 0,
        artifact=ARTIFACT if state == "done" else None,
        **more,
    )


DONE = tuple(node(number, "done", 1.0) for number in range(3))
HALF = tuple(node(number, "pulling", 0.5) for number in range(3))
DENIED = node(
    2, "failed", error="DeniedError", message="the node takes no orders from peers (--warm-accept)"
)
DEAD = node(1, "unreachable", error="PeerUnavailableError", message="dialling 10.0.0.1:7460")


class Fixture(Shell):
    """A shell against an agent with a warmer of the test."""

    warmer: MemoryWarmer


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Fixture]:
    node = MemoryNode(tmp_path / "views", {})
    socket = tmp_path / "agent.sock"
    shell = Fixture(node, socket)
    shell.warmer = MemoryWarmer(moments=[HALF], outcome=DONE)
    async with APIServer(node, socket, warmer=shell.warmer):
        yield shell
        await node.close()


async def test_all_done_is_one_line_on_stdout(shell: Fixture) -> None:
    shell.warmer.release()

    done = await shell.run("warm", REF, "--all")

    assert done.code == 0
    assert done.out == (
        "blake3:abababababab is on 3 of 3 nodes: 100 MiB each in 12 s (246 KiB/s),"
        " 3.0 MiB from the origin\n"
    )
    assert done.err.startswith("warming 50%, 0 of 3 done, 3 pulling")


async def test_json_has_every_node_with_its_outcome(shell: Fixture) -> None:
    shell.warmer.outcome = (DONE[0], DEAD, DENIED)
    shell.warmer.release()

    done = await shell.run("warm", REF, "--all", "--json", "--quiet")

    assert done.code == 80
    assert done.out.count("\n") == 1
    assert set(done.json) == {"ref", "artifact", "nodes", "seconds"}
    assert set(done.json["nodes"][0]) == {
        *("agent", "node", "state", "phase", "artifact", "bytes_done", "bytes_total"),
        *("bytes_from_origin", "bytes_from_peers", "bytes_from_store"),
        *("waiting_for", "error", "message"),
    }
    warmed = Warmed.parse(done.json, unknown_is_error=True)
    assert [(one.state, one.error) for one in warmed.nodes] == [
        ("done", None),
        ("unreachable", "PeerUnavailableError"),
        ("failed", "DeniedError"),
    ]
    assert done.err == "damselfly warm: 1 of 3 nodes hold it\n"


async def test_nodes_that_do_not_hold_it_are_named_with_their_reason(shell: Fixture) -> None:
    shell.warmer.outcome = (DONE[0], DEAD, DENIED)
    shell.warmer.release()

    done = await shell.run("warm", REF, "--all", "--quiet")

    assert done.code == 80
    assert done.err.splitlines() == [
        "  10.0.0.1:7460 (gpu-001) unreachable: dialling 10.0.0.1:7460",
        "  10.0.0.2:7460 (gpu-002) failed: the node takes no orders from peers (--warm-accept)",
        "damselfly warm: 1 of 3 nodes hold it",
    ]


async def test_none_done_is_the_error_that_all_met(shell: Fixture) -> None:
    shell.warmer.outcome = (DEAD, DEAD.but(agent="10.0.0.9:7460"))
    shell.warmer.release()

    done = await shell.run("warm", REF, "--all", "--quiet")

    assert (done.code, done.out) == (32, "")
    assert done.err.splitlines()[-1] == "damselfly warm: none of 2 nodes hold it"


async def test_what_is_asked_is_what_was_typed(shell: Fixture) -> None:
    shell.warmer.release()

    await shell.run(
        *("warm", REF, "--agents", "a:1, b:2", "--include", "*.json", "--exclude", "x", "--pin")
    )
    await shell.run("warm", REF, "--selector", "gpu=h100", "--ttl", "1.5h")

    listed, labelled = shell.warmer.asked
    assert (listed.agents, listed.include, listed.exclude) == (("a:1", "b:2"), ("*.json",), ("x",))
    assert (listed.pin, listed.ttl_s, listed.everywhere) == (True, None, False)
    assert (labelled.selector, labelled.ttl_s) == ("gpu=h100", 5400.0)


@pytest.mark.parametrize(
    "words",
    [
        ["--all", "--agents", "a:1"],
        ["--pin", "--ttl", "1h"],
        ["--ttl", "soon"],
        ["--timeout", "-1"],
        ["--agents", " , "],
    ],
)
async def test_what_contradicts_itself_is_refused(shell: Fixture, words: list[str]) -> None:
    done = await shell.run("warm", REF, *words)

    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert shell.warmer.asked == []


async def test_what_the_agent_refuses_is_told_in_one_line(shell: Fixture) -> None:
    shell.warmer.moments = ()
    shell.warmer.outcome = UsageError("labels are Kubernetes'")
    shell.warmer.release()

    done = await shell.run("warm", REF, "--selector", "gpu=h100")

    assert (done.code, done.err) == (2, "damselfly warm: labels are Kubernetes'\n")


async def test_a_wait_that_ends_tells_how_it_stands(shell: Fixture) -> None:
    shell.warmer.moments = [(DONE[0], HALF[1], DENIED)]

    done = await shell.run("warm", REF, "--all", "--timeout", "300ms", "--json", "--quiet")

    assert done.code == 81
    assert [one["state"] for one in done.json["nodes"]] == ["done", "pulling", "failed"]
    assert "after 0.3 s, 1 of 3 done, 1 pulling, 1 failed; what runs goes on" in done.err


async def test_a_wait_ends_in_time_though_the_agent_says_nothing(shell: Fixture) -> None:
    shell.warmer.interval_s = 30.0
    shell.warmer.moments = [HALF]

    async with asyncio.timeout(15):
        done = await shell.run("warm", REF, "--all", "--timeout", "300ms", "--json", "--quiet")

    assert done.code == 81
    assert [one["state"] for one in done.json["nodes"]] == ["pulling"] * len(HALF)


async def mute(path: Path) -> AsyncGenerator[asyncio.Event]:
    """An agent that takes every request and never answers; the event is set once one came."""
    asked = asyncio.Event()

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        asked.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(keep, path):
        yield asked


async def test_a_wait_ends_in_time_before_anything_was_said(tmp_path: Path) -> None:
    shell = Shell(MemoryNode(tmp_path / "views", {}), tmp_path / "mute.sock")
    async with asyncio.timeout(15), contextlib.asynccontextmanager(mute)(shell.socket):
        done = await shell.run("warm", REF, "--all", "--timeout", "300ms")

    assert (done.code, done.out) == (81, "")
    assert "said nothing in 0.3 s; the warm-up goes on" in done.err


async def test_interrupting_before_anything_was_said_tells_of_cancel(tmp_path: Path) -> None:
    shell = Shell(MemoryNode(tmp_path / "views", {}), tmp_path / "mute.sock")
    async with asyncio.timeout(15), contextlib.asynccontextmanager(mute)(shell.socket) as asked:
        process = await shell.start("warm", REF, "--all")
        await asked.wait()
        process.send_signal(signal.SIGINT)
        done = await ended(process)

    assert done.code == 130
    assert "before the agent had answered" in done.err
    assert f"`damselfly warm {REF} --all --cancel` ends it" in done.err


async def test_an_agent_that_was_started_just_now_is_waited_for(tmp_path: Path) -> None:
    node, warmer = MemoryNode(tmp_path / "views", {}), MemoryWarmer(moments=[HALF], outcome=DONE)
    warmer.release()
    shell = Shell(node, tmp_path / "agent.sock")
    process = await shell.start("warm", REF, "--all", "--wait-agent", "30s")
    assert process.stderr is not None
    async with asyncio.timeout(60):
        await process.stderr.readuntil(b"waiting for one")

    async with APIServer(node, shell.socket, warmer=warmer):
        done = await ended(process)

    assert done.code == 0, done.err


async def test_without_a_wait_it_ends_when_every_node_has_been_asked(shell: Fixture) -> None:
    waiting = tuple(node(number, "waiting") for number in range(3))
    shell.warmer.moments = [waiting, (HALF[0], waiting[1], HALF[2]), HALF]

    done = await shell.run("warm", REF, "--all", "--no-wait", "--quiet")

    assert done.code == 0
    assert done.out == f"{REF} is on its way to 3 of 3 nodes\n"


async def test_cancelling_tells_where_something_ran(shell: Fixture) -> None:
    shell.warmer.outcome = (node(0, "cancelled"), node(1, "idle"), DENIED)

    done = await shell.run("warm", REF, "--all", "--cancel")

    assert done.code == 80
    assert done.out == f"cancelled the warm-up of {REF} on 1 of 3 nodes\n"
    assert done.err.splitlines()[-1] == "damselfly warm: 2 of 3 nodes have ended it"
    assert [request.everywhere for request in shell.warmer.cancelled] == [True]
    assert shell.warmer.asked == []


async def test_interrupting_says_how_to_watch_and_how_to_cancel(shell: Fixture) -> None:
    process = await shell.start("warm", f"{REF}?key=secret", "--agents", "a:1,b:2")
    assert process.stderr is not None
    async with asyncio.timeout(60):
        await process.stderr.readuntil(b"warming")

    process.send_signal(signal.SIGINT)
    done = await ended(process)

    assert (done.code, done.out) == (130, "")
    assert "the warm-up goes on: the same command joins it" in done.err
    assert "--agents a:1,b:2 --cancel` ends it" in done.err
    assert "secret" not in done.err
    assert "Traceback" not in done.err


async def test_an_agent_that_stops_is_told_apart(tmp_path: Path) -> None:
    node = MemoryNode(tmp_path / "views", {})
    shell = Shell(node, tmp_path / "agent.sock")
    async with APIServer(node, shell.socket, warmer=MemoryWarmer(moments=[HALF], outcome=DONE)):
        process = await shell.start("warm", REF, "--all")
        assert process.stderr is not None
        async with asyncio.timeout(60):
            await process.stderr.readuntil(b"warming")
    done = await ended(process)

    assert done.code == 33


async def test_a_person_sees_the_slowest_of_many_nodes_and_then_the_outcome(
    shell: Fixture,
) -> None:
    shell.warmer.moments = [
        tuple(node(number, "pulling", step / 20 + number / 1000) for number in range(100))
        for step in range(10)
    ]
    shell.warmer.outcome = (*(node(number, "done", 1.0) for number in range(99)), DEAD)
    main, side = pty.openpty()
    shell.environ = {"TERM": "xterm", "NO_COLOR": "1"}
    process = await shell.start("warm", REF, "--all", stderr=side)
    os.close(side)
    seen = bytearray()

    def look(until: bytes) -> None:
        try:
            while until not in seen:
                seen.extend(os.read(main, 4096))
        except OSError:
            pass  # The other side is closed.

    await asyncio.to_thread(look, b"45%")
    during = seen.decode(errors="ignore")
    shell.warmer.release()
    done = await ended(process)
    await asyncio.to_thread(look, b"nothing more")
    os.close(main)

    assert done.code == 80
    assert "is on 99 of 100 nodes" in done.out
    screen = Screen(80, 24)
    screen.write(during[: during.rindex("\r")].replace("\r\n", "\n\r"))
    assert not screen.has_wrapped
    *rows, summary = screen.text.split("\n")
    assert [row.split()[0] for row in rows] == [f"gpu-{number:03}" for number in range(8)]
    assert "0 of 100 done, 100 pulling" in summary
    screen = Screen(80, 24)
    screen.write(seen.decode().replace("\r\n", "\n\r"))
    assert screen.text.split("\n") == [
        "  10.0.0.1:7460 (gpu-001) unreachable: dialling 10.0.0.1:7460",
        "damselfly warm: 99 of 100 nodes hold it",
    ]


async def test_json_on_a_terminal_is_spread_out_and_alone(shell: Fixture) -> None:
    shell.warmer.release()
    main, side = pty.openpty()
    process = await shell.start("warm", REF, "--all", "--json", "--quiet", stdout=side)
    os.close(side)
    seen = bytearray()

    def read() -> None:
        try:
            while block := os.read(main, 4096):
                seen.extend(block)
        except OSError:
            pass

    await asyncio.to_thread(read)
    done = await ended(process)
    os.close(main)

    assert done.code == 0
    assert json.loads(seen)["artifact"] == ARTIFACT
    assert seen.count(b"\n") > 10
