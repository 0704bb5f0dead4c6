"""How a pull ends: files that have every chunk get their place, and the artifact its row."""

from collections.abc import Mapping

from damselfly.cache import disk
from damselfly.cache.catalog import Catalog, FileRow
from damselfly.cache.files import Files, Filling, ino_of
from damselfly.cache.room import RoomKeeper
from damselfly.cache.scrub import Scrub
from damselfly.cache.syncer import Syncer
from damselfly.clock import Clock
from damselfly.errors import ChunkNotFoundError, IntegrityError, ManifestError
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.plan import Plan

_ATTEMPTS = 3


class Sealing:
    """See the module. Thread-safe by the room's lock."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        files: Files,
        scrub: Scrub,
        room: RoomKeeper,
        syncer: Syncer,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._files = files
        self._scrub = scrub
        self._room = room
        self._syncer = syncer
        self._clock = clock

    def seal(self, plan: Plan, manifest: Manifest, fillings: Mapping[int, Filling]) -> None:
        """Place the files, then record them and the artifact in one commit.

        A file that was repaired in place, or looks different, is re-read first.

        Raises:
            ChunkNotFoundError: a file lacks a chunk (one may have been found bad meanwhile).
            ManifestError: the manifest is of other files than those pulled.
            IntegrityError: the disk refuses, or somebody keeps changing the files.
        """
        with disk.disk_errors(f"sealing {plan.ref}"):
            for _ in range(_ATTEMPTS):
                with self._room.lock:
                    rows = self._named(plan, manifest, fillings)
                    doubtful = [row for row in rows.values() if self._files.is_doubtful(row)]
                    if not doubtful:
                        self._record(manifest, fillings, rows)
                        return
                for row in doubtful:  # Without the lock: it may take a minute.
                    self._scrub.check(row)
        raise IntegrityError(f"files of {plan.ref} change while they are re-read")

    def _named(
        self, plan: Plan, manifest: Manifest, fillings: Mapping[int, Filling]
    ) -> dict[int, FileRow]:
        """Check that all is here, and tell every file its content."""
        for number, filling in fillings.items():
            _check(plan, manifest, number, filling.now())
        for number, filling in fillings.items():
            self._name(filling.now(), manifest.file_id(number))
        rows = [self._row(filling) for filling in fillings.values()]
        return {row.id: row for row in rows}

    def _record(
        self, manifest: Manifest, fillings: Mapping[int, Filling], rows: Mapping[int, FileRow]
    ) -> None:
        placed = {row.id: self._files.place(row) for row in rows.values() if not row.is_placed}
        now_ns = self._clock.wall_ns()
        with self._catalog.change() as change:
            for file, stats in placed.items():
                change.set_whole(file, ino_of(stats), stats.st_mtime_ns)
            artifact = change.add_artifact(
                manifest.digest, manifest.canonical(), len(manifest.files), manifest.bytes, now_ns
            )
            change.set_artifact_files(
                artifact, [(number, one.now().id) for number, one in fillings.items()]
            )
            change.touch_artifact(manifest.digest, now_ns)
            change.touch_files(rows, now_ns)
        for file in rows:
            self._syncer.note(file, None, 0)

    def _row(self, filling: Filling) -> FileRow:
        row = self._catalog.file(filling.now().id)
        assert row is not None, "nobody removes a file that a pull has open"
        return row

    def _name(self, filling: Filling, content: Digest) -> None:
        """Record the file's content; if another has it already, only one of them stays."""
        row = self._row(filling)
        if row.content == content:
            return
        if row.content is not None:
            raise ManifestError(f"{self._files.name_of(row)} is not {content}")
        other = self._catalog.file_of_content(content)
        if other is not None:
            self._files.merge(filling, other)
        else:
            with self._catalog.change() as change:
                change.set_content(row.id, content)


def _check(plan: Plan, manifest: Manifest, number: int, filling: Filling) -> None:
    file = plan.files[number]
    if number >= len(manifest.files) or manifest.files[number].path != file.path:
        raise ManifestError(f"the manifest {manifest.digest} has no {file.path} at {number}")
    chunks = manifest.files[number].chunks
    if tuple(chunk.length for chunk in chunks) != file.lengths:
        raise ManifestError(f"the manifest {manifest.digest} cuts {file.path} in another way")
    missing = sum(1 for index in range(len(chunks)) if index not in filling.digests)
    if missing:
        raise ChunkNotFoundError(f"{file.path} lacks {missing} of {len(chunks)} chunks")
    for index, chunk in enumerate(chunks):
        if filling.digests[index] != chunk.digest:
            raise ManifestError(
                f"chunk {index} of {file.path} was pulled as {filling.digests[index]},"
                f" the manifest {manifest.digest} says {chunk.digest}"
            )
