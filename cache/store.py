"""The store: one directory on a node's disk, opened by one agent, used by all its threads.

    pull ──> ingest() ──> write(), copy_local() ... seal()        chunks in, an artifact out
    peer ──> locate(digest)                                       a descriptor and an offset
    pod ───> view(artifact)                                       a tree of hard links
    operator: pin, lease, remove, gc, verify, artifacts, usage

`Store.open` takes the lock, reconciles the account with the disk, and says in `reconciled` what it
had to do. Everything is synchronous and may block on the disk: call it from threads. `locate` and
`Ingest.write` take microseconds beside their disk work and never wait for the slow operations.

What is promised: a chunk is handed out only if it verified, and was written after that; what
`Ingest.write` returned from is never lost to kill -9; a view shows whole files only. What is not:
bytes that decay on disk unseen (that is what `verify` is for, and the peer's own check).
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from damselfly.cache import disk, layout
from damselfly.cache.admission import Admission
from damselfly.cache.catalog import ArtifactRow, Catalog, FileRow, SignatureRow
from damselfly.cache.directory import Directory
from damselfly.cache.files import Files, Located
from damselfly.cache.ingest import Ingest
from damselfly.cache.lease import Leases
from damselfly.cache.limits import Limits
from damselfly.cache.lock import StoreLock, check_format
from damselfly.cache.proofs import Proofs
from damselfly.cache.reconcile import Reconciliation
from damselfly.cache.report import (
    ArtifactInfo,
    ArtifactState,
    BadChunk,
    Reconciled,
    Removed,
    RoomFor,
    Usage,
    Verdict,
    Verified,
)
from damselfly.cache.room import RoomKeeper
from damselfly.cache.scrub import Scrub
from damselfly.cache.sealing import Sealing
from damselfly.cache.syncer import Syncer
from damselfly.cache.tree import Tree, hub_tree, plain_tree
from damselfly.cache.views import Views
from damselfly.clock import Clock
from damselfly.errors import ArtifactNotFoundError, IntegrityError, LeaseHeldError
from damselfly.model.bitmap import Bitmap
from damselfly.model.digest import Digest
from damselfly.model.hub import HubName
from damselfly.model.manifest import Chunk, Manifest, ManifestFile
from damselfly.model.plan import Plan, PlannedFile

__all__ = ["Ingest", "Located", "Store"]

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
_S = 1_000_000_000


class Store:
    """See the module. Any thread may call anything; `close()` ends it."""

    def __init__(
        self,
        root: Directory,
        folders: dict[str, Directory],
        *,
        lock: StoreLock,
        catalog: Catalog,
        limits: Limits,
        clock: Clock,
    ) -> None:
        self.path = Path(root.path)
        self.limits = limits
        self.reconciled = Reconciled()
        self._root = root
        self._folders = folders
        self._lock = lock
        self._clock = clock
        self._catalog = catalog
        tmp = folders[layout.TMP]
        self._files = Files(folders[layout.PARTIAL], folders[layout.FILES], catalog, limits)
        self._views = Views(folders[layout.VIEWS], tmp, self._files, catalog)
        self._leases = Leases(folders[layout.LEASES])
        self.proofs = Proofs(root, catalog)
        self._scrub = Scrub(self._files, self._views)
        self._syncer = Syncer(self._files, limits)
        self._room = RoomKeeper(
            root,
            catalog=catalog,
            files=self._files,
            views=self._views,
            leases=self._leases,
            limits=limits,
            clock=clock,
        )
        self._admission = Admission(
            catalog=catalog, files=self._files, scrub=self._scrub, room=self._room, clock=clock
        )
        self._sealing = Sealing(
            catalog=catalog,
            files=self._files,
            scrub=self._scrub,
            room=self._room,
            syncer=self._syncer,
            clock=clock,
        )
        self._manifests: OrderedDict[Digest, Manifest] = OrderedDict()
        self._manifests_lock = threading.Lock()

    # --- opening and closing ---

    @classmethod
    def open(cls, root: Path, limits: Limits, clock: Clock) -> Self:
        """Open the store in `root`, made if it is missing, and reconcile it.

        Raises:
            StoreInUseError: another agent has it open.
            UnsupportedFormatError: a newer Damselfly made it.
            UsageError: it is not a store, and not empty; or we may not write there.
            StoreFullError: no room even for the account.
            IntegrityError: the account cannot be read.
        """
        with disk.disk_errors(f"opening the store {root}"):
            root = root.absolute()
            if not root.exists():
                root.mkdir(parents=True)
                root.chmod(0o755)
            folder = Directory.open(str(root))
            opened = [folder]
            lock: StoreLock | None = None
            catalog: Catalog | None = None
            try:
                lock = StoreLock(folder)
                check_format(folder)
                folders = {name: folder.make_folder(name) for name in layout.FOLDERS}
                opened += folders.values()
                catalog = Catalog(f"{root}/{layout.CATALOG}")
                store = cls(folder, folders, lock=lock, catalog=catalog, limits=limits, clock=clock)
                store._start()
            except BaseException:
                if catalog is not None:
                    catalog.close()
                if lock is not None:
                    lock.release()
                for one in opened:
                    one.close()
                raise
            return store

    def _start(self) -> None:
        self.reconciled = Reconciliation(
            catalog=self._catalog,
            files=self._files,
            views=self._views,
            leases=self._leases,
            tmp=self._folders[layout.TMP],
        ).run(disk.boot_id(), self._clock.wall_ns())
        with self._catalog.change() as change:
            change.drop_stray_wholes()
        self._syncer.start(self._catalog.unsynced())

    def close(self) -> None:
        """Make everything durable and let go; pulls and readers should have ended."""
        self._end(flush=True)

    def abandon(self) -> None:
        """Let go as kill -9 would, making nothing durable: for tests of what that costs."""
        self._end(flush=False)

    def _end(self, *, flush: bool) -> None:
        try:
            self._syncer.stop(flush=flush)
        finally:
            self._files.close()
            self._catalog.close()
            self._lock.release()
            for folder in [*self._folders.values(), self._root]:
                folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Store {self.path}>"

    def sync(self) -> None:
        """Make durable now what a power cut could still take; a thread does it by itself."""
        self._syncer.flush()

    # --- chunks in ---

    def ingest(
        self, plan: Plan, digests: Sequence[Digest | None], wanted: frozenset[int]
    ) -> Ingest:
        """Begin, or go on with, a pull of the files `wanted` (numbers) of a plan.

        `digests` are those of the plan's chunks as far as they are known. Room is reserved for all
        that is missing, and artifacts are evicted for it if need be. What an earlier pull left of
        the same files is taken up; so is the work of pulls that are going on.

        Raises:
            StoreFullError: it says what is needed, what is free, and what holds the rest.
            IntegrityError: the disk refuses.
        """
        assert len(digests) == plan.chunk_count, "a digest or None for every chunk"
        assert all(0 <= number < len(plan.files) for number in wanted)
        fillings = self._admission.admit(plan, digests, wanted)
        return Ingest(
            plan,
            digests,
            fillings,
            files=self._files,
            admission=self._admission,
            sealing=self._sealing,
            room=self._room,
            syncer=self._syncer,
        )

    # --- chunks out ---

    def locate(self, digest: Digest) -> Located | None:
        """Find a chunk to serve, in a whole or a partial file. Close what you are given.

        Raises:
            IntegrityError: the disk refuses.
        """
        with disk.disk_errors(f"looking for chunk {digest}"):
            return self._files.locate(digest)

    def held(self, artifact: Digest) -> Bitmap:
        """Which of an artifact's chunks are here, whichever pull brought them.

        Raises:
            ArtifactNotFoundError: its manifest is not kept here.
        """
        manifest = self._known(artifact)
        bits = 0
        first = 0
        for number, file in enumerate(manifest.files):
            row = self._catalog.file_of_content(manifest.file_id(number))
            if row is not None and row.held == row.chunk_count:
                bits |= ((1 << row.chunk_count) - 1) << first
            elif row is not None:
                for chunk in self._catalog.chunks(row.id):
                    bits |= 1 << (first + chunk.number)
            first += len(file.chunks)
        return Bitmap(first, bits)

    def view(
        self, artifact: Digest, files: frozenset[int] | None = None, hub: HubName | None = None
    ) -> Path:
        """The read-only tree of an artifact's files, or of those numbers: every one of them whole.

        With `hub` it is the tree that the hub's client keeps, under that name (`tree.py`). Each
        file's looks are compared with the account first; one that differs is re-read.

        Raises:
            ArtifactNotFoundError: not here, or not all of what was asked.
            IntegrityError: the disk refuses, or somebody keeps changing the files.
        """
        manifest = self._known(artifact)
        numbers = frozenset(range(len(manifest.files))) if files is None else files
        assert all(0 <= number < len(manifest.files) for number in numbers)
        is_all = len(numbers) == len(manifest.files)
        name = layout.view_name(None if is_all else numbers, hub)
        with disk.disk_errors(f"making a view of {artifact}"):
            for _ in range(_ATTEMPTS):
                with self._room.lock:
                    rows = self._whole_files(artifact, manifest, numbers)
                    doubtful = [row for row in rows.values() if self._files.is_doubtful(row)]
                    if not doubtful:
                        files_by_path = [(manifest.files[n].path, row) for n, row in rows.items()]
                        tree = hub_tree(files_by_path, hub) if hub else plain_tree(files_by_path)
                        return self._show(artifact, manifest, name, rows, tree)
                for row in {row.id: row for row in doubtful}.values():
                    self._scrub.check(row)
        raise IntegrityError(f"files of {artifact} change while they are re-read")

    def _show(
        self,
        artifact: Digest,
        manifest: Manifest,
        name: str,
        rows: dict[int, FileRow],
        tree: Tree,
    ) -> Path:
        self._views.ensure(artifact, name, tree)
        owner = self._artifact(artifact)
        bits = Bitmap.of(len(manifest.files), rows).to_bytes()
        with self._catalog.change() as change:
            change.add_view(owner.id, name, bits)
            change.touch_artifact(artifact, self._clock.wall_ns())
        return self.path / layout.VIEWS / artifact.hex / name

    def _whole_files(
        self, artifact: Digest, manifest: Manifest, numbers: frozenset[int]
    ) -> dict[int, FileRow]:
        owner = self._artifact(artifact)
        pulled = self._catalog.artifact_files(owner.id)
        found: dict[int, FileRow] = {}
        missing: list[str] = []
        for number in sorted(numbers):
            row = pulled.get(number) or self._catalog.file_of_content(manifest.file_id(number))
            if row is None or not row.is_whole:
                missing.append(manifest.files[number].path)
            else:
                found[number] = row
        if missing:
            raise ArtifactNotFoundError(
                f"{len(missing)} of {len(numbers)} files of {artifact} are not whole in this store,"
                f" {missing[0]!r} for one"
            )
        shared = [(number, row.id) for number, row in found.items() if number not in pulled]
        if shared:  # Other artifacts brought these; from now on this one keeps them too.
            with self._catalog.change() as change:
                change.set_artifact_files(owner.id, shared)
        return found

    def holds(self, artifact: Digest, files: frozenset[int] | None = None) -> bool:
        """Whether a view of these files could be made now, as far as the account says."""
        manifest = self.manifest(artifact)
        if manifest is None:
            return False
        numbers = range(len(manifest.files)) if files is None else sorted(files)
        rows = (self._catalog.file_of_content(manifest.file_id(number)) for number in numbers)
        return all(row is not None and row.is_whole for row in rows)

    # --- whole files ---

    def found_whole(self, content: Digest, sha256: str, *, is_ours: bool) -> None:
        """Keep what a content is as a whole: found here, or believed of others."""
        with self._catalog.change() as change:
            change.add_whole(
                content, bytes.fromhex(sha256.removeprefix("sha256:")), is_ours=is_ours
            )

    def sha256_of(self, content: Digest, *, is_ours: bool = False) -> str | None:
        """What a content is as a whole, if that is known; with `is_ours`, if we found it here."""
        found = self._catalog.sha256_of(content)
        if found is None or (is_ours and not found[1]):
            return None
        return f"sha256:{found[0].hex()}"

    def whole_like(self, file: PlannedFile) -> ManifestFile | None:
        """A whole file of this store with a digest that was published of `file`, cut like it."""
        for sha256 in file.digests:
            raw = bytes.fromhex(sha256.removeprefix("sha256:"))
            for row in self._catalog.whole_files(raw, file.bytes):
                if (found := self._cut_like(row, file)) is not None:
                    return found
        return None

    def keep_versions(self, ref: str, plan: Plan, manifest: Manifest) -> None:
        """Note which versions of its files a listed plan of a ref had, when it became this."""
        versions = {file.path: file.version for file in plan.files if file.is_versioned}
        with self._catalog.change() as change:
            change.add_versions(
                ref,
                [
                    (file.path, versions[file.path], file.id)
                    for file in manifest.files
                    if file.path in versions
                ],
            )

    def same_version(self, ref: str, file: PlannedFile) -> ManifestFile | None:
        """What this file of a ref was when its origin said the same version of it, if here."""
        if not file.is_versioned:
            return None
        row = self._catalog.versioned_file(ref, file.path, file.version)
        return None if row is None else self._cut_like(row, file)

    def _cut_like(self, row: FileRow, file: PlannedFile) -> ManifestFile | None:
        chunks = tuple(Chunk(c.digest, c.length) for c in self._catalog.chunks(row.id))
        is_like = tuple(chunk.length for chunk in chunks) == file.lengths
        return ManifestFile(file.path, chunks) if is_like else None

    # --- artifacts ---

    def files_of(self, artifact: Digest) -> frozenset[int]:
        """The numbers of an artifact's files that were pulled; they may lack chunks since.

        Raises:
            ArtifactNotFoundError: it is not here.
        """
        return frozenset(self._catalog.artifact_files(self._artifact(artifact).id))

    def manifest(self, artifact: Digest) -> Manifest | None:
        """The manifest of an artifact that is kept here."""
        if self._catalog.artifact(artifact) is None:
            return None  # Whatever we have cached.
        with self._manifests_lock:
            if (cached := self._manifests.get(artifact)) is not None:
                self._manifests.move_to_end(artifact)
                return cached
        data = self._catalog.manifest(artifact)
        if data is None:
            return None
        found = Manifest.parse(data)
        with self._manifests_lock:
            self._manifests[artifact] = found
            while len(self._manifests) > self.limits.manifests_cached_max:
                self._manifests.popitem(last=False)
        return found

    def keep_manifest(self, manifest: Manifest) -> None:
        """Keep a manifest of which nothing may be here yet."""
        with self._catalog.change() as change:
            change.add_artifact(
                manifest.digest,
                manifest.canonical(),
                len(manifest.files),
                manifest.bytes,
                self._clock.wall_ns(),
            )

    def _known(self, artifact: Digest) -> Manifest:
        manifest = self.manifest(artifact)
        if manifest is None:
            raise ArtifactNotFoundError(f"{artifact} is not in the store {self.path}")
        return manifest

    def _artifact(self, artifact: Digest) -> ArtifactRow:
        row = self._catalog.artifact(artifact)
        if row is None:
            raise ArtifactNotFoundError(f"{artifact} is not in the store {self.path}")
        return row

    def keep_verdict(
        self, artifact: Digest, trust: Digest, method: str, signer: str, files: frozenset[int]
    ) -> Verdict:
        """Keep that a signature was verified just now; it goes with the artifact.

        Raises:
            ArtifactNotFoundError: the artifact is not here.
        """
        manifest = self._known(artifact)
        owner = self._artifact(artifact)
        now_ns = self._clock.wall_ns()
        bits = Bitmap.of(len(manifest.files), files).to_bytes()
        with self._catalog.change() as change:
            change.add_signature(owner.id, SignatureRow(trust, method, signer, bits, now_ns))
        return Verdict(trust=trust, method=method, signer=signer, files=files, verified_ns=now_ns)

    def verdicts(self, artifact: Digest) -> list[Verdict]:
        """The signatures of an artifact that were verified, the newest first."""
        manifest = self.manifest(artifact)
        owner = self._catalog.artifact(artifact)
        if manifest is None or owner is None:
            return []
        count = len(manifest.files)
        return [
            Verdict(
                trust=row.trust,
                method=row.method,
                signer=row.signer,
                files=frozenset(Bitmap.parse(count, row.files)),
                verified_ns=row.verified_ns,
            )
            for row in self._catalog.signatures(owner.id)
        ]

    def remember(self, ref: str, revision: str, artifact: Digest) -> None:
        """Note that `ref` was this artifact at that revision; true for ever, so never evicted."""
        with self._catalog.change() as change:
            change.remember(ref, revision, artifact, self._clock.wall_ns())

    def artifact_of(self, ref: str, revision: str | None = None) -> Digest | None:
        """What `ref` was at a revision; with None, when it was last remembered."""
        return self._catalog.artifact_of(ref, revision)

    def revisions(self, ref: str) -> list[tuple[str, Digest]]:
        """What `ref` was at its revisions, the one seen last first."""
        return self._catalog.revisions(ref)

    def revision_of(self, ref: str, artifact: Digest) -> str | None:
        """At which revision `ref` was this artifact, when that was last remembered."""
        return self._catalog.revision_of(ref, artifact)

    def artifacts(self) -> list[ArtifactInfo]:
        """Every artifact, the one used longest ago first."""
        now_ns = self._clock.wall_ns()
        with disk.disk_errors(f"listing the store {self.path}"):
            return [self._info(row, now_ns) for row in self._catalog.artifacts()]

    def _info(self, row: ArtifactRow, now_ns: int) -> ArtifactInfo:
        files = self._catalog.artifact_files(row.id)
        whole = sum(1 for file in files.values() if file.is_whole)
        if whole < len(files):
            state = ArtifactState.DEGRADED
        elif whole == row.file_count:
            state = ArtifactState.COMPLETE
        else:
            state = ArtifactState.PARTIAL if files else ArtifactState.KNOWN
        return ArtifactInfo(
            artifact=row.digest,
            state=state,
            file_count=row.file_count,
            files_held=whole,
            bytes=row.bytes,
            bytes_held=sum(file.held_bytes for file in files.values()),
            created_ns=row.created_ns,
            used_ns=row.used_ns,
            is_pinned=row.pinned_ns is not None,
            leases=tuple(lease.id for lease in self._leases.of(row.digest, now_ns)),
            refs=self._catalog.refs_of(row.digest),
        )

    # --- keeping and taking away ---

    def on_removed(self, listener: Callable[[str, Removed], None]) -> None:
        """Tell `listener`, in whatever thread, why something was taken away, and how much.

        The reasons are `capacity`, `free_space` (both evictions) and `removed` (somebody asked).
        """
        self._room.removed = listener

    def pin(self, artifact: Digest) -> None:
        """Protect an artifact from eviction until `unpin`.

        Raises:
            ArtifactNotFoundError: it is not here.
        """
        self._pin(artifact, self._clock.wall_ns())

    def unpin(self, artifact: Digest) -> None:
        """End a pin; harmless without one.

        Raises:
            ArtifactNotFoundError: it is not here.
        """
        self._pin(artifact, None)

    def _pin(self, artifact: Digest, pinned_ns: int | None) -> None:
        with self._room.lock:
            self._artifact(artifact)
            with self._catalog.change() as change:
                change.set_pinned(artifact, pinned_ns)
        self._catalog.checkpoint()  # Somebody relies on it from now on: also after a power cut.

    def lease(self, artifact: Digest, lease_id: str, ttl_s: float | None = None) -> bool:
        """Protect an artifact from eviction and removal; may come before the artifact does.

        Made again, it replaces the one of that id: that is how a lease is renewed. True: it is new.

        Raises:
            UsageError: the id cannot be a file's name.
        """
        now_ns = self._clock.wall_ns()
        expires_ns = None if ttl_s is None else now_ns + int(ttl_s * _S)
        with self._room.lock, disk.disk_errors(f"leasing {artifact}"):
            is_new = self._leases.make(artifact, lease_id, expires_ns, now_ns)
            with self._catalog.change() as change:
                change.touch_artifact(artifact, now_ns)
        return is_new

    def release(self, artifact: Digest, lease_id: str) -> bool:
        """End a lease; False: there was none.

        Raises:
            UsageError: the id cannot be a file's name.
        """
        with disk.disk_errors(f"releasing {artifact}"):
            return self._leases.release(artifact, lease_id)

    def remove(self, artifact: Digest, *, force: bool = False) -> Removed:
        """Take an artifact away, with the files that no other artifact names.

        `force` overrides a pin, never a lease: somebody is reading those files.

        Raises:
            ArtifactNotFoundError: it is not here.
            LeaseHeldError: a lease, a pin or a pull keeps it; it says which.
        """
        with self._room.lock, disk.disk_errors(f"removing {artifact}"):
            row = self._artifact(artifact)
            files = {file.id for file in self._catalog.artifact_files(row.id).values()}
            leases = self._leases.of(artifact, self._clock.wall_ns())
            pulled, _ = self._files.in_use()
            if leases:
                names = ", ".join(lease.id for lease in leases)
                raise LeaseHeldError(f"{artifact} is in use: leased by {names}")
            if row.pinned_ns is not None and not force:
                raise LeaseHeldError(f"{artifact} is pinned")
            if not pulled.isdisjoint(files):
                raise LeaseHeldError(f"{artifact} is being pulled")
            removed = self._room.drop([row], [])
            self._room.removed("removed", removed)
        self._catalog.checkpoint()
        return removed

    def gc(self, *, leftover_age_s: float | None = None) -> Removed:
        """Remove what nothing refers to and nobody touched for a while.

        That is: what interrupted pulls left, manifests of which nothing was ever pulled, expired
        leases. Artifacts are not touched: they go by `remove`, or when room is needed.
        """
        age_s = self.limits.leftover_age_s if leftover_age_s is None else leftover_age_s
        now_ns = self._clock.wall_ns()
        old_ns = now_ns - int(age_s * _S)
        with self._room.lock, disk.disk_errors(f"collecting garbage in the store {self.path}"):
            self._leases.sweep(now_ns)
            pulled, served = self._files.in_use()
            leftovers = [
                row
                for row in self._catalog.leftovers()
                if row.used_ns <= old_ns and row.id not in pulled | served
            ]
            unused = [
                row
                for row in self._catalog.artifacts()
                if row.used_ns <= old_ns
                and not self._catalog.artifact_files(row.id)
                and self._room.held_by(row, ()) is None
            ]
            removed = self._room.drop(unused, leftovers)
            self._room.removed("removed", removed)
            return removed

    def verify(
        self,
        artifact: Digest | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Verified:
        """Re-read and re-hash an artifact's files, or everything; what is wrong is missing then.

        A file keeps its inode, so views and mounts keep theirs: ingest the same manifest again,
        and the chunks found bad are written in place. `on_progress(bytes done, bytes in all)` is
        called after every chunk; what it raises ends the work, and is raised.

        Raises:
            ArtifactNotFoundError: it is not here.
            IntegrityError: the disk refuses otherwise than by failing to read a chunk.
        """
        if artifact is None:
            rows = [row for row in self._catalog.files() if row.ino is not None]
        else:
            files = self._catalog.artifact_files(self._artifact(artifact).id)
            rows = list({row.id: row for row in files.values()}.values())
        return self._reread(rows, artifact, on_progress)

    def recheck(
        self, digest: Digest, on_progress: Callable[[int, int], None] | None = None
    ) -> Verified:
        """Re-read one chunk, wherever it lies; where it is wrong, all of its file as `verify` does.

        Raises:
            IntegrityError: the disk refuses otherwise than by failing to read a chunk.
        """
        with disk.disk_errors(f"re-reading chunk {digest}"):
            places = self._catalog.places(digest)
            wrong = {row.id: row for row, chunk in places if self._scrub.is_wrong(row, chunk)}
        return self._reread(list(wrong.values()), None, on_progress)

    def _reread(
        self,
        rows: Sequence[FileRow],
        artifact: Digest | None,
        on_progress: Callable[[int, int], None] | None,
    ) -> Verified:
        total = sum(row.held_bytes for row in rows)
        done = 0

        def count(length: int) -> None:
            nonlocal done
            done += length
            if on_progress is not None:
                on_progress(done, total)

        bad: list[BadChunk] = []
        chunk_count = 0
        with disk.disk_errors(f"verifying the store {self.path}"):
            for row in rows:
                chunk_count += row.held
                for one in self._scrub.check(row, count):
                    bad += [
                        BadChunk(
                            path=path,
                            number=one.chunk.number,
                            expected=one.chunk.digest,
                            actual=one.actual,
                        )
                        for path in self._paths_of(row, artifact)
                    ]
        return Verified(
            file_count=len(rows),
            chunk_count=chunk_count,
            bytes=done,
            bad=tuple(bad),
            degraded=tuple(self._catalog.degraded()),
        )

    def _paths_of(self, row: FileRow, artifact: Digest | None) -> list[str]:
        """What the file is called: in the artifact asked about, else in the first that has it."""
        for user, number in self._catalog.users_of_file(row.id):
            if artifact in {None, user}:
                return [self._known(user).files[number].path]
        return [self._files.name_of(row)]

    def usage(self) -> Usage:
        """What the store takes, and what it may take."""
        own, file_count, chunk_count = self._catalog.totals()
        missing, _ = self._files.promised_bytes()
        pulled, _ = self._files.in_use()
        with disk.disk_errors(f"asking for the space under {self.path}"):
            free = self._room.free_bytes()
            leases = self._leases.count(self._clock.wall_ns())
        return Usage(
            bytes=own,
            capacity_bytes=self.limits.capacity_bytes,
            reserved_bytes=missing,
            leftover_bytes=sum(
                row.bytes
                for row in self._catalog.leftovers()
                if row.id not in pulled and row.ino is not None
            ),
            free_bytes=free,
            keep_free_bytes=self.limits.keep_free_bytes,
            artifact_count=len(self._catalog.artifacts()),
            file_count=file_count,
            chunk_count=chunk_count,
            lease_count=leases,
            pin_count=self._catalog.pin_count(),
        )

    def room_for(
        self, artifact: Digest | None = None, files: frozenset[int] | None = None
    ) -> RoomFor:
        """How much could be stored, all in all, or of these files of an artifact that is known.

        Raises:
            ArtifactNotFoundError: the artifact is not known.
            IntegrityError: the disk refuses.
        """
        size = held = 0
        rows: dict[int, FileRow] = {}
        if artifact is not None:
            manifest = self._known(artifact)
            for number in range(len(manifest.files)) if files is None else sorted(files):
                size += manifest.files[number].bytes
                row = self._catalog.file_of_content(manifest.file_id(number))
                if row is not None:
                    held += row.held_bytes
                    rows[row.id] = row
        with disk.disk_errors(f"asking for the space under {self.path}"):
            others = self._room.available(artifact, rows)
        here = sum(row.bytes for row in rows.values() if row.ino is not None)
        return RoomFor(available_bytes=others + here, bytes=size, bytes_held=held)
