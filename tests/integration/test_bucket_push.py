"""A push to any bucket: what does not depend on who runs it."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from damselfly.errors import UsageError
from damselfly.model.digest import Digest
from damselfly.model.manifest import MANIFEST_NAME, Manifest
from damselfly.model.plan import Plan
from damselfly.origin import tree
from damselfly.origin.bucket_push import (
    IN_FLIGHT_BYTES,
    MIB,
    PART_BYTES,
    BucketDestination,
    Held,
    Marks,
    SentPart,
)
from damselfly.origin.destination import Parcel
from damselfly.origin.push_journal import JOURNAL_NAME
from tests.integration.push_parcels import ignore, parcel_of


class MemoryWriter:
    """A bucket in memory that keeps what is small, and counts the parts that are on their way."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, Held]] = {}
        self.done: list[str] = []
        self.at_once = 0
        self.most_at_once = 0
        self._marks: dict[str, Marks] = {}

    async def check(self) -> None:
        pass

    async def look(self, key: str) -> Held | None:
        return self.objects[key][1] if key in self.objects else None

    async def read(self, key: str, held: Held) -> bytes:
        return self.objects[key][0]

    async def put(self, key: str, data: bytes, marks: Marks, over: Held | None) -> Held:
        assert await self.look(key) == over
        held = Held(len(data), f"{len(self.done)}", marks.content, marks.sha256)
        self.objects[key] = data, held
        self.done.append(f"put {key}")
        return held

    async def delete(self, key: str) -> None:
        self.objects.pop(key, None)
        self.done.append(f"delete {key}")

    async def begin(self, key: str, marks: Marks) -> str:
        self._marks[key] = marks
        return "session"

    async def parts(self, key: str, session: str) -> Mapping[int, SentPart] | None:
        return None

    def is_same(self, part: SentPart, data: bytes) -> bool:
        return False

    async def send_part(self, key: str, session: str, number: int, data: bytes) -> SentPart:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        for _ in range(20):  # Whoever wants to come in as well, does.
            await asyncio.sleep(0)
        self.at_once -= 1
        return SentPart(number, len(data), str(number))

    async def finish(
        self, key: str, session: str, parts: Sequence[SentPart], over: Held | None
    ) -> None:
        assert [part.number for part in parts] == list(range(1, len(parts) + 1))
        size = sum(part.size for part in parts)
        self.objects[key] = b"", Held(size, "tag", self._marks[key].content)
        self.done.append(f"finish {key}")

    async def abort(self, key: str, session: str) -> None:
        pass

    def shown(self, key: str) -> str:
        return f"memory://{key}"

    async def close(self) -> None:
        pass


def sparse(folder: Path, size: int) -> Parcel:
    """A parcel of a file with nothing in it, whose digests nobody computed."""
    folder.mkdir()
    with (folder / "large.bin").open("wb") as file:
        file.truncate(size)
    files = tree.walk(folder)
    plan = Plan.of("-", [tree.plan_file(file) for file in files])
    manifest = Manifest.seal(plan, [Digest.of(b"")] * plan.chunk_count)
    return Parcel(folder, tuple(files), ("0" * 64,), manifest)


async def pushed(writer: MemoryWriter, parcel: Parcel, part_bytes: int = PART_BYTES) -> None:
    destination = BucketDestination(writer, "m/", part_bytes=part_bytes)
    await destination.push(parcel, await destination.standing(parcel), ignore)
    await destination.close()


async def test_memory_is_that_of_a_few_parts_whatever_the_size(tmp_path: Path) -> None:
    writer = MemoryWriter()

    await pushed(writer, sparse(tmp_path / "model", 20 * PART_BYTES + 1))

    assert writer.most_at_once <= IN_FLIGHT_BYTES // PART_BYTES
    assert writer.objects["m/large.bin"][1].size == 20 * PART_BYTES + 1


async def test_parts_grow_where_there_would_be_too_many(tmp_path: Path) -> None:
    writer, parcel = MemoryWriter(), sparse(tmp_path / "model", 9 * MIB)

    await pushed(writer, parcel, part_bytes=1024 - 100)  # 9,000 of 1,048 bytes would do.

    assert writer.objects["m/large.bin"][1].size == 9 * MIB


async def test_a_signature_that_is_dropped_goes_after_the_old_manifest_and_before_the_new(
    tmp_path: Path,
) -> None:
    writer = MemoryWriter()
    model = tmp_path / "model"
    model.mkdir()
    (model / "a").write_bytes(b"a")
    (model / "model.sig").write_bytes(b"signed")
    await pushed(writer, parcel_of(model))
    destination = BucketDestination(writer, "m/")
    small = [await destination.small("model.sig", most) for most in (6, 5)]
    assert small == [b"signed", b""]
    (model / "model.sig").unlink()
    writer.done.clear()

    await pushed(writer, replace(parcel_of(model), drops=("model.sig",)))

    assert writer.done[1:4] == [
        f"delete m/{MANIFEST_NAME}",
        "delete m/model.sig",
        f"put m/{MANIFEST_NAME}",
    ]
    assert await destination.small("model.sig", 6) is None
    await destination.close()


async def test_the_note_comes_first_and_the_manifest_last(tmp_path: Path) -> None:
    writer = MemoryWriter()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_bytes(b"a")

    await pushed(writer, parcel_of(tmp_path / "model"))

    assert writer.done == [
        f"put m/{JOURNAL_NAME}",
        "put m/a",
        f"put m/{MANIFEST_NAME}",
        f"delete m/{JOURNAL_NAME}",
    ]


async def test_a_kept_object_that_somebody_replaces_meanwhile_gets_no_manifest(
    tmp_path: Path,
) -> None:
    writer = MemoryWriter()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_bytes(b"a")
    await pushed(writer, parcel_of(tmp_path / "model"))
    (tmp_path / "model" / "b").write_bytes(b"b")
    parcel = parcel_of(tmp_path / "model")
    destination = BucketDestination(writer, "m/")
    standing = await destination.standing(parcel)
    writer.objects["m/a"] = b"x", Held(1, "other", "somebody's")
    before = writer.objects[f"m/{MANIFEST_NAME}"]

    with pytest.raises(UsageError, match="another push"):
        await destination.push(parcel, standing, ignore)

    assert writer.objects[f"m/{MANIFEST_NAME}"] == before
    await destination.close()
