"""What a power cut leaves: what is in the catalog proper, not in its log."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from damselfly.cache import layout
from damselfly.cache.limits import Limits
from damselfly.cache.store import Store
from damselfly.cache.syncer import Syncer
from damselfly.clock import SystemClock
from damselfly.errors import IntegrityError
from tests.conformance.store import model, pull, write_all
from tests.fakes.peers import until

NEVER = Limits(keep_free_bytes=0, free_again_bytes=0, sync_interval_s=3600)
SOON = Limits(keep_free_bytes=0, free_again_bytes=0, sync_interval_s=0.02)
SAMPLE = model()


def after_a_cut(store: Store, sql: str) -> list[tuple[object, ...]]:
    """Ask the catalog as it is without its log."""
    left = store.path.parent / "left.db"
    shutil.copyfile(store.path / layout.CATALOG, left)
    with closing(sqlite3.connect(left)) as connection:
        try:
            return connection.execute(sql).fetchall()
        except sqlite3.DatabaseError:  # No tables yet, or half of what is being written back.
            return []


def log_bytes(store: Store) -> int:
    return Path(f"{store.path / layout.CATALOG}-wal").stat().st_size


def test_a_pin_and_a_removal_are_durable_when_they_are_answered(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", NEVER, SystemClock()) as store:
        artifact = pull(store, SAMPLE)

        store.pin(artifact)
        pinned = after_a_cut(store, "SELECT pinned_ns IS NOT NULL FROM artifact")
        store.unpin(artifact)
        unpinned = after_a_cut(store, "SELECT pinned_ns IS NOT NULL FROM artifact")
        store.remove(artifact)

        assert (pinned, unpinned) == ([(1,)], [(0,)])
        assert after_a_cut(store, "SELECT COUNT(*) FROM artifact") == [(0,)]


async def test_what_changes_without_a_chunk_is_durable_soon(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", SOON, SystemClock()) as store:
        store.remember("file:///model", "1", SAMPLE.manifest.digest)

        await until(lambda: after_a_cut(store, "SELECT ref FROM ref") == [("file:///model",)])


def test_leases_do_not_grow_the_log_for_ever(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", NEVER, SystemClock()) as store:
        artifact = pull(store, SAMPLE)
        sizes: list[int] = []

        for _ in range(4):
            for _ in range(100):
                store.lease(artifact, "pod")
                store.release(artifact, "pod")
            store.sync()
            sizes.append(log_bytes(store))

        assert sizes[-1] < 1.1 * sizes[0]


def test_what_could_not_be_written_back_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        Store.open(tmp_path / "store", NEVER, SystemClock()) as store,
        store.ingest(SAMPLE.plan, SAMPLE.digests, SAMPLE.everything) as ingest,
    ):
        write_all(ingest, SAMPLE)

        def refuse(syncer: Syncer, file: int) -> bool:
            raise OSError(5, "the disk refuses")

        with monkeypatch.context() as patch:
            patch.setattr(Syncer, "_sync_file", refuse)
            with pytest.raises(IntegrityError):
                store.sync()
        assert store._catalog.unsynced()

        store.sync()

        assert store._catalog.unsynced() == {}
