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
    FAILED_MAX,
    FAILED_S,
    FAILURES_COUNTED,
    SPAN_BYTES,
    SPANS_MIN,
    SPANS_OF_CHUNK,
    WHOLE_BYTES_MAX,
    Failures,
    Possession,
    drawn,
    seed_of,
)
from damselfly.cache.store import Store
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

    def __init__(self, store: Store, possession: Possession, manifest: Manifest) -> None:
        self.store = store
        self.manifest = manifest
        self.asked: list[tuple[str, int]] = []
        self.answers: Callable[[str, int, int], bytes] = lambda _path, _start, _stop: b""
        self._possession = possession

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
        shown = Shown(self.manifest.digest, None)
        plan = self.manifest.plan(str(ref))
        await self._possession.prove(ref, plan, shown, self.read, work=here)
        return self.asked


async def refused(attempt: Awaitable[object], match: str) -> None:
    with pytest.raises(OriginDeniedError, match=match):
        await attempt


@asynccontextmanager
async def hosts_of(tmp_path: Path, clock: HandClock) -> AsyncGenerator[Hosts]:
    """Hosts that name the private model, which a node has."""
    async with fleet(ServedModel({}), tmp_path, 1) as (agent,):
        held = await agent.pull(f"file://{tmp_path}/private/")
        manifest = agent.store.manifest(Digest.parse(held.artifact))
        assert manifest is not None
        yield Hosts(agent.store, Possession(agent.store, clock), manifest)


async def test_after_a_failure_whoever_has_the_bytes_shows_all_of_them_and_no_other_passes(
    tmp_path: Path, private: dict[str, bytes]
) -> None:
    clock = HandClock()
    async with hosts_of(tmp_path, clock) as hosts:

        def honest(path: str, start: int, stop: int) -> bytes:
            return private[path][start:stop]

        def lacking(path: str, start: int, stop: int) -> bytes:
            known = private[path][: 5 * MIB].ljust(len(private[path]), b"x")
            return known[start:stop]

        for number in range(FAILURES_COUNTED + 1):
            await refused(hosts.prove(f"h{number}.evil.test"), r"https://h\d.evil.test/m/ names")
        hosts.answers = lacking
        for number in range(20):
            await refused(hosts.prove(f"half.evil.test:{1000 + number}"), "does not have the bytes")
        hosts.answers = honest
        starts = {start for path, start in await hosts.prove("good.test") if path == "secret.bin"}
        assert starts == {0, 4 * MIB}, "all of it, chunk by chunk"

        clock.now_s += FAILED_S
        asked = await hosts.prove("late.test")
        assert len([path for path, _ in asked if path == "secret.bin"]) == SPANS_MIN


async def test_a_tenant_of_a_host_does_not_keep_another_from_its_model(
    tmp_path: Path, private: dict[str, bytes]
) -> None:
    shared = ServedModel(
        {f"good/{path}": data for path, data in private.items()}
        | {f"evil/{path}": os.urandom(len(data)) for path, data in private.items()}
    )
    async with fleet(shared, tmp_path, 1) as (agent,):
        held = await agent.pull(f"file://{tmp_path}/private/")
        manifest = agent.store.manifest(Digest.parse(held.artifact))
        assert manifest is not None
        for tenant in ("good/", "evil/"):
            shared.files[tenant + MANIFEST_NAME] = manifest.canonical()

        await refused(agent.opened(f"{shared.url}evil/"), "/evil/ names")
        opened = await agent.opened(f"{shared.url}good/", "pod-2")

        assert (Path(opened.path) / "secret.bin").read_bytes() == private["secret.bin"]


async def test_another_manifest_of_the_same_chunks_is_no_other_try(tmp_path: Path) -> None:
    secret = os.urandom(70 * MIB)
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "secret.bin").write_bytes(secret)
    known = secret[: 4 * MIB] + bytes(8 * MIB) + secret[12 * MIB :] + secret

    async with hosts_of(tmp_path, HandClock()) as hosts:
        whole = hosts.manifest.files[0]
        await refused(hosts.prove("evil.test"), "does not have")
        hosts.answers = lambda _path, start, stop: known[start:stop]
        for number in range(10):
            longer = ManifestFile("secret.bin", (*whole.chunks, *whole.chunks[:number]))
            hosts.manifest = Manifest((longer,))
            hosts.store.keep_manifest(hosts.manifest)
            await refused(hosts.prove("evil.test"), "does not have")


async def test_who_falls_silent_is_asked_for_no_fewer_bytes(
    tmp_path: Path, private: dict[str, bytes]
) -> None:
    del private
    seen: list[int] = []

    def silence(path: str, start: int, _stop: int) -> bytes:
        if path == "secret.bin":
            seen.append(start)
        raise OriginUnavailableError("it broke off")

    async with hosts_of(tmp_path, HandClock()) as hosts:
        hosts.answers = silence
        for number in range(20):
            with pytest.raises(OriginUnavailableError):
                await hosts.prove(f"h{number}.evil.test")

    assert len(seen) == 20
    assert set(seen[1:]) == {0}, "whole from its begin: no draw but the first"


def one_chunk(data: bytes) -> ManifestFile:
    return ManifestFile("f", (Chunk(Digest.of(data), 4 * MIB),))


def test_a_flood_of_failures_is_bounded_and_frees_nobody() -> None:
    failures = Failures()
    for _ in range(2):
        failures.note(Digest.of(b"victim"), 0.0)

    for _ in range(FAILURES_COUNTED):
        for number in range(FAILED_MAX + 10):
            failures.note(Digest.of(b"%d" % number), 1.0)

    assert len(failures) == FAILED_MAX
    assert failures.of(one_chunk(b"victim"), 2.0) >= 2
    assert failures.of(one_chunk(b"victim"), 1.0 + FAILED_S) == 0


def test_failures_that_are_long_past_do_not_count() -> None:
    failures = Failures()
    for _ in range(FAILURES_COUNTED):
        failures.note(Digest.of(b"f"), 0.0)

    assert failures.of(one_chunk(b"f"), FAILED_S - 1) == FAILURES_COUNTED
    failures.note(Digest.of(b"f"), FAILED_S)
    assert failures.of(one_chunk(b"f"), FAILED_S) == 1


@pytest.mark.parametrize("failures", range(1, FAILURES_COUNTED + 1))
def test_after_failures_every_chunk_is_looked_into(failures: int) -> None:
    chunks = tuple(Chunk(Digest.of(b"%d" % number), 4 * MIB) for number in range(20))
    file = ManifestFile("f", chunks)

    spans = list(drawn(file, seed_of(KEY, file, 0), failures))

    assert {index for index, _, _ in spans} == set(range(20))
    if failures < FAILURES_COUNTED:
        assert len(spans) == 20 * SPANS_OF_CHUNK[failures]
    else:
        assert sum(stop - start for _, start, stop in spans) == file.bytes
