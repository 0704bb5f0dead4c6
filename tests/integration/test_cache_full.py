"""No room: a small file system, a small capacity, and who has to go for whom."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from damselfly.cache.limits import Limits
from damselfly.cache.store import Store
from damselfly.errors import ArtifactNotFoundError, StoreFullError
from damselfly.model.digest import Digest
from tests.conformance.store import (
    HandClock,
    Sample,
    model,
    noise,
    pull,
    sample,
    served,
    tree,
    write_all,
)

MIB = 1 << 20


def big(rng_seed: int, mib: int) -> Sample:
    """A file of so many chunks of one MiB."""
    chunks = [noise(MIB, rng_seed * 1000 + number) for number in range(mib)]
    return sample({f"weights-{rng_seed}": chunks}, f"x:{rng_seed}")


# --- a capacity, and the order of going ---


def opened(path: Path, clock: HandClock | None = None, **limits: float) -> Store:
    given = {"keep_free_bytes": 0, "free_again_bytes": 0, "sync_interval_s": 3600, **limits}
    return Store.open(path / "store", Limits(**given), clock or HandClock())  # type: ignore[arg-type]


def here(store: Store) -> set[Digest]:
    return {info.artifact for info in store.artifacts()}


def test_the_one_used_longest_ago_goes_first(tmp_path: Path) -> None:
    one, two, three, four = (big(number, 3) for number in range(4))
    with opened(tmp_path, capacity_bytes=10 * MIB, high=1.0, low=1.0) as store:
        for of in (one, two, three):
            pull(store, of)
        store.view(one.manifest.digest)

        pull(store, four)

        assert here(store) == {of.manifest.digest for of in (one, three, four)}
        assert store.usage().bytes == 9 * MIB
        assert served(store, two.digests[0]) is None
        assert tree(store.view(one.manifest.digest)) == {"weights-0": one.content("weights-0")}


def test_above_the_high_mark_room_is_made_down_to_the_low_one(tmp_path: Path) -> None:
    samples = [big(number, 1) for number in range(10)]
    with opened(tmp_path, capacity_bytes=10 * MIB, high=0.9, low=0.5) as store:
        for of in samples[:9]:
            pull(store, of)
        assert store.usage().bytes == 9 * MIB

        pull(store, samples[9])

        assert here(store) == {of.manifest.digest for of in samples[5:]}


def test_what_is_leased_pinned_pulled_or_served_stays(tmp_path: Path) -> None:
    leased, pinned, pulled, serving, free, new = (big(number, 2) for number in range(6))
    with opened(tmp_path, capacity_bytes=11 * MIB, high=1.0, low=1.0) as store:
        for of in (leased, pinned, pulled, serving, free):
            pull(store, of)
        store.lease(leased.manifest.digest, "pod-1", 3600.0)
        store.pin(pinned.manifest.digest)
        located = store.locate(serving.digests[1])
        assert located is not None

        with located, store.ingest(pulled.plan, pulled.digests, pulled.everything):
            pull(store, new)
            assert free.manifest.digest not in here(store)
            store.pin(new.manifest.digest)
            with pytest.raises(StoreFullError) as caught:
                pull(store, big(7, 4))

        told = str(caught.value)
        assert "pulling x:7" in told
        assert "needs 4.2 MB" in told
        assert "10.5 MB of its 11.5 MB are taken" in told
        assert "0 B could be evicted" in told
        assert f"{leased.manifest.digest} (2.1 MB) is leased by pod-1" in told
        assert f"{pinned.manifest.digest} (2.1 MB) is pinned" in told
        assert f"{pulled.manifest.digest} (2.1 MB) is being pulled" in told
        assert f"{serving.manifest.digest} (2.1 MB) is being served" in told
        assert len(here(store)) == 5


def test_nobody_goes_in_vain(tmp_path: Path) -> None:
    small, held = big(1, 2), big(2, 7)
    with opened(tmp_path, capacity_bytes=10 * MIB) as store:
        pull(store, small)
        pull(store, held)
        store.pin(held.manifest.digest)

        with pytest.raises(StoreFullError, match=r"2\.1 MB could be evicted"):
            pull(store, big(3, 4))

        assert here(store) == {small.manifest.digest, held.manifest.digest}


def test_an_interrupted_pull_goes_in_its_turn_and_its_resumption_does_not(tmp_path: Path) -> None:
    left, kept, new = big(1, 4), big(2, 4), big(3, 4)
    with opened(tmp_path, capacity_bytes=9 * MIB, high=1.0, low=1.0) as store:
        with store.ingest(left.plan, left.digests, left.everything) as ingest:
            write_all(ingest, left, [0])
        pull(store, kept)
        with store.ingest(left.plan, left.digests, left.everything) as ingest:
            assert list(ingest.have()) == [0]

        pull(store, new)

        assert here(store) == {new.manifest.digest}
        assert served(store, left.digests[0]) == left.chunks[0]


def test_a_lease_made_by_another_program_counts(tmp_path: Path) -> None:
    one, two = big(1, 4), big(2, 4)
    with opened(tmp_path, capacity_bytes=7 * MIB) as store:
        artifact = pull(store, one)
        folder = tmp_path / "store" / "leases" / artifact.hex
        folder.mkdir()
        (folder / "by-hand").write_text('{"expires_ns": null, "format": 1}')
        with pytest.raises(StoreFullError, match="leased by by-hand"):
            pull(store, two)
        (folder / "by-hand").write_text("what is this?")
        with pytest.raises(StoreFullError, match="leased by by-hand"):
            pull(store, two)
        (folder / "by-hand").write_text('{"expires_ns": 1, "format": 1}')

        pull(store, two)

        assert here(store) == {two.manifest.digest}


def test_shared_files_stay_with_who_shares_them(tmp_path: Path) -> None:
    shared = [noise(MIB, 5)]
    one = sample({"shared": shared, "own": [noise(MIB, 6)]}, "x:1")
    two = sample({"shared": shared, "own": [noise(MIB, 7)]}, "x:2")
    with opened(tmp_path, capacity_bytes=4 * MIB, high=1.0, low=1.0) as store:
        pull(store, one)
        pull(store, two)
        assert store.usage().bytes == 3 * MIB

        pull(store, big(3, 2))

        assert one.manifest.digest not in here(store)
        assert len(tree(store.view(two.manifest.digest))) == 2


def test_a_smaller_capacity_refuses_nobody_who_needs_nothing(tmp_path: Path) -> None:
    of = big(1, 4)
    with opened(tmp_path) as store:
        pull(store, of)
        store.pin(of.manifest.digest)

    with opened(tmp_path, capacity_bytes=MIB) as store:
        with store.ingest(of.plan, of.digests, of.everything) as ingest:
            assert ingest.have().is_full
        with pytest.raises(StoreFullError):
            pull(store, model())


def test_a_name_that_has_no_links_left_is_a_copy(tmp_path: Path) -> None:
    of = sample({"a": [b"everybody has this"]})
    with opened(tmp_path) as store:
        artifact = pull(store, of)
        path = tmp_path / "store" / "files" / of.manifest.file_id(0).hex
        (tmp_path / "links").mkdir()
        for number in range(66_000):
            try:
                os.link(path, tmp_path / "links" / str(number))
            except OSError:
                break
        else:
            pytest.skip("this file system has no limit that could be reached")

        view = store.view(artifact)

        assert tree(view) == {"a": b"everybody has this"}
        assert (view / "a").stat().st_ino != path.stat().st_ino
        shutil.rmtree(tmp_path / "links")
        assert store.view(artifact) == view
        assert (view / "a").stat().st_ino == path.stat().st_ino


# --- a small file system ---


@contextmanager
def mounted(folder: Path, *command: str) -> Iterator[Path]:
    if os.geteuid():
        pytest.skip("needs root, to mount a small file system")
    folder.mkdir()
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """16 MiB that can be allocated."""
    with mounted(tmp_path / "small", "mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs") as path:
        yield path


@pytest.fixture
def sparse(tmp_path: Path) -> Iterator[Path]:
    """About 14 MiB that cannot: room is promised, and a write may fail."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("needs mkfs.ext4")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    options = ["-q", "-O", "^extent,^64bit,^has_journal", "-m", "0", str(image)]
    subprocess.run(["mkfs.ext4", *options], check=True, capture_output=True)
    with mounted(tmp_path / "sparse", "mount", "-o", "loop", str(image)) as path:
        yield path


@pytest.mark.root
def test_a_pull_larger_than_the_disk_is_refused_before_it_begins(small: Path) -> None:
    with opened(small) as store:
        artifact = pull(store, big(1, 4))
        store.pin(artifact)

        with pytest.raises(StoreFullError, match=r"needs 16\.8 MB; its file system has"):
            pull(store, big(2, 16))

        assert [*(small / "store" / "partial").iterdir()] == []
        assert store.held(artifact).is_full


@pytest.mark.root
def test_the_space_to_keep_free_is_kept(small: Path) -> None:
    one, two = big(1, 6), big(2, 6)
    with opened(small, keep_free_bytes=6 * MIB, free_again_bytes=8 * MIB) as store:
        pull(store, one)
        pull(store, two)

        assert here(store) == {two.manifest.digest}
        with pytest.raises(StoreFullError, match=r"6\.3 MB stay free"):
            pull(store, big(3, 12))


@pytest.mark.root
def test_a_disk_that_fills_while_a_pull_runs_loses_nothing(small: Path) -> None:
    of = big(1, 6)
    with opened(small) as store:
        with store.ingest(of.plan, of.digests, of.everything) as ingest:
            write_all(ingest, of, [0, 1])
            fill(small / "ballast")
            failed = 0
            for index in range(2, 6):  # Allocated: the chunk has room. The account may not.
                try:
                    ingest.write(index, of.digests[index], of.chunks[index])
                except StoreFullError:
                    failed += 1
            assert failed
            assert {0, 1} <= set(ingest.have())
            (small / "ballast").unlink()
            write_all(ingest, of)
            ingest.seal(of.manifest)

        assert store.verify().bad == ()
        assert tree(store.view(of.manifest.digest)) == {"weights-1": of.content("weights-1")}


@pytest.mark.root
def test_a_write_that_finds_no_room_is_a_named_error_and_can_be_repeated(sparse: Path) -> None:
    of = big(1, 8)
    with opened(sparse) as store:
        with store.ingest(of.plan, of.digests, of.everything) as ingest:
            write_all(ingest, of, [0, 1])
            fill(sparse / "ballast")
            with pytest.raises(StoreFullError, match=r"writing chunk \d of x:1 to the store") as e:
                write_all(ingest, of)
            assert "free" in str(e.value)
            assert {0, 1} <= set(ingest.have())
            (sparse / "ballast").unlink()
            write_all(ingest, of)
            ingest.seal(of.manifest)

        assert store.verify().bad == ()


@pytest.mark.root
def test_room_that_is_only_promised_is_not_promised_twice(sparse: Path) -> None:
    one, two = big(1, 8), big(2, 8)
    with (
        opened(sparse) as store,
        store.ingest(one.plan, one.digests, one.everything),
        pytest.raises(StoreFullError, match="pulling x:2"),
    ):
        store.ingest(two.plan, two.digests, two.everything)


@pytest.mark.root
def test_a_store_on_a_disk_that_is_full_is_a_named_error(small: Path) -> None:
    fill(small / "ballast")

    with pytest.raises(StoreFullError, match=r"opening the store|opening the catalog"):
        opened(small)

    (small / "ballast").unlink()
    with opened(small) as store:
        with pytest.raises(ArtifactNotFoundError):
            store.view(model().manifest.digest)
        pull(store, model())


def fill(path: Path) -> None:
    """Take every byte that is left."""
    with path.open("wb", buffering=0) as file:
        size = MIB
        while size >= 512:
            try:
                if file.write(bytes(size)) < size:
                    size //= 2
            except OSError:
                size //= 2
