"""The disk is not as the store left it: damaged, changed by hand, hostile, another boot later."""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from damselfly.cache.disk import open_writable
from damselfly.cache.limits import Limits
from damselfly.cache.report import ArtifactState
from damselfly.cache.store import Store
from damselfly.clock import SystemClock
from damselfly.errors import (
    ArtifactNotFoundError,
    IntegrityError,
    StoreInUseError,
    UnsupportedFormatError,
    UsageError,
)
from damselfly.model.digest import Digest
from tests.conformance.store import Sample, model, noise, pull, sample, served, tree, write_all

LIMITS = Limits(keep_free_bytes=0, free_again_bytes=0, sync_interval_s=3600)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def opened(root: Path) -> Store:
    return Store.open(root, LIMITS, SystemClock())


def path_of(root: Path, of: Sample, number: int) -> Path:
    """Where the inode of a whole file lies."""
    return root / "files" / of.manifest.file_id(number).hex


def environment() -> dict[str, str]:
    """For a process that imports what we do."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def damage(path: Path, offset: int, *, is_silent: bool) -> None:
    """Change a byte; silently, as a disk does, or as a program would."""
    before = path.stat()
    readable = os.open(path, os.O_RDONLY)
    fd = open_writable(readable)  # We need not be root.
    os.close(readable)
    byte = os.pread(fd, 1, offset)
    os.pwrite(fd, bytes([byte[0] ^ 0xFF]), offset)
    os.close(fd)
    later = 0 if is_silent else 1_000_000
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + later))


# --- damage ---


def test_verify_names_what_is_bad_and_the_repair_keeps_the_inode(root: Path) -> None:
    of = model()
    with opened(root) as store:
        artifact = pull(store, of)
        view = store.view(artifact)
        damage(path_of(root, of, 2), 8192 + 5, is_silent=True)
        inode = (view / "weights/a.safetensors").stat().st_ino

        found = store.verify(artifact)

        (bad,) = found.bad
        assert (bad.path, bad.number, bad.expected) == (
            "weights/a.safetensors",
            1,
            of.digests[2],
        )
        assert bad.actual not in {None, bad.expected}
        assert found.degraded == (artifact,)
        assert [info.state for info in store.artifacts()] == [ArtifactState.DEGRADED]
        assert served(store, of.digests[2]) is None
        with pytest.raises(ArtifactNotFoundError, match="'weights/a.safetensors' for one"):
            store.view(artifact)
        with store.ingest(of.plan, of.digests, of.everything) as ingest:
            assert [i for i in range(8) if i not in ingest.have()] == [2]
            write_all(ingest, of)
            ingest.seal(of.manifest)
        assert (view / "weights/a.safetensors").stat().st_ino == inode
        assert (view / "weights/a.safetensors").read_bytes() == of.content("weights/a.safetensors")
        assert store.view(artifact) == view
        assert store.verify().bad == ()


def test_verify_says_how_far_it_is(root: Path) -> None:
    of = model()
    told: list[tuple[int, int]] = []

    with opened(root) as store:
        found = store.verify(pull(store, of), lambda done, total: told.append((done, total)))

    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (of.plan.bytes, of.plan.bytes)
    assert (found.chunk_count, found.file_count, found.bytes) == (8, 4, of.plan.bytes)


def test_a_file_changed_behind_our_back_is_not_served_wrong(root: Path) -> None:
    of = model()
    with opened(root) as store:
        artifact = pull(store, of)
        assert served(store, of.digests[1]) == of.chunks[1]

        damage(path_of(root, of, 2), 3, is_silent=False)

        assert served(store, of.digests[1]) is None
        assert served(store, of.digests[2]) == of.chunks[2]
        with pytest.raises(ArtifactNotFoundError):
            store.view(artifact)


def test_a_file_that_only_looks_different_is_re_read_and_believed(root: Path) -> None:
    of = model()
    with opened(root) as store:
        artifact = pull(store, of)
        store.view(artifact)
        os.utime(path_of(root, of, 2), ns=(1, 1))

        assert tree(store.view(artifact))["weights/a.safetensors"] == of.content(
            "weights/a.safetensors"
        )
        assert served(store, of.digests[1]) == of.chunks[1]
    with opened(root) as store:
        assert store.reconciled.is_clean


@pytest.mark.parametrize("size", [0, 100, 32768 + 50])
def test_a_file_cut_short_or_drawn_out_is_repaired(root: Path, size: int) -> None:
    of = model()
    with opened(root) as store:
        artifact = pull(store, of)
        view = store.view(artifact)
    os.truncate(path_of(root, of, 2), size)

    with opened(root) as store:
        assert store.reconciled.files_suspect == 1
        assert served(store, of.digests[1]) in {None, of.chunks[1]}
        pull(store, of)
        assert store.view(artifact) == view

    assert tree(view)["weights/a.safetensors"] == of.content("weights/a.safetensors")


def test_a_lost_file_is_linked_back_from_a_view(root: Path) -> None:
    of = model()
    with opened(root) as store:
        artifact = pull(store, of)
        store.view(artifact)
    path_of(root, of, 3).unlink()

    with opened(root) as store:
        assert store.reconciled.files_recovered == 1
        assert store.held(artifact).is_full
        assert tree(store.view(artifact)).keys() == {file.path for file in of.plan.files}


def test_a_file_lost_while_the_store_is_open_is_linked_back_too(root: Path) -> None:
    of = model()
    with opened(root) as store:
        artifact = pull(store, of)
        store.view(artifact)
        path_of(root, of, 3).unlink()

        assert store.verify(artifact).bad == ()
        assert path_of(root, of, 3).exists()


def test_a_file_lost_for_good_is_pulled_again_and_the_view_mended(root: Path) -> None:
    of = model()
    with opened(root) as store:
        artifact = pull(store, of)
        view = store.view(artifact)
        (view / "weights/b.safetensors").unlink()
    path_of(root, of, 3).unlink()

    with opened(root) as store:
        assert store.reconciled.files_lost == 1
        assert store.usage().bytes == of.plan.bytes - of.plan.files[3].bytes
        assert [info.state for info in store.artifacts()] == [ArtifactState.DEGRADED]
        pull(store, of)
        assert store.view(artifact) == view
        assert store.usage().bytes == of.plan.bytes

    assert tree(view) == {file.path: of.content(file.path) for file in of.plan.files}


def test_a_lost_file_of_zero_bytes_is_noticed_too(root: Path) -> None:
    of = model()
    with opened(root) as store:
        artifact = pull(store, of)
        path_of(root, of, 1).unlink()

        assert store.verify().degraded == (artifact,)
        pull(store, of)
        assert tree(store.view(artifact))["empty"] == b""


def test_a_view_that_somebody_changed_is_mended_in_place(root: Path) -> None:
    of = model()
    with opened(root) as store:
        artifact = pull(store, of)
        view = store.view(artifact)
        folder = (view / "weights").stat().st_ino
        (view / "weights/a.safetensors").unlink()
        (view / "weights/stranger").mkdir()
        (view / "config.json").unlink()
        (view / "config.json").write_text("lies")
        (view / "empty").unlink()
        (view / "empty").mkdir()

        assert store.view(artifact) == view

    assert tree(view) == {file.path: of.content(file.path) for file in of.plan.files}
    assert (view / "weights").stat().st_ino == folder


# --- hostility ---


def test_planted_links_lead_nowhere(root: Path, tmp_path: Path) -> None:
    of = model()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    with opened(root) as store:
        artifact = pull(store, of)
    shutil.rmtree(root / "tmp")
    shutil.rmtree(root / "views")
    for name in ("tmp", "views"):
        (root / name).symlink_to(outside)
    (root / "files" / ("0" * 64)).symlink_to(outside / "precious")
    (root / "partial" / "7").symlink_to(outside)

    with opened(root) as store:
        (root / "views" / artifact.hex).symlink_to(outside)
        view = store.view(artifact)
        store.remove(artifact)

    assert not view.exists()
    assert tree(outside) == {"precious": b"mine"}
    assert list((root / "files").iterdir()) == []


@pytest.mark.parametrize("plant", ["link", "other inode", "fifo"])
def test_a_partial_file_that_was_replaced_is_not_written_to(
    root: Path, tmp_path: Path, plant: str
) -> None:
    of = model()
    outside = tmp_path / "precious"
    outside.write_bytes(b"mine")
    with opened(root) as store:
        with store.ingest(of.plan, of.digests, frozenset({2})) as ingest:
            ingest.write(1, of.digests[1], of.chunks[1])
        (partial,) = (root / "partial").iterdir()
        partial.unlink()
        if plant == "link":
            partial.symlink_to(outside)
        elif plant == "fifo":
            os.mkfifo(partial)
        else:
            os.link(outside, partial)

        with store.ingest(of.plan, of.digests, frozenset({2})) as ingest:
            assert len(ingest.have()) == 0
            write_all(ingest, of)
            ingest.seal(of.manifest)

        assert outside.read_bytes() == b"mine"
        assert served(store, of.digests[1]) == of.chunks[1]


def test_a_whole_file_that_was_replaced_is_not_shown(root: Path) -> None:
    of = model()
    with opened(root) as store:
        artifact = pull(store, of)
        path = path_of(root, of, 0)
        path.with_name("new").write_bytes(noise(300, 99))
        path.with_name("new").rename(path)  # Not the inode number that has just become free.
    with opened(root) as store:
        assert store.reconciled.files_lost == 1
        assert served(store, of.digests[0]) is None
        with pytest.raises(ArtifactNotFoundError):
            store.view(artifact)


def test_strangers_and_temporaries_are_removed(root: Path) -> None:
    of = model()
    with opened(root) as store:
        artifact = pull(store, of)
        store.view(artifact)
    (root / "files" / "stranger").write_text("x")
    (root / "partial" / "folder").mkdir()
    (root / "partial" / "folder" / "x").write_text("x")
    (root / "tmp" / "half").mkdir()
    (root / "views" / ("0" * 64)).mkdir()
    (root / "views" / artifact.hex / "nobody's").mkdir()
    (root / "leases" / "file").write_text("x")

    with opened(root) as store:
        found = store.reconciled

        assert (found.strangers_removed, found.temporaries_removed, found.views_dropped) == (
            2,
            1,
            2,
        )
        assert store.held(artifact).is_full
    with opened(root) as store:
        assert store.reconciled.is_clean


# --- what may be opened ---


def test_a_store_is_opened_once(root: Path) -> None:
    with opened(root), pytest.raises(StoreInUseError, match=f"process {os.getpid()}"):
        opened(root)

    opened(root).close()


def test_a_store_open_in_another_process_names_it(root: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from damselfly.cache.store import Store\n"
        "from damselfly.cache.limits import Limits\n"
        "from damselfly.clock import SystemClock\n"
        "store = Store.open(Path(sys.argv[1]), Limits(), SystemClock())\n"
        "print('open', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"

        with pytest.raises(StoreInUseError, match=f"process {other.pid}"):
            opened(root)

        other.kill()
    opened(root).close()


@pytest.mark.parametrize(
    ("marker", "told"), [("2\n", "'2'"), ("", "''"), ("x" * 10, "'xxxxxxxxxx'")]
)
def test_another_format_is_refused_and_left_alone(root: Path, marker: str, told: str) -> None:
    opened(root).close()
    (root / "format").write_text(marker)
    (root / "tmp" / "theirs").write_text("x")

    with pytest.raises(UnsupportedFormatError, match=f"format {told}"):
        opened(root)

    assert (root / "tmp" / "theirs").exists()


def test_a_newer_catalog_is_refused(root: Path) -> None:
    opened(root).close()
    with closing(sqlite3.connect(root / "catalog.sqlite")) as connection:
        connection.execute("PRAGMA user_version = 99")

    with pytest.raises(UnsupportedFormatError, match="format 99, made by a newer Damselfly"):
        opened(root)


def test_a_catalog_of_garbage_is_a_named_error_and_leaves_the_files(root: Path) -> None:
    of = model()
    with opened(root) as store:
        pull(store, of)
    (root / "catalog.sqlite").write_bytes(b"garbage" * 1000)

    with pytest.raises(IntegrityError, match=r"catalog\.sqlite"):
        opened(root)

    assert len(list((root / "files").iterdir())) == 4


def test_somebodys_home_is_not_made_a_store(root: Path) -> None:
    (root / "tmp").mkdir(parents=True)
    (root / "tmp" / "thesis.tex").write_text("x")

    with pytest.raises(UsageError, match="is not a store, and not empty: 'tmp' is in it"):
        opened(root)

    assert (root / "tmp" / "thesis.tex").exists()


def test_a_store_on_a_file_is_a_named_error(root: Path) -> None:
    root.write_text("x")

    with pytest.raises(IntegrityError, match="opening the store"):
        opened(root)


def test_modes_do_not_depend_on_the_umask(root: Path) -> None:
    of = model()
    before = os.umask(0o077)
    try:
        with opened(root) as store:
            view = store.view(pull(store, of))
    finally:
        os.umask(before)

    assert {
        stat.S_IMODE(path.stat().st_mode) for path in [root, view, view / "weights", root / "files"]
    } == {0o755}
    assert stat.S_IMODE((view / "config.json").stat().st_mode) == 0o444


NOBODY = 65534

AS_NOBODY = """
import ctypes, os, sys
from pathlib import Path
from tests.integration import test_cache_disk as tests
root = Path(sys.argv[1])
tests.test_a_store_is_opened_once(root.with_name("warm"))  # Imports what nobody may not read.
os.setgroups([]), os.setgid(tests.NOBODY), os.setuid(tests.NOBODY)
ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: /proc/self is ours again, as after an exec.
tests.test_verify_names_what_is_bad_and_the_repair_keeps_the_inode(root)
print(oct(tests.path_of(root, tests.model(), 2).stat().st_mode & 0o777))
"""


def test_who_is_not_root_repairs_a_read_only_file() -> None:
    if os.geteuid():
        pytest.skip("needs root, to become somebody else")
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, NOBODY, NOBODY)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, f"{home}/store"],
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
            check=True,
        )

        assert done.stdout == "0o444\n"


# --- another boot ---


def change_boot(root: Path) -> None:
    with closing(sqlite3.connect(root / "catalog.sqlite")) as connection:
        connection.execute("UPDATE meta SET value = 'another' WHERE key = 'boot_id'")
        connection.commit()


def test_after_a_power_cut_what_was_not_synced_is_re_read_and_not_refetched(root: Path) -> None:
    of = model()
    store = opened(root)
    with store.ingest(of.plan, [None] * 8, of.everything) as ingest:
        write_all(ingest, of, [0, 1, 2])
        store.sync()
        write_all(ingest, of, [3, 4, 5])
    store.abandon()
    # The power cut: chunk 4 never reached the disk. (1 did, and rots; that is for `verify`.)
    (partial,) = (p for p in (root / "partial").iterdir() if p.stat().st_size == 4 * 8192)
    damage(partial, 3 * 8192, is_silent=True)
    damage(partial, 0, is_silent=True)
    change_boot(root)

    with opened(root) as store:
        assert store.reconciled.chunks_rehashed == 3
        assert store.reconciled.chunks_dropped == 1
        with store.ingest(of.plan, [None] * 8, of.everything) as ingest:
            assert list(ingest.have()) == [0, 1, 2, 3, 5]


def test_within_a_boot_nothing_is_re_read(root: Path) -> None:
    of = model()
    store = opened(root)
    with store.ingest(of.plan, of.digests, of.everything) as ingest:
        write_all(ingest, of, [0, 1, 2])
    store.abandon()

    with opened(root) as store:
        assert store.reconciled.chunks_rehashed == 0
        assert store.reconciled.is_clean


def test_what_was_synced_is_durable_without_a_close(root: Path) -> None:
    of = model()
    store = opened(root)
    pull(store, of)
    store.sync()
    store.abandon()
    change_boot(root)

    with opened(root) as store:
        assert store.reconciled.chunks_rehashed == 0
        assert store.held(of.manifest.digest).is_full


def test_a_rename_that_the_power_cut_took_back_is_done_again(root: Path) -> None:
    of = model()
    with opened(root) as store:
        artifact = pull(store, of)
    with closing(sqlite3.connect(root / "catalog.sqlite")) as connection:
        rows = connection.execute("SELECT id, content FROM file WHERE bytes > 0").fetchall()
    for number, content in rows:
        (root / "files" / content.hex()).rename(root / "partial" / str(number))

    with opened(root) as store:
        assert store.reconciled.files_moved == 3
        assert len(tree(store.view(artifact))) == 4


def test_commits_that_the_power_cut_took_back_leave_a_partial_file(root: Path) -> None:
    of = sample({"a": [noise(5000, 1), noise(5000, 2)]})
    with opened(root) as store:
        pull(store, of)
    with closing(sqlite3.connect(root / "catalog.sqlite")) as connection:
        connection.execute("DELETE FROM artifact_file")
        connection.execute("DELETE FROM artifact")
        connection.execute("DELETE FROM chunk WHERE number = 1")
        connection.execute("UPDATE file SET placed = 0, mtime_ns = NULL")
        connection.commit()

    with opened(root) as store:
        assert store.reconciled.files_moved == 1
        with store.ingest(of.plan, of.digests, of.everything) as ingest:
            assert list(ingest.have()) == [0]
            write_all(ingest, of)
            ingest.seal(of.manifest)
        assert tree(store.view(of.manifest.digest)) == {"a": of.content("a")}


def test_the_catalog_names_the_chunk_of_every_digest(root: Path) -> None:
    of = model()
    with opened(root) as store:
        pull(store, of)
    with closing(sqlite3.connect(root / "catalog.sqlite")) as connection:
        rows = connection.execute(
            "SELECT file.content, start, length, digest FROM chunk JOIN file ON file.id = file"
        ).fetchall()

    assert len(rows) == 8
    for content, start, length, digest in rows:
        data = (root / "files" / content.hex()).read_bytes()[start : start + length]
        assert Digest.of(data).raw == digest
