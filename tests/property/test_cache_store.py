"""Whatever happens to a store, in whatever order: it serves what it was given, and forgets nothing.

The model knows which artifacts are sealed, which chunks open pulls have written, and what somebody
did to the disk behind our back. A crash is an `abandon`: nothing is flushed, closed or tidied.
"""

import os
import shutil
import stat
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from damselfly.cache.ingest import Ingest
from damselfly.cache.limits import Limits
from damselfly.cache.report import ArtifactState
from damselfly.cache.store import Store
from damselfly.errors import ArtifactNotFoundError, ChunkNotFoundError, LeaseHeldError
from damselfly.model.digest import Digest
from tests.conformance.store import HandClock, Sample, noise, sample, served, tree

A, B, C, D, E = (noise(40 + number, number) for number in range(5))
SAMPLES = [
    sample({"a": [A, B, C], "dir/b": [D], "empty": []}, "x:0"),
    sample({"a": [A, B, C], "c": [D, E], "void": []}, "x:1"),  # Shares files with the first.
    sample({"one": [E, A], "two": [E, A], "dir/three": [B]}, "x:2"),  # The same file twice.
    sample({"a": [A, B, D], "deep/er/e": [C, C, C]}, "x:3"),  # Cut like the first, but not it.
]
ARTIFACTS = [of.manifest.digest for of in SAMPLES]
LIMITS = Limits(keep_free_bytes=0, free_again_bytes=0, open_files_max=2, sync_interval_s=3600)


class Pull:
    """An open pull, and what it must have."""

    def __init__(self, ingest: Ingest, of: int, wanted: frozenset[int]) -> None:
        self.ingest = ingest
        self.of = of
        self.wanted = wanted
        self.written: set[int] = set()

    @property
    def indexes(self) -> list[int]:
        plan = SAMPLES[self.of].plan
        return [index for number in sorted(self.wanted) for index in plan.indexes(number)]


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # Each example syncs often.
        self.root = Path(tempfile.mkdtemp(prefix="damselfly-", dir=memory))
        self.clock = HandClock()
        self.store = Store.open(self.root / "s", LIMITS, self.clock)
        self.pulls: list[Pull] = []
        self.sealed: dict[int, set[int]] = {}  # Artifact to its file numbers.
        self.left: set[bytes] = set()  # Chunks that interrupted pulls left and that must be here.
        self.hurt = False  # Somebody changed a file behind our back, and nobody has looked yet.
        self.inodes: dict[tuple[int, str], int] = {}

    def teardown(self) -> None:
        if hasattr(self, "store"):
            for pull in self.pulls:
                pull.ingest.close()
            self.store.close()
            shutil.rmtree(self.root)

    # --- pulls ---

    @rule(
        of=st.sampled_from(range(len(SAMPLES))),
        is_first_contact=st.booleans(),
        files=st.frozensets(st.integers(0, 2)),
    )
    @precondition(lambda self: len(self.pulls) < 3)
    def open_pull(self, of: int, is_first_contact: bool, files: frozenset[int]) -> None:
        chosen = SAMPLES[of]
        wanted = frozenset(n for n in files if n < len(chosen.plan.files)) or chosen.everything
        digests: list[Digest | None] = [*chosen.digests]
        known = [None] * len(digests) if is_first_contact else digests
        self.pulls.append(Pull(self.store.ingest(chosen.plan, known, wanted), of, wanted))

    @rule(data=st.data())
    @precondition(lambda self: self.pulls)
    def write(self, data: st.DataObject) -> None:
        pull = data.draw(st.sampled_from(self.pulls))
        of = SAMPLES[pull.of]
        if not pull.indexes:
            return
        index = data.draw(st.sampled_from(pull.indexes))
        pull.ingest.write(index, of.digests[index], of.chunks[index])
        pull.written.add(index)

    @rule(data=st.data())
    @precondition(lambda self: self.pulls)
    def copy_whatever_is_here(self, data: st.DataObject) -> None:
        pull = data.draw(st.sampled_from(self.pulls))
        of = SAMPLES[pull.of]
        for index in pull.indexes:
            if pull.ingest.copy_local(index, of.digests[index]):
                pull.written.add(index)

    @rule(data=st.data(), is_first_filled=st.booleans())
    @precondition(lambda self: self.pulls)
    def seal(self, data: st.DataObject, is_first_filled: bool) -> None:
        pull = data.draw(st.sampled_from(self.pulls))
        of = SAMPLES[pull.of]
        if is_first_filled:
            for index in pull.indexes:
                pull.ingest.write(index, of.digests[index], of.chunks[index])
                pull.written.add(index)
        is_whole = all(index in pull.ingest.have() for index in pull.indexes)
        try:
            pull.ingest.seal(of.manifest)
        except ChunkNotFoundError:
            assert not is_whole or self.hurt  # Sealing re-reads what looks different.
            return
        assert is_whole
        self.sealed.setdefault(pull.of, set()).update(pull.wanted)

    @rule(data=st.data())
    @precondition(lambda self: self.pulls)
    def close_pull(self, data: st.DataObject) -> None:
        pull = data.draw(st.sampled_from(self.pulls))
        self.pulls.remove(pull)
        pull.ingest.close()
        self.left |= {SAMPLES[pull.of].chunks[index] for index in pull.written}

    # --- the agent's ends ---

    @rule(is_crash=st.booleans())
    def reopen(self, is_crash: bool) -> None:
        if not is_crash:
            for pull in self.pulls:
                pull.ingest.close()
            self.store.close()
        else:
            self.store.abandon()
        for pull in self.pulls:
            self.left |= {SAMPLES[pull.of].chunks[index] for index in pull.written}
        self.pulls = []
        self.store = Store.open(self.root / "s", LIMITS, self.clock)
        if not self.hurt:
            assert self.store.reconciled.files_lost == 0
            assert self.store.reconciled.files_suspect == 0
            assert self.store.reconciled.views_dropped == 0

    # --- what an operator does ---

    @rule(of=st.sampled_from(range(len(SAMPLES))), is_forced=st.booleans())
    def remove(self, of: int, is_forced: bool) -> None:
        known = {info.artifact: info for info in self.store.artifacts()}
        try:
            self.store.remove(ARTIFACTS[of], force=is_forced)
        except ArtifactNotFoundError:
            assert ARTIFACTS[of] not in known
            return
        except LeaseHeldError:
            info = known[ARTIFACTS[of]]
            assert info.leases or info.is_pinned or self.pulls
            return
        assert not known[ARTIFACTS[of]].leases
        self.sealed.pop(of, None)
        self.left = set()  # Their file may have been this artifact's.

    @rule()
    def collect_garbage(self) -> None:
        self.store.gc(leftover_age_s=0)
        self.left = set()

    @rule(of=st.sampled_from(range(len(SAMPLES))), is_lease=st.booleans(), is_on=st.booleans())
    def protect(self, of: int, is_lease: bool, is_on: bool) -> None:
        artifact = ARTIFACTS[of]
        if is_lease and is_on:
            self.store.lease(artifact, "l", None)
        elif is_lease:
            self.store.release(artifact, "l")
        elif any(info.artifact == artifact for info in self.store.artifacts()):
            (self.store.pin if is_on else self.store.unpin)(artifact)

    @rule()
    def flush(self) -> None:
        self.store.sync()

    @rule(of=st.sampled_from(range(len(SAMPLES))), data=st.data())
    def view(self, of: int, data: st.DataObject) -> None:
        chosen = SAMPLES[of]
        here = self.sealed.get(of, set())
        if not here or self.hurt:
            return
        files = frozenset(data.draw(st.sets(st.sampled_from(sorted(here)), min_size=1)))
        path = self.store.view(ARTIFACTS[of], files)

        expected = [chosen.plan.files[number].path for number in files]
        assert tree(path) == {name: chosen.content(name) for name in expected}
        for name in expected:
            found = (path / name).stat()
            assert stat.S_IMODE(found.st_mode) == 0o444
            before = self.inodes.setdefault((of, name), found.st_ino)
            if os.path.samefile(path / name, path / name) and before != found.st_ino:
                self.inodes[of, name] = found.st_ino  # It had been removed, and pulled again.

    # --- what somebody does behind our back ---

    @rule(data=st.data(), offset=st.integers(0, 200))
    def flip_a_byte(self, data: st.DataObject, offset: int) -> None:
        folder = self.root / "s" / "files"
        files = sorted(path for path in folder.iterdir() if path.stat().st_size)
        if not files:
            return
        path = data.draw(st.sampled_from(files))
        before = path.stat()
        fd = os.open(path, os.O_RDWR)
        try:
            offset %= before.st_size
            byte = os.pread(fd, 1, offset)
            os.pwrite(fd, bytes([byte[0] ^ 1]), offset)
            # As a clock would show it, however coarse: some time has passed.
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
        finally:
            os.close(fd)
        self.hurt = True

    @rule()
    @precondition(lambda self: self.hurt)
    def verify_and_repair(self) -> None:
        hurt = {
            path.stat().st_ino
            for path in (self.root / "s" / "files").iterdir()
            if path.stat().st_size
        }
        self.store.verify()
        degraded = {
            info.artifact for info in self.store.artifacts() if info.state == ArtifactState.DEGRADED
        }
        for of, files in list(self.sealed.items()):
            with self.store.ingest(
                SAMPLES[of].plan, SAMPLES[of].digests, frozenset(files)
            ) as ingest:
                missing = [
                    index
                    for number in files
                    for index in SAMPLES[of].plan.indexes(number)
                    if index not in ingest.have()
                ]
                assert not missing or ARTIFACTS[of] in degraded or self.pulls
                for index in missing:
                    ingest.write(index, SAMPLES[of].digests[index], SAMPLES[of].chunks[index])
                ingest.seal(SAMPLES[of].manifest)
        for pull in self.pulls:
            pull.written = set(pull.ingest.have()) & pull.written
        self.left = set()
        assert self.store.verify().bad == ()
        assert {
            path.stat().st_ino
            for path in (self.root / "s" / "files").iterdir()
            if path.stat().st_size
        } >= hurt
        self.hurt = False

    # --- what holds ---

    @invariant()
    def what_is_served_is_what_it_should_be(self) -> None:
        for of in SAMPLES:
            for digest, chunk in zip(of.digests, of.chunks, strict=True):
                assert served(self.store, digest) in {None, chunk}

    @invariant()
    def nothing_is_forgotten(self) -> None:
        if self.hurt:
            return
        expected = set(self.left)
        for of, files in self.sealed.items():
            plan = SAMPLES[of].plan
            expected |= {
                SAMPLES[of].chunks[index] for number in files for index in plan.indexes(number)
            }
        for pull in self.pulls:
            expected |= {SAMPLES[pull.of].chunks[index] for index in pull.written}
            assert pull.written <= set(pull.ingest.have())
        for chunk in expected:
            assert served(self.store, Digest.of(chunk)) == chunk

    @invariant()
    def the_account_is_the_disk(self) -> None:
        if not hasattr(self, "store"):
            return
        folder = self.root / "s"
        files = [*(folder / "files").iterdir(), *(folder / "partial").iterdir()]
        usage = self.store.usage()
        assert usage.file_count == len(files)
        assert usage.bytes == sum(path.stat().st_size for path in files)
        assert list((folder / "tmp").iterdir()) == []


StoreMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestStoreMachine = StoreMachine.TestCase


def test_the_samples_share_what_makes_it_interesting() -> None:
    first, second, third, fourth = (of.manifest for of in SAMPLES)

    assert first.file_id(0) == second.file_id(0)
    assert third.file_id(1) == third.file_id(2)
    assert isinstance(SAMPLES[3], Sample)
    assert fourth.files[0].path == first.files[0].path
