"""An evil origin names somebody's private model by its digests: the pod must not see it.

The model is in the store of one agent, and a peer away from another. The evil origin serves a
manifest with the private digests, and noise where bytes are asked for; or it knows a part of them.
"""

import os
from pathlib import Path

import pytest

from damselfly.agent.possession import SPAN_BYTES, WHOLE_BYTES_MAX, drawn
from damselfly.errors import ArtifactNotFoundError, OriginDeniedError
from damselfly.model.digest import Digest
from damselfly.model.manifest import MANIFEST_NAME, Chunk, ManifestFile
from tests.integration.agent_fleet import FleetAgent, ServedModel, fleet

MIB = 1 << 20


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

    tries = [tuple(drawn(file)) for _ in range(50)]

    assert len(set(tries)) == len(tries)
    for index, start, stop in (span for spans in tries for span in spans):
        assert 0 <= start < stop <= lengths[index]
        assert stop - start == min(SPAN_BYTES, lengths[index])


def test_a_small_file_is_compared_whole() -> None:
    file = ManifestFile("f", (Chunk(Digest.of(b""), WHOLE_BYTES_MAX - 1), Chunk(Digest.of(b""), 1)))

    assert list(drawn(file)) == [(0, 0, WHOLE_BYTES_MAX - 1), (1, 0, 1)]
