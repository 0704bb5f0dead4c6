"""Kill -9 at any moment, then start: nothing unverified is shown, nothing committed is lost.

Two ways. *Enumerated*: a process that pulls, shows, repairs and removes artifacts is killed before
its first step that touches the disk or the account, then before its second, and so on to the last;
writes are also cut in half. *Random*: a process whose threads write without pause is killed from
outside, again and again over the same store. Either says what it has been told is done, through a
pipe, and that is what the store is held to.

Run as a program, this file is those processes.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pytest

from damselfly.cache.catalog import Catalog
from damselfly.cache.limits import Limits
from damselfly.cache.store import Store
from damselfly.clock import SystemClock
from damselfly.model.digest import Digest
from tests.conformance.store import Sample, noise, pull, sample, served, tree, write_all

LIMITS = Limits(keep_free_bytes=0, free_again_bytes=0, sync_interval_s=3600)
A, B, C, D = (noise(9000 + number, number) for number in range(4))
FIRST = sample({"a": [A, B, C], "dir/b": [D], "empty": []}, "x:first")
SECOND = sample({"a": [A, B, C], "twice/c": [D, A], "twice/d": [D, A]}, "x:second")
BIG = sample({"weights": [noise(1 << 20, 100 + number) for number in range(64)]}, "x:big")

STEPS = ("pwrite", "rename", "link", "unlink", "fchmod", "mkdir", "ftruncate", "chmod", "rmdir")


# --- the processes that are killed ---


def unsynced(fd: object) -> None:
    """What `fsync` is to a process that is going to be killed."""


class Bomb:
    """Kills this process at its n-th step; with `half`, in the middle of it, if it is a write."""

    def __init__(self, at: int, say: Callable[[str], None], *, half: bool) -> None:
        self.left = at
        self.say = say
        self.half = half

    def tick(self, what: str) -> None:
        self.left -= 1
        if self.left == 0 and not self.half:
            self.say(f"step {what}")
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.tick(function.__name__)
            if self.left == 0 and function.__name__ == "pwrite":
                function(args[0], args[1][: len(args[1]) // 2], *args[2:])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    def plant(self) -> None:
        """Count every change to the disk, and every commit on both its sides.

        Syncing is left out: what a kill leaves does not depend on it, and it takes its time.
        """
        for name in ("fsync", "fdatasync"):
            setattr(os, name, unsynced)
        for name in STEPS:
            setattr(os, name, self.wrap(getattr(os, name)))
        keep_chunk, change = Catalog.keep_chunk, Catalog.change

        def kept(catalog: Catalog, *args: Any) -> None:
            self.tick("commit")
            keep_chunk(catalog, *args)
            self.tick("committed")

        @contextmanager
        def changed(catalog: Catalog) -> Iterator[Any]:
            with change(catalog) as what:
                yield what
                self.tick("commit")
            self.tick("committed")

        setattr(Catalog, "keep_chunk", kept)  # noqa: B010 - a method is replaced, on purpose
        setattr(Catalog, "change", changed)  # noqa: B010


def live(root: Path, say: Callable[[str], None]) -> None:
    """What an agent does to its store in a busy week."""
    with Store.open(root, LIMITS, SystemClock()) as store:
        with store.ingest(FIRST.plan, [None] * 4, FIRST.everything) as ingest:
            for index in range(4):
                ingest.write(index, FIRST.digests[index], FIRST.chunks[index])
                say(f"wrote {index}")
            ingest.seal(FIRST.manifest)
            say("sealed first")
        store.view(FIRST.manifest.digest)
        store.view(FIRST.manifest.digest, frozenset({0, 2}))
        store.sync()
        with store.ingest(SECOND.plan, [None] * 7, SECOND.everything) as ingest:
            for index, digest in enumerate(SECOND.digests):
                assert ingest.copy_local(index, digest)
            ingest.seal(SECOND.manifest)
            say("sealed second")
        store.view(SECOND.manifest.digest)
        store.lease(SECOND.manifest.digest, "l", None)
        say("leased second")
        say("removing first")
        store.remove(FIRST.manifest.digest)
        say("removed first")
        say("damaging second")
        break_file(root)
        store.verify()
        with store.ingest(SECOND.plan, SECOND.digests, SECOND.everything) as ingest:
            write_all(ingest, SECOND)
            ingest.seal(SECOND.manifest)
            say("repaired second")
        store.view(SECOND.manifest.digest)
        store.gc(leftover_age_s=0)
    say("closed")


def break_file(root: Path) -> None:
    """Damage a byte of a whole file, as a disk would: nobody is told."""
    path = root / "files" / SECOND.manifest.file_id(1).hex
    before = path.stat()
    with path.open("r+b", buffering=0) as file:
        file.seek(100)
        file.write(b"\0\1\2\3")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def enumerate_kills(parent: Path) -> None:
    """One life per step, each killed one step later, until one lives to its end."""
    at = 1
    half = False
    while True:
        name = f"{at}{'h' if half else ''}"
        child = os.fork()
        if not child:
            said = (parent / f"{name}.said").open("w", buffering=1)

            def say(text: str, said: TextIO = said) -> None:
                print(text, file=said)

            Bomb(at, say, half=half).plant()
            live(parent / name, say)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            (parent / "done").write_text(str(os.WEXITSTATUS(status)))
            return
        was_write = (parent / f"{name}.said").read_text().endswith("step pwrite\n")
        half = was_write and not half
        at += not half


def hammer(root: Path) -> None:
    """Write the missing chunks of BIG from three threads, in any order, and say each."""
    with Store.open(root, LIMITS, SystemClock()) as store:
        ingest = store.ingest(BIG.plan, BIG.digests, BIG.everything)
        missing = [index for index in range(64) if index not in ingest.have()]
        random.shuffle(missing)
        os.write(1, b"have %d\n" % (64 - len(missing)))
        lock = threading.Lock()

        def work() -> None:
            while True:
                with lock:
                    if not missing:
                        return
                    index = missing.pop()
                ingest.write(index, BIG.digests[index], BIG.chunks[index])
                os.write(1, b"wrote %d\n" % index)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ingest.seal(BIG.manifest)
        ingest.close()
        os.write(1, b"sealed\n")


# --- what the store is held to ---


def start(*args: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "tests.integration.test_cache_kill", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)


def check(root: Path, said: list[str]) -> None:
    """Open what a killed process left, and go through it."""
    with Store.open(root, LIMITS, SystemClock()) as store:
        if "damaging second" in said:
            store.verify()
        found = store.reconciled
        assert found.files_lost == 0
        assert found.chunks_dropped == 0
        if "removing first" not in said:  # Afterwards only the second artifact's are kept.
            for index in range(4):
                if f"wrote {index}" in said:
                    assert served(store, FIRST.digests[index]) == FIRST.chunks[index]
        check_artifact(store, FIRST, "removing first" not in said and "sealed first" in said)
        is_damaged = "damaging second" in said and "repaired second" not in said
        check_artifact(store, SECOND, "sealed second" in said and not is_damaged)
        assert [*(root / "tmp").iterdir()] == []
        names = [*(root / "files").iterdir(), *(root / "partial").iterdir()]
        assert len(names) == store.usage().file_count
        for of in (FIRST, SECOND):
            assert tree(store.view(pull(store, of))) == {
                file.path: of.content(file.path) for file in of.plan.files
            }
        if "leased second" in said:
            (info,) = (i for i in store.artifacts() if i.artifact == SECOND.manifest.digest)
            assert info.leases == ("l",)
        assert store.verify().bad == ()
    with Store.open(root, LIMITS, SystemClock()) as store:
        assert store.reconciled.is_clean


def check_artifact(store: Store, of: Sample, must_be_here: bool) -> None:
    """It is here if it was said to be; whether said or not, nothing wrong is shown or served."""
    for digest, chunk in zip(of.digests, of.chunks, strict=True):
        assert (data := served(store, digest)) is None or Digest.of(data) == digest, len(chunk)
    listed = {info.artifact: info for info in store.artifacts()}
    if must_be_here:
        assert listed[of.manifest.digest].state == "complete"
    if of.manifest.digest in listed and listed[of.manifest.digest].state == "complete":
        expected = {file.path: of.content(file.path) for file in of.plan.files}
        assert tree(store.view(of.manifest.digest)) == expected


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """In memory if possible: hundreds of stores that are synced when they close."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="damselfly-") as folder:
        yield Path(folder)


def test_a_stop_at_any_step_loses_nothing_and_shows_nothing_unverified(quick_path: Path) -> None:
    with start("enumerate", str(quick_path)) as process:
        assert process.wait() == 0
    assert (quick_path / "done").read_text() == "0"

    lives = sorted(quick_path.glob("*.said"))
    for record in lives:
        check(quick_path / record.stem, record.read_text().splitlines())

    assert len(lives) > 150


@pytest.mark.parametrize("rng_seed", [1, 2])
def test_a_kill_from_outside_costs_only_the_chunks_in_flight(tmp_path: Path, rng_seed: int) -> None:
    rng = random.Random(rng_seed)
    told: set[int] = set()
    for _ in range(8):
        with start("hammer", str(tmp_path / "store")) as process:
            assert process.stdout is not None
            quota = rng.randrange(1, 12)
            for line in process.stdout:
                word, *rest = line.split()
                if word == b"have":
                    assert int(rest[0]) >= len(told)
                elif word == b"wrote":
                    told.add(int(rest[0]))
                    quota -= 1
                if not quota:
                    process.kill()
                    break
            for line in process.stdout:  # What it said before the signal came.
                if line.startswith(b"wrote") and line.endswith(b"\n"):
                    told.add(int(line.split()[1]))
        with Store.open(tmp_path / "store", LIMITS, SystemClock()) as store:
            assert store.reconciled.files_lost == 0
            with store.ingest(BIG.plan, BIG.digests, BIG.everything) as ingest:
                held = set(ingest.have())
            assert told <= held
            assert len(held - told) <= 3
            for index in held:
                assert served(store, BIG.digests[index]) == BIG.chunks[index]
            told = held

    assert told


if __name__ == "__main__":
    {"enumerate": enumerate_kills, "hammer": hammer}[sys.argv[1]](Path(sys.argv[2]))
