"""What a store promises to the rest of the agent, as a suite; and small artifacts to try it with.

A subclass gives the fixture `opened`: a function that opens the store under test, again and again
the same one, at a clock that the test holds.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import pytest
from blake3 import blake3

from damselfly.cache.ingest import Ingest
from damselfly.cache.store import Store
from damselfly.errors import (
    ArtifactNotFoundError,
    ChunkNotFoundError,
    DigestMismatchError,
    LeaseHeldError,
    LocalProtocolError,
    ManifestError,
)
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.plan import Plan, PlannedFile

Opener = Callable[[], AbstractContextManager[Store]]


class HandClock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def monotonic_s(self) -> float:
        """Seconds."""
        return self.now_s

    def wall_ns(self) -> int:
        """The same, as a date. Every look is a nanosecond later, so that no two are alike."""
        self.now_s += 1e-3
        return int(self.now_s * 1e9)


@dataclass(frozen=True)
class Sample:
    """A small artifact, with its bytes."""

    plan: Plan
    chunks: tuple[bytes, ...]

    @cached_property
    def digests(self) -> list[Digest]:
        """By index."""
        return [Digest.of(chunk) for chunk in self.chunks]

    @cached_property
    def manifest(self) -> Manifest:
        """As sealed."""
        return Manifest.seal(self.plan, self.digests)

    @property
    def everything(self) -> frozenset[int]:
        """Every file number."""
        return frozenset(range(len(self.plan.files)))

    def content(self, path: str) -> bytes:
        """What the file at `path` has in it."""
        for number, file in enumerate(self.plan.files):
            if file.path == path:
                return b"".join(self.chunks[index] for index in self.plan.indexes(number))
        raise KeyError(path)


def sample(files: dict[str, Iterable[bytes]], ref: str = "file:///model") -> Sample:
    """Make an artifact of files, each given as its chunks."""
    listed = {path: tuple(chunks) for path, chunks in files.items()}
    plan = Plan.of(
        ref,
        [
            PlannedFile(path, tuple(map(len, chunks)), version=Digest.of(b"".join(chunks)).hex[:8])
            for path, chunks in listed.items()
        ],
    )
    return Sample(plan, tuple(chunk for file in plan.files for chunk in listed[file.path]))


def noise(size: int, rng_seed: int) -> bytes:
    """Bytes like no others, the same for the same seed."""
    return blake3(b"%d" % rng_seed).digest(length=size)


def model(rng_seed: int = 1, ref: str = "file:///model") -> Sample:
    """Two files of several chunks, a small one, and one of nothing, in folders."""
    return sample(
        {
            "config.json": [noise(300, rng_seed)],
            "empty": [],
            "weights/a.safetensors": [noise(8192, rng_seed * 100 + i) for i in range(4)],
            "weights/b.safetensors": [noise(5000 + i, rng_seed * 200 + i) for i in range(3)],
        },
        ref,
    )


def write_all(ingest: Ingest, of: Sample, indexes: Iterable[int] | None = None) -> None:
    """Write chunks of the sample that are wanted and missing."""
    wanted = {index for file in ingest.wanted for index in of.plan.indexes(file)}
    have = ingest.have()
    for index in sorted(wanted) if indexes is None else indexes:
        if index in wanted and index not in have:
            ingest.write(index, of.digests[index], of.chunks[index])


def pull(store: Store, of: Sample, *, files: frozenset[int] | None = None) -> Digest:
    """Pull all of it (or those files), and say what it is called."""
    wanted = of.everything if files is None else files
    with store.ingest(of.plan, of.digests, wanted) as ingest:
        write_all(ingest, of)
        ingest.seal(of.manifest)
    return of.manifest.digest


def served(store: Store, digest: Digest) -> bytes | None:
    """What a peer would be given for a digest."""
    located = store.locate(digest)
    if located is None:
        return None
    with located:
        return os.pread(located.fd, located.length, located.offset)


def tree(root: os.PathLike[str]) -> dict[str, bytes]:
    """Every file under a directory, by its path in it."""
    found: dict[str, bytes] = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, root)] = file.read()
    return found


class StoreConformance:
    """The promises; see the module for the fixture."""

    def test_what_was_pulled_can_be_read_served_and_found_again(self, opened: Opener) -> None:
        of = model()
        expected = {file.path: of.content(file.path) for file in of.plan.files}

        with opened() as store:
            artifact = pull(store, of)
            seen = tree(store.view(artifact))

        assert seen == expected
        with opened() as store:
            assert tree(store.view(artifact)) == expected
            assert [served(store, digest) for digest in of.digests] == list(of.chunks)
            assert store.manifest(artifact) == of.manifest
            assert store.held(artifact).is_full

    def test_a_chunk_is_served_as_soon_as_it_is_written(self, opened: Opener) -> None:
        of = model()

        with opened() as store, store.ingest(of.plan, [None] * 8, of.everything) as ingest:
            ingest.write(2, of.digests[2], of.chunks[2])

            assert served(store, of.digests[2]) == of.chunks[2]
            assert served(store, of.digests[3]) is None
            assert list(ingest.have()) == [2]

    def test_nothing_is_shown_before_every_chunk_is_here(self, opened: Opener) -> None:
        of = model()

        with opened() as store, store.ingest(of.plan, of.digests, of.everything) as ingest:
            write_all(ingest, of, range(7))
            with pytest.raises(ChunkNotFoundError, match=r"b\.safetensors lacks 1 of 3"):
                ingest.seal(of.manifest)
            with pytest.raises(ArtifactNotFoundError):
                store.view(of.manifest.digest)

            assert store.artifacts() == []

    def test_an_interrupted_pull_goes_on_where_it_was(self, opened: Opener) -> None:
        of = model()
        with opened() as store, store.ingest(of.plan, of.digests, of.everything) as ingest:
            write_all(ingest, of, [0, 1, 5])

        with opened() as store, store.ingest(of.plan, of.digests, of.everything) as ingest:
            assert list(ingest.have()) == [0, 1, 5]

    def test_first_contact_goes_on_with_the_digests_it_learned(self, opened: Opener) -> None:
        of = model()
        with opened() as store, store.ingest(of.plan, [None] * 8, of.everything) as ingest:
            write_all(ingest, of, [0, 4, 6])

        with opened() as store, store.ingest(of.plan, [None] * 8, of.everything) as ingest:
            assert list(ingest.have()) == [0, 4, 6]
            assert [
                index for index, digest in enumerate(ingest.digests()) if digest is not None
            ] == [0, 4, 6]
            write_all(ingest, of)
            ingest.seal(of.manifest)
            assert tree(store.view(of.manifest.digest))["config.json"] == of.chunks[0]

    def test_a_sealed_pull_takes_over_what_first_contact_left(self, opened: Opener) -> None:
        of = model()
        with opened() as store, store.ingest(of.plan, [None] * 8, of.everything) as ingest:
            write_all(ingest, of, [0, 1, 2, 7])
        sealed = of.manifest.plan("https://elsewhere/")
        assert sealed.id != of.plan.id

        with opened() as store, store.ingest(sealed, of.digests, of.everything) as ingest:
            assert list(ingest.have()) == [0, 1, 2, 7]
            assert store.usage().bytes == of.plan.bytes

    def test_the_old_plan_has_no_claim_on_a_file_that_was_taken_over(self, opened: Opener) -> None:
        of = model()
        with opened() as store, store.ingest(of.plan, [None] * 8, of.everything) as ingest:
            write_all(ingest, of, [1])
        with opened() as store:
            with store.ingest(of.manifest.plan("x:"), of.digests, of.everything) as ingest:
                write_all(ingest, of)
                ingest.seal(of.manifest)

            # Chunk 1 agreed; nothing says that the rest of the file at the old plan's origin does.
            with store.ingest(of.plan, [None] * 8, of.everything) as ingest:
                assert list(ingest.have()) == []

    def test_a_chunk_that_contradicts_the_manifest_is_pulled_again(self, opened: Opener) -> None:
        of = model()
        lie = noise(8192, 666)
        with opened() as store, store.ingest(of.plan, [None] * 8, of.everything) as ingest:
            write_all(ingest, of, [0, 1, 3, 4, 5, 6, 7])
            ingest.write(2, Digest.of(lie), lie)
            with pytest.raises(ManifestError, match="chunk 1 of weights/a"):
                ingest.seal(of.manifest)

        with opened() as store, store.ingest(of.plan, of.digests, of.everything) as ingest:
            assert 2 not in ingest.have()
            assert len(ingest.have()) == 7
            write_all(ingest, of)
            ingest.seal(of.manifest)
            assert tree(store.view(of.manifest.digest)).keys() == {f.path for f in of.plan.files}

    def test_a_held_chunk_is_not_overwritten_by_another(self, opened: Opener) -> None:
        of = model()
        other = noise(8192, 5)

        with opened() as store, store.ingest(of.plan, [None] * 8, of.everything) as ingest:
            ingest.write(1, of.digests[1], of.chunks[1])
            ingest.write(1, of.digests[1], of.chunks[1])
            with pytest.raises(DigestMismatchError, match="second source of chunk 1"):
                ingest.write(1, Digest.of(other), other)

            assert served(store, of.digests[1]) == of.chunks[1]

    def test_a_closed_pull_takes_nothing_more(self, opened: Opener) -> None:
        of = model()

        with opened() as store:
            ingest = store.ingest(of.plan, of.digests, of.everything)
            ingest.close()
            ingest.close()

            with pytest.raises(LocalProtocolError, match="is closed"):
                ingest.write(0, of.digests[0], of.chunks[0])

    def test_a_chunk_that_is_elsewhere_in_the_store_is_copied(self, opened: Opener) -> None:
        base = model(1)
        tuned = sample(
            {"weights": [noise(100, 9), base.chunks[2], noise(4096, 8), base.chunks[7]]}, "x:"
        )
        with opened() as store:
            pull(store, base)

            with store.ingest(tuned.plan, tuned.digests, tuned.everything) as ingest:
                copied = [
                    index
                    for index, digest in enumerate(tuned.digests)
                    if ingest.copy_local(index, digest)
                ]
                assert copied == [1, 3]
                write_all(ingest, tuned)
                ingest.seal(tuned.manifest)

            assert tree(store.view(tuned.manifest.digest)) == {"weights": tuned.content("weights")}

    def test_artifacts_share_the_inodes_of_equal_files(self, opened: Opener) -> None:
        one = sample({"a": [b"x" * 50], "b": [b"x" * 50], "empty": [], "void": []}, "x:1")
        two = sample({"c": [b"x" * 50], "nothing": []}, "x:2")

        with opened() as store:
            first, second = store.view(pull(store, one)), store.view(pull(store, two))

            inodes = {
                (view / name).stat().st_ino
                for view, name in [(first, "a"), (first, "b"), (second, "c")]
            }
            empties = {
                (view / name).stat().st_ino
                for view, name in [(first, "empty"), (first, "void"), (second, "nothing")]
            }
            assert len(inodes) == len(empties) == 1
            assert store.usage().bytes == 50

    def test_equal_files_of_a_first_contact_become_one(self, opened: Opener) -> None:
        of = sample({"a": [b"x" * 50, b"y" * 9], "b": [b"x" * 50, b"y" * 9]})

        with opened() as store:
            with store.ingest(of.plan, [None] * 4, of.everything) as ingest:
                write_all(ingest, of)
                assert store.usage().bytes == 118
                ingest.seal(of.manifest)
                assert len(ingest.have()) == 4
            view = store.view(of.manifest.digest)

            assert (view / "a").stat().st_ino == (view / "b").stat().st_ino
            assert store.usage().bytes == 59

    def test_a_selection_has_a_view_of_its_own_and_can_grow(self, opened: Opener) -> None:
        of = model()
        few = frozenset({0, 3})

        with opened() as store:
            artifact = pull(store, of, files=few)
            assert tree(store.view(artifact, few)).keys() == {
                "config.json",
                "weights/b.safetensors",
            }
            with pytest.raises(ArtifactNotFoundError, match="2 of 4 files"):
                store.view(artifact)
            assert [info.state for info in store.artifacts()] == ["partial"]

            pull(store, of)

            assert len(tree(store.view(artifact))) == 4
            assert [info.state for info in store.artifacts()] == ["complete"]
            assert len(tree(store.view(artifact, few))) == 2

    def test_an_artifact_whose_files_came_with_others_can_be_shown(self, opened: Opener) -> None:
        big = model()
        small = sample({"c.json": [big.chunks[0]]}, "x:")

        with opened() as store:
            artifact = pull(store, big)
            store.keep_manifest(small.manifest)
            view = store.view(small.manifest.digest)
            store.remove(artifact)

            assert tree(view) == {"c.json": big.chunks[0]}
            assert store.usage().bytes == 300

    def test_a_ref_is_remembered_by_revision_and_by_when(self, opened: Opener) -> None:
        one, two = model(1).manifest, model(2).manifest
        with opened() as store:
            store.remember("hf://x/y", "r1", one.digest)
            store.remember("hf://x/y", "r2", two.digest)

        with opened() as store:
            assert store.artifact_of("hf://x/y", "r1") == one.digest
            assert store.artifact_of("hf://x/y") == two.digest
            assert store.artifact_of("hf://x/y", "r3") is None
            assert store.artifact_of("hf://x/z") is None

    def test_a_leased_artifact_stays_and_a_pinned_one_needs_force(self, opened: Opener) -> None:
        of = model()

        with opened() as store:
            artifact = pull(store, of)
            store.lease(artifact, "csi-1", None)
            store.pin(artifact)
            with pytest.raises(LeaseHeldError, match="leased by csi-1"):
                store.remove(artifact, force=True)
            assert store.release(artifact, "csi-1")
            assert not store.release(artifact, "csi-1")
            with pytest.raises(LeaseHeldError, match="is pinned"):
                store.remove(artifact)
            removed = store.remove(artifact, force=True)

            assert removed.bytes == of.plan.bytes
            assert store.artifacts() == []
            assert store.usage().bytes == 0
            assert store.manifest(artifact) is None
            with pytest.raises(ArtifactNotFoundError):
                store.view(artifact)

    def test_a_lease_ends_by_itself(self, opened: Opener, clock: HandClock) -> None:
        of = model()

        with opened() as store:
            artifact = pull(store, of)
            store.lease(artifact, "warm-1", 60.0)
            with pytest.raises(LeaseHeldError):
                store.remove(artifact)
            clock.now_s += 61

            store.remove(artifact)

    def test_what_is_being_served_stays_readable_when_it_is_removed(self, opened: Opener) -> None:
        of = model()

        with opened() as store:
            artifact = pull(store, of)
            located = store.locate(of.digests[3])
            assert located is not None
            store.remove(artifact)

            with located:
                assert os.pread(located.fd, located.length, located.offset) == of.chunks[3]
            assert store.locate(of.digests[3]) is None

    def test_what_is_being_pulled_is_not_removed(self, opened: Opener) -> None:
        of = model()

        with opened() as store:
            artifact = pull(store, of)
            with (
                store.ingest(of.plan, of.digests, of.everything),
                pytest.raises(LeaseHeldError, match="being pulled"),
            ):
                store.remove(artifact)

    def test_two_pulls_of_the_same_files_work_together(self, opened: Opener) -> None:
        of = model()

        with (
            opened() as store,
            store.ingest(of.plan, of.digests, of.everything) as one,
            store.ingest(of.plan, of.digests, of.everything) as two,
        ):
            write_all(one, of, [0, 1, 2])
            write_all(two, of, [3, 4, 5, 6, 7])
            one.seal(of.manifest)
            two.seal(of.manifest)

            assert one.have().is_full
            assert two.have().is_full
            assert store.usage().bytes == of.plan.bytes

    def test_a_pull_that_never_wrote_leaves_nothing(self, opened: Opener) -> None:
        of = model()

        with opened() as store:
            store.ingest(of.plan, of.digests, of.everything).close()

            assert store.usage().bytes == 0
            assert store.usage().file_count == 0

    def test_garbage_is_what_nobody_has_touched_for_a_while(
        self, opened: Opener, clock: HandClock
    ) -> None:
        of, kept = model(1), model(2)

        with opened() as store:
            with store.ingest(of.plan, [None] * 8, of.everything) as ingest:
                ingest.write(1, of.digests[1], of.chunks[1])
            pull(store, kept)
            store.keep_manifest(model(3).manifest)
            assert store.gc().file_count == 0
            clock.now_s += 8 * 86_400

            removed = store.gc()

            assert removed.bytes == 4 * 8192
            assert removed.artifacts == (model(3).manifest.digest,)
            assert store.locate(of.digests[1]) is None
            assert store.held(kept.manifest.digest).is_full
