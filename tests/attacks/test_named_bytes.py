"""An evil origin names somebody's private model by its digests: the pod must not see it.

The model is in the store of one agent, and a peer away from another. The evil origin serves a
manifest with the private digests, and noise where bytes are asked for; or it knows a part of them.
"""

import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from damselfly.agent.holdings import Shown
from damselfly.agent.possession import (
    FAILURES_MAX,
    REFUSED_MAX,
    REFUSED_S,
    SPAN_BYTES,
    WHOLE_BYTES_MAX,
    Failures,
    Possession,
    drawn,
    is_known,
    seed_of,
)
from damselfly.errors import ArtifactNotFoundError, OriginDeniedError, OriginUnavailableError
from damselfly.model.digest import Digest
from damselfly.model.manifest import MANIFEST_NAME, Chunk, Manifest, ManifestFile
from damselfly.model.plan import PlannedFile
from damselfly.model.ref import Ref
from tests.conformance.store import HandClock
from tests.integration.agent_fleet import FleetAgent, ServedModel, fleet

MIB = 1 << 20
KEY = bytes(range(32))


@pytest.fixture
def private(tmp_path: Path) -> dict[str, bytes]:
    files = {"secret.bin": os.urandom(6 * MIB + 3), "config.json": b'{"secret": true}'}
    folder = tmp_path / "private"
    folder.mkdir()
    for path, data in files.items():
        (folder / path).write_bytes(data)
    return files


async def leaked(agent: FleetAgent, ref: str, private: dict[str, bytes]) -> bool:
    """Whether a pod gets to see private bytes through this ref, asking again and again."""
    for lease in ("pod-1", "pod-2"):
        try:
            opened = await agent.opened(ref, lease)
        except (ArtifactNotFoundError, OriginDeniedError):
            continue
        if any((Path(opened.path) / path).read_bytes() == private[path] for path in private):
            return True
    return False


@pytest.mark.parametrize("at", [0, 1], ids=["in the store", "at a peer"])
async def test_a_manifest_of_private_digests_opens_nothing(
    tmp_path: Path, private: dict[str, bytes], at: int
) -> None:
    evil = ServedModel({path: os.urandom(len(data)) for path, data in private.items()})
    async with fleet(evil, tmp_path, 2) as agents:
        held = await agents[0].pull(f"file://{tmp_path}/private/")
        manifest = agents[0].store.manifest(Digest.parse(held.artifact))
        assert manifest is not None
        evil.files[MANIFEST_NAME] = manifest.canonical()

        assert not await leaked(agents[at], evil.url, private)
        # What the first try pulled must not be what the second is believed for.
        assert not await leaked(agents[at], f"{evil.url}#{held.artifact}", private)


async def test_whoever_has_the_bytes_opens_them(tmp_path: Path, private: dict[str, bytes]) -> None:
    honest = ServedModel(dict(private))
    async with fleet(honest, tmp_path, 2) as agents:
        held = await agents[0].pull(f"file://{tmp_path}/private/")
        manifest = agents[0].store.manifest(Digest.parse(held.artifact))
        assert manifest is not None
        honest.files[MANIFEST_NAME] = manifest.canonical()

        opened = await agents[1].opened(honest.url)
        asked = honest.bytes_sent
        await agents[1].opened(honest.url, "pod-2")

        assert (Path(opened.path) / "secret.bin").read_bytes() == private["secret.bin"]
        assert honest.bytes_sent == asked, "it has shown them once"
        assert asked < len(private["secret.bin"]) // 2


def test_spans_lie_inside_of_chunks_and_are_not_the_same_twice() -> None:
    lengths = (4 * MIB, 100, 5 * MIB - 1, 7)
    file = ManifestFile("f", tuple(Chunk(Digest.of(b""), length) for length in lengths))

    tries = [tuple(drawn(file, seed_of(KEY, file, turn))) for turn in range(50)]

    assert len(set(tries)) == len(tries)
    assert tuple(drawn(file, seed_of(KEY, file, 7))) == tries[7], "for a while they are"
    assert tuple(drawn(file, seed_of(bytes(32), file, 7))) != tries[7], (
        "on another node they differ"
    )
    for index, start, stop in (span for spans in tries for span in spans):
        assert 0 <= start < stop <= lengths[index]
        assert stop - start == min(SPAN_BYTES, lengths[index])


def test_a_small_file_is_compared_whole() -> None:
    file = ManifestFile("f", (Chunk(Digest.of(b""), WHOLE_BYTES_MAX - 1), Chunk(Digest.of(b""), 1)))

    assert list(drawn(file, KEY)) == [(0, 0, WHOLE_BYTES_MAX - 1), (1, 0, 1)]


# --- luck at speed --------------------------------------------------------------------------------

_T = TypeVar("_T")


async def here(function: "partial[_T]") -> _T:
    return function()


class Hosts:
    """Any number of hosts of one attacker, who watches what each of them is asked."""

    def __init__(self, possession: Possession, manifest: Manifest) -> None:
        self.asked: list[tuple[str, int]] = []
        self.answers: Callable[[str, int, int], bytes] = lambda _path, _start, _stop: b""
        self._possession = possession
        self._manifest = manifest

    @asynccontextmanager
    async def read(self, file: PlannedFile, start: int, stop: int) -> AsyncGenerator[Any]:
        self.asked.append((file.path, start))
        data = self.answers(file.path, start, stop)

        async def readinto(view: memoryview) -> None:
            view[:] = data.ljust(len(view), b"x")

        yield SimpleNamespace(readinto=readinto)

    async def prove(self, host: str) -> list[tuple[str, int]]:
        """Prove by this host; returns what was asked of it."""
        ref = Ref.parse(f"https://{host}/m/")
        self.asked = []
        shown = Shown(self._manifest.digest, None)
        plan = self._manifest.plan(str(ref))
        await self._possession.prove(ref, plan, shown, self.read, work=here)
        return self.asked


async def refused(attempt: Awaitable[object], match: str) -> None:
    with pytest.raises(OriginDeniedError, match=match):
        await attempt


async def test_another_name_of_a_host_is_no_other_try(
    tmp_path: Path, private: dict[str, bytes]
) -> None:
    async with fleet(ServedModel({}), tmp_path, 1) as (agent,):
        held = await agent.pull(f"file://{tmp_path}/private/")
        manifest = agent.store.manifest(Digest.parse(held.artifact))
        assert manifest is not None
        clock = HandClock()
        hosts = Hosts(Possession(agent.store, clock), manifest)
        lie = hosts.answers

        def honest(path: str, start: int, stop: int) -> bytes:
            return private[path][start:stop]

        hosts.answers = honest
        await hosts.prove("proved.test")
        hosts.answers = lie
        for number in range(FAILURES_MAX):
            await refused(hosts.prove(f"h{number}.evil.test"), "does not have the bytes")
        assert hosts.asked

        hosts.answers = honest
        await refused(hosts.prove("another.evil.test"), "no other may show it")
        assert hosts.asked == []
        await hosts.prove("proved.test")

        clock.now_s += REFUSED_S
        await hosts.prove("late.test")
        shown = Shown(manifest.digest, None)
        assert is_known(agent.store, Ref.parse("https://late.test/m/"), shown)
        assert not is_known(agent.store, Ref.parse("https://another.evil.test/m/"), shown)


async def test_who_falls_silent_is_asked_for_the_same_spans_again(
    tmp_path: Path, private: dict[str, bytes]
) -> None:
    del private
    async with fleet(ServedModel({}), tmp_path, 1) as (agent,):
        held = await agent.pull(f"file://{tmp_path}/private/")
        manifest = agent.store.manifest(Digest.parse(held.artifact))
        assert manifest is not None
        seen: list[tuple[str, int]] = []

        def silence(path: str, start: int, _stop: int) -> bytes:
            seen.append((path, start))
            raise OriginUnavailableError("it broke off")

        hosts = Hosts(Possession(agent.store, HandClock()), manifest)
        hosts.answers = silence
        for number in range(20):
            with pytest.raises(OriginUnavailableError):
                await hosts.prove(f"h{number}.evil.test")

        assert len([start for path, start in seen if path == "secret.bin"]) == 20
        assert len({start for path, start in seen if path == "secret.bin"}) == 1


def test_a_flood_of_failures_is_bounded_and_frees_nobody() -> None:
    failures = Failures()
    victim = Digest.of(b"victim")
    for _ in range(FAILURES_MAX):
        failures.note(victim, 0.0)

    for number in range(2 * REFUSED_MAX):
        failures.note(Digest.of(b"%d" % number), 1.0)

    assert len(failures) == REFUSED_MAX
    assert failures.are_too_many(victim, 2.0)
    assert not failures.are_too_many(victim, REFUSED_S)


def test_failures_that_are_long_past_do_not_count() -> None:
    failures = Failures()
    artifact = Digest.of(b"")

    for number in range(10):
        failures.note(artifact, number * REFUSED_S / (FAILURES_MAX - 1))

    assert not failures.are_too_many(artifact, 9 * REFUSED_S / (FAILURES_MAX - 1))
