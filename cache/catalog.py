"""The account of the store, in SQLite; the only module that knows SQL.

A chunk is here if and only if it has a row: there is no bitmap beside the digest index that could
disagree with it. The `.sql` files say what each table means.

Durability. WAL with `synchronous=NORMAL`: a commit is a write to the page cache, which survives
kill -9, and costs no `fsync`; the log is never torn, so a power cut loses the newest commits at
most, whole ones. `OFF` would be no faster (measured: the same within noise) and may corrupt the
database in a power cut. The syncer checkpoints on a connection of its own, which makes everything
durable without holding up writers, and lets the log begin anew; the writer never checkpoints.

Threads. One connection writes, under `change()`; one reads, so that a lookup for serving does not
wait for an eviction's transaction; one checkpoints. Any thread may call anything.

Errors. No SQLite exception leaves: a full disk is a `StoreFullError`, all else an `IntegrityError`.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

from damselfly.errors import IntegrityError, StoreFullError, UnsupportedFormatError
from damselfly.model.digest import Digest

SCHEMA = ("schema.sql", "proofs.sql", "whole.sql", "signatures.sql", "versions.sql")
"""What made the catalog, in this order: one of version n has the first n."""
SCHEMA_VERSION = len(SCHEMA)
_BUSY_S = 30.0
_CHECKPOINTS = 20
_LOOKUP_S = 0.002
"""A lookup takes less; a checkpoint that met twenty of them is left to the syncer's next pass."""
_NO_ROOM_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileRow:
    """One inode of ours, as accounted."""

    id: int
    content: Digest | None
    shape: Digest
    bytes: int
    chunk_count: int
    held: int
    held_bytes: int
    is_placed: bool
    is_suspect: bool
    ino: int | None
    mtime_ns: int | None
    used_ns: int

    @property
    def has_all(self) -> bool:
        """Every chunk is here (of none, for a file of zero bytes) and there is an inode."""
        return self.held == self.chunk_count and self.ino is not None

    @property
    def is_whole(self) -> bool:
        """It has every chunk and lies in `files/`: views may link it."""
        return self.is_placed and self.has_all

    def lies_elsewhere(self, before: "FileRow") -> bool:
        """Its inode may be under another name than it was."""
        return (self.content, self.is_placed, self.ino) != (
            before.content,
            before.is_placed,
            before.ino,
        )

    @property
    def was_repaired(self) -> bool:
        """It is whole again, but has not been re-read since."""
        return self.is_whole and self.mtime_ns is None


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """One chunk that is here."""

    number: int
    start: int
    length: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class ArtifactRow:
    """One artifact, without its manifest."""

    id: int
    digest: Digest
    file_count: int
    bytes: int
    created_ns: int
    used_ns: int
    pinned_ns: int | None


@dataclass(frozen=True, slots=True)
class SignatureRow:
    """One signature of an artifact that was verified; `files` is a bitmap."""

    trust: Digest
    method: str
    signer: str
    files: bytes
    verified_ns: int


_Row = tuple[Any, ...]


def _file_row(row: _Row) -> FileRow:
    """Read `file.*`, whose columns schema.sql has in this order."""
    content, shape, placed, suspect = row[1], row[2], row[7], row[8]
    return FileRow(
        id=row[0],
        content=None if content is None else Digest(content),
        shape=Digest(shape),
        bytes=row[3],
        chunk_count=row[4],
        held=row[5],
        held_bytes=row[6],
        is_placed=bool(placed),
        is_suspect=bool(suspect),
        ino=row[9],
        mtime_ns=row[10],
        used_ns=row[11],
    )


def _artifact_row(row: _Row) -> ArtifactRow:
    return ArtifactRow(row[0], Digest(row[1]), row[2], row[3], row[4], row[5], row[6])


class Catalog:
    """See the module. `close()` ends it; without, nothing is lost."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._checkpoint_lock = threading.Lock()  # SQLite would not wait for another one's end.
        self._commits = 0
        self._durable = 0
        with self._errors("opening"), ExitStack() as undo:
            self._writer = self._connect()
            undo.callback(self._writer.close)
            self._create()
            self._reader = self._connect()
            undo.pop_all()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            connection.execute("PRAGMA foreign_keys = ON")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _create(self) -> None:
        (version,) = self._writer.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise UnsupportedFormatError(
                f"the catalog {self._path} has format {version}, made by a newer Damselfly:"
                f" this one knows {SCHEMA_VERSION}"
            )
        for number, name in enumerate(SCHEMA[version:], start=version + 1):
            sql = resources.files("damselfly.cache").joinpath(name).read_text("utf-8")
            self._writer.executescript(f"BEGIN; {sql} PRAGMA user_version = {number}; COMMIT;")

    def close(self) -> None:
        """Write the log back and close."""
        with self._errors("closing"), self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    @property
    def is_dirty(self) -> bool:
        """Something was committed that no checkpoint has made durable."""
        return self._commits != self._durable

    def checkpoint(self) -> None:
        """Make every commit so far durable; writers and readers go on meanwhile."""
        with self._errors("checkpointing"), self._checkpoint_lock:
            commits = self._commits
            frames: int | None = None
            connection = self._connect()
            try:
                for _ in range(_CHECKPOINTS):
                    is_busy, logged, done = connection.execute(
                        "PRAGMA wal_checkpoint(PASSIVE)"
                    ).fetchone()
                    frames = logged if frames is None else frames
                    # A shorter log is another one: it began when the former was all written back.
                    if not is_busy and (done >= frames or logged < frames):
                        self._durable = commits
                        return
                    time.sleep(_LOOKUP_S)  # A lookup still reads what was before the last commit.
            finally:
                connection.close()

    # --- one place for transactions, reads and errors ---

    @contextmanager
    def _errors(self, doing: str) -> Generator[None, None, None]:
        try:
            yield
        except sqlite3.Error as exc:
            told = f"{doing} the catalog {self._path}"
            code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and self._is_full()):
                raise StoreFullError(f"{told}: the file system is full") from exc
            raise IntegrityError(told) from exc

    def _is_full(self) -> bool:
        stats = os.statvfs(self._path)
        return stats.f_bavail * stats.f_frsize < _NO_ROOM_BYTES

    @contextmanager
    def change(self) -> Generator["Change", None, None]:
        """One transaction: all of it, or after an exception nothing."""
        with self._errors("changing"), self._write_lock:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield Change(self._writer)
                self._writer.execute("COMMIT")
                self._commits += 1
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[_Row]:
        with self._errors("reading"), self._read_lock:
            return self._reader.execute(sql, parameters).fetchall()

    def _row(self, sql: str, parameters: Sequence[Any] = ()) -> _Row | None:
        rows = self._rows(sql, parameters)
        return rows[0] if rows else None

    # --- the hot two ---

    def keep_chunk(self, file: int, number: int, start: int, length: int, raw: bytes) -> None:
        """Commit one chunk of a file: the triggers count it and note that it is not synced."""
        with self._errors("changing"), self._write_lock:
            self._writer.execute(
                "INSERT OR IGNORE INTO chunk VALUES (?, ?, ?, ?, ?)",
                (file, number, start, length, raw),
            )
            self._commits += 1

    def places(self, digest: Digest) -> list[tuple[FileRow, ChunkRow]]:
        """Where chunks of this digest lie, files in `files/` first; a handful is enough."""
        rows = self._rows(
            "SELECT file.*, chunk.number, chunk.start, chunk.length FROM chunk"
            " JOIN file ON file.id = chunk.file WHERE chunk.digest = ?"
            " ORDER BY file.placed DESC LIMIT 8",
            (digest.raw,),
        )
        return [(_file_row(row), ChunkRow(row[12], row[13], row[14], digest)) for row in rows]

    # --- files and chunks ---

    def meta(self, key: str) -> str | None:
        """A fact about the whole store."""
        row = self._row("SELECT value FROM meta WHERE key = ?", (key,))
        return None if row is None else row[0]

    def file(self, file: int) -> FileRow | None:
        """One file by its id."""
        row = self._row("SELECT file.* FROM file WHERE id = ?", (file,))
        return None if row is None else _file_row(row)

    def files(self) -> list[FileRow]:
        """Every file."""
        return [_file_row(row) for row in self._rows("SELECT file.* FROM file ORDER BY id")]

    def file_of_content(self, content: Digest) -> FileRow | None:
        """The file with this content."""
        row = self._row("SELECT file.* FROM file WHERE content = ?", (content.raw,))
        return None if row is None else _file_row(row)

    def file_of_contact(self, plan: Digest, path: str) -> FileRow | None:
        """The file that first contact with this plan began."""
        row = self._row(
            "SELECT file.* FROM contact JOIN file ON file.id = contact.file"
            " WHERE plan = ? AND path = ?",
            (plan.raw, path),
        )
        return None if row is None else _file_row(row)

    def files_of_shape(self, shape: Digest) -> list[FileRow]:
        """Files cut like this whose content is not known yet, the fullest first."""
        rows = self._rows(
            "SELECT file.* FROM file WHERE shape = ? AND content IS NULL AND held > 0"
            " ORDER BY held DESC LIMIT 8",
            (shape.raw,),
        )
        return [_file_row(row) for row in rows]

    def leftovers(self) -> list[FileRow]:
        """Files that no artifact names: of pulls that go on, and of pulls that ended early."""
        rows = self._rows(
            "SELECT file.* FROM file"
            " WHERE NOT EXISTS (SELECT 1 FROM artifact_file WHERE artifact_file.file = file.id)"
        )
        return [_file_row(row) for row in rows]

    def chunks(self, file: int) -> list[ChunkRow]:
        """The chunks of a file that are here, in order."""
        rows = self._rows(
            "SELECT number, start, length, digest FROM chunk WHERE file = ? ORDER BY number",
            (file,),
        )
        return [ChunkRow(row[0], row[1], row[2], Digest(row[3])) for row in rows]

    def unsynced(self) -> dict[int, list[int]]:
        """Chunks not known to be on disk, by file."""
        found: dict[int, list[int]] = {}
        for file, number in self._rows("SELECT file, number FROM unsynced ORDER BY file, number"):
            found.setdefault(file, []).append(number)
        return found

    def totals(self) -> tuple[int, int, int]:
        """Bytes promised to files that are on disk, how many these are, number of chunks here."""
        row = self._row(
            "SELECT TOTAL(bytes), COUNT(*), TOTAL(held) FROM file WHERE ino IS NOT NULL"
        )
        assert row is not None, "an aggregate has a row"
        return int(row[0]), row[1], int(row[2])

    # --- artifacts, views, refs ---

    def artifact(self, digest: Digest) -> ArtifactRow | None:
        """One artifact."""
        row = self._row(
            "SELECT id, digest, files, bytes, created_ns, used_ns, pinned_ns FROM artifact"
            " WHERE digest = ?",
            (digest.raw,),
        )
        return None if row is None else _artifact_row(row)

    def artifacts(self) -> list[ArtifactRow]:
        """Every artifact, the one used longest ago first."""
        rows = self._rows(
            "SELECT id, digest, files, bytes, created_ns, used_ns, pinned_ns FROM artifact"
            " ORDER BY used_ns, id"
        )
        return [_artifact_row(row) for row in rows]

    def manifest(self, digest: Digest) -> bytes | None:
        """The canonical bytes of an artifact's manifest."""
        row = self._row("SELECT manifest FROM artifact WHERE digest = ?", (digest.raw,))
        return None if row is None else row[0]

    def artifact_files(self, artifact: int) -> dict[int, FileRow]:
        """The files of an artifact that have been pulled, by number in its manifest."""
        rows = self._rows(
            "SELECT number, file.* FROM artifact_file JOIN file ON file.id = artifact_file.file"
            " WHERE artifact = ?",
            (artifact,),
        )
        return {row[0]: _file_row(row[1:]) for row in rows}

    def file_links(self) -> list[tuple[int, int]]:
        """Every (artifact, file) pair: who needs what."""
        return [
            (row[0], row[1])
            for row in self._rows("SELECT DISTINCT artifact, file FROM artifact_file")
        ]

    def users_of_file(self, file: int) -> list[tuple[Digest, int]]:
        """The artifacts that name a file, and its number in each."""
        rows = self._rows(
            "SELECT digest, number FROM artifact_file"
            " JOIN artifact ON artifact.id = artifact_file.artifact WHERE file = ?",
            (file,),
        )
        return [(Digest(row[0]), row[1]) for row in rows]

    def degraded(self) -> list[Digest]:
        """Artifacts that lack a chunk of a file which has been pulled."""
        rows = self._rows(
            "SELECT DISTINCT artifact.digest FROM artifact_file"
            " JOIN artifact ON artifact.id = artifact_file.artifact"
            " JOIN file ON file.id = artifact_file.file"
            " WHERE file.held < file.chunks OR file.ino IS NULL"
        )
        return [Digest(row[0]) for row in rows]

    def views(self) -> dict[tuple[Digest, str], bytes]:
        """Every view: (artifact, name) to the bitmap of its file numbers."""
        rows = self._rows(
            "SELECT digest, name, view.files FROM view JOIN artifact ON artifact.id = view.artifact"
        )
        return {(Digest(row[0]), row[1]): row[2] for row in rows}

    def artifact_of(self, ref: str, revision: str | None) -> Digest | None:
        """What a ref was at a revision, or when it was last seen."""
        row = self._row(
            "SELECT artifact FROM ref WHERE ref = ? AND revision = IFNULL(?, revision)"
            " ORDER BY seen_ns DESC LIMIT 1",
            (ref, revision),
        )
        return None if row is None else Digest(row[0])

    def revision_of(self, ref: str, artifact: Digest) -> str | None:
        """The revision at which a ref was last seen to be this artifact."""
        row = self._row(
            "SELECT revision FROM ref WHERE ref = ? AND artifact = ? ORDER BY seen_ns DESC LIMIT 1",
            (ref, artifact.raw),
        )
        return None if row is None else str(row[0])

    def refs_of(self, digest: Digest) -> tuple[str, ...]:
        """The refs that named an artifact."""
        rows = self._rows(
            "SELECT DISTINCT ref FROM ref WHERE artifact = ? ORDER BY ref", (digest.raw,)
        )
        return tuple(row[0] for row in rows)

    def revisions(self, ref: str) -> list[tuple[str, Digest]]:
        """What a ref was at its revisions, the one seen last first; a handful is enough."""
        rows = self._rows(
            "SELECT revision, artifact FROM ref WHERE ref = ? ORDER BY seen_ns DESC LIMIT 64",
            (ref,),
        )
        return [(row[0], Digest(row[1])) for row in rows]

    def pin_count(self) -> int:
        """How many artifacts are pinned."""
        row = self._row("SELECT COUNT(*) FROM artifact WHERE pinned_ns IS NOT NULL")
        assert row is not None, "an aggregate has a row"
        return int(row[0])

    # --- proofs ---

    def proved_ns(self, asker: Digest) -> int | None:
        """When somebody last proved that they may read."""
        row = self._row("SELECT proved_ns FROM proof WHERE asker = ?", (asker.raw,))
        return None if row is None else int(row[0])

    # --- whole files ---

    def sha256_of(self, content: Digest) -> tuple[bytes, bool] | None:
        """What a content is as a whole, and whether this node found that itself."""
        row = self._row("SELECT sha256, ours FROM whole WHERE content = ?", (content.raw,))
        return None if row is None else (row[0], bool(row[1]))

    def whole_files(self, sha256: bytes, size: int) -> list[FileRow]:
        """Files that are this as a whole, as far as known; a handful is enough."""
        rows = self._rows(
            "SELECT file.* FROM whole JOIN file ON file.content = whole.content"
            " WHERE whole.sha256 = ? AND file.bytes = ? AND file.held = file.chunks LIMIT 8",
            (sha256, size),
        )
        return [_file_row(row) for row in rows]

    def versioned_file(self, ref: str, path: str, version: str) -> FileRow | None:
        """What a file of a ref was at this version, if that is here."""
        row = self._row(
            "SELECT file.* FROM version JOIN file ON file.content = version.content"
            " WHERE ref = ? AND path = ? AND version = ? AND file.held = file.chunks",
            (ref, path, version),
        )
        return None if row is None else _file_row(row)

    # --- signatures ---

    def signatures(self, artifact: int) -> list[SignatureRow]:
        """The signatures of an artifact that were verified, the newest first."""
        rows = self._rows(
            "SELECT trust, method, signer, files, verified_ns FROM signature"
            " WHERE artifact = ? ORDER BY verified_ns DESC, trust",
            (artifact,),
        )
        return [SignatureRow(Digest(row[0]), *row[1:]) for row in rows]


class Change:
    """What can be changed within one transaction; made by `Catalog.change`."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def _do(self, sql: str, *parameters: object) -> sqlite3.Cursor:
        return self._connection.execute(sql, parameters)

    # --- files and chunks ---

    def set_meta(self, key: str, value: str) -> None:
        """Record a fact about the whole store."""
        self._do("INSERT OR REPLACE INTO meta VALUES (?, ?)", key, value)

    def add_file(
        self, content: Digest | None, shape: Digest, size: int, chunk_count: int, now_ns: int
    ) -> int:
        """Account for a file that is about to be made."""
        cursor = self._do(
            "INSERT INTO file (content, shape, bytes, chunks, used_ns) VALUES (?, ?, ?, ?, ?)",
            None if content is None else content.raw,
            shape.raw,
            size,
            chunk_count,
            now_ns,
        )
        assert cursor.lastrowid is not None, "an insert has a row id"
        return cursor.lastrowid

    def set_inode(self, file: int, ino: int) -> None:
        """The file is on disk."""
        self._do("UPDATE file SET ino = ? WHERE id = ?", ino, file)

    def set_content(self, file: int, content: Digest) -> None:
        """Every digest of the file is known now."""
        self._do("UPDATE file SET content = ? WHERE id = ?", content.raw, file)

    def set_contact(self, plan: Digest, path: str, file: int) -> None:
        """This is the file of that plan at that path."""
        self._do("INSERT OR REPLACE INTO contact VALUES (?, ?, ?)", plan.raw, path, file)

    def move_contacts(self, file: int, to: int) -> None:
        """What began as `file` goes on as `to`."""
        self._do("UPDATE contact SET file = ? WHERE file = ?", to, file)

    def forget_contacts(self, file: int) -> None:
        """No plan may go on with this file: its content is that of a manifest now."""
        self._do("DELETE FROM contact WHERE file = ?", file)

    def drop_contact(self, plan: Digest, path: str) -> None:
        """This plan begins its file at this path anew."""
        self._do("DELETE FROM contact WHERE plan = ? AND path = ?", plan.raw, path)

    def set_placed(self, file: int) -> None:
        """The file lies in `files/` now."""
        self._do("UPDATE file SET placed = 1 WHERE id = ?", file)

    def set_whole(self, file: int, ino: int, mtime_ns: int) -> None:
        """The file lies in `files/`, is whole, and looks like this from outside."""
        self._do(
            "UPDATE file SET placed = 1, suspect = 0, ino = ?, mtime_ns = ? WHERE id = ?",
            ino,
            mtime_ns,
            file,
        )

    def set_suspect(self, file: int) -> None:
        """It looks different from outside: nothing of it is believed before it is re-hashed."""
        self._do("UPDATE file SET suspect = 1 WHERE id = ?", file)

    def set_believed(self, file: int, mtime_ns: int | None) -> None:
        """Every chunk that is left has been re-hashed."""
        self._do("UPDATE file SET suspect = 0, mtime_ns = ? WHERE id = ?", mtime_ns, file)

    def replace_file(self, file: int, by: int) -> None:
        """Let everything that named `file` name `by`, and forget `file`."""
        self._do("UPDATE artifact_file SET file = ? WHERE file = ?", by, file)
        self.move_contacts(file, by)
        self.drop_file(file)

    def set_lost(self, file: int) -> None:
        """The inode is gone, and every chunk with it."""
        self._do("DELETE FROM chunk WHERE file = ?", file)
        self._do(
            "UPDATE file SET placed = 0, suspect = 0, ino = NULL, mtime_ns = NULL WHERE id = ?",
            file,
        )

    def touch_files(self, files: Iterable[int], now_ns: int) -> None:
        """The files were in use just now."""
        self._connection.executemany(
            "UPDATE file SET used_ns = ? WHERE id = ?", [(now_ns, file) for file in files]
        )

    def drop_file(self, file: int) -> None:
        """Forget a file and its chunks."""
        self._do("DELETE FROM chunk WHERE file = ?", file)  # A cascade would not count them down.
        self._do("DELETE FROM file WHERE id = ?", file)

    def drop_chunks(self, file: int, numbers: Iterable[int]) -> None:
        """Forget chunks whose bytes are not what they should be; a repair will change its time."""
        self._connection.executemany(
            "DELETE FROM chunk WHERE file = ? AND number = ?", [(file, n) for n in numbers]
        )
        self._do("UPDATE file SET mtime_ns = NULL WHERE id = ?", file)

    def set_synced(self, file: int, numbers: Iterable[int]) -> None:
        """The chunks are on disk for good."""
        self._connection.executemany(
            "DELETE FROM unsynced WHERE file = ? AND number = ?", [(file, n) for n in numbers]
        )

    # --- artifacts, views, refs ---

    def add_artifact(
        self, digest: Digest, manifest: bytes, file_count: int, size: int, now_ns: int
    ) -> int:
        """Keep a manifest; an artifact that is known stays as it is."""
        self._do(
            "INSERT OR IGNORE INTO artifact (digest, manifest, files, bytes, created_ns, used_ns)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            digest.raw,
            manifest,
            file_count,
            size,
            now_ns,
            now_ns,
        )
        (number,) = self._do("SELECT id FROM artifact WHERE digest = ?", digest.raw).fetchone()
        assert isinstance(number, int)
        return number

    def set_artifact_files(self, artifact: int, files: Iterable[tuple[int, int]]) -> None:
        """The artifact has these files (number, file id) now."""
        self._connection.executemany(
            "INSERT OR REPLACE INTO artifact_file VALUES (?, ?, ?)",
            [(artifact, number, file) for number, file in files],
        )

    def touch_artifact(self, digest: Digest, now_ns: int) -> None:
        """The artifact was in use just now."""
        self._do("UPDATE artifact SET used_ns = ? WHERE digest = ?", now_ns, digest.raw)

    def set_pinned(self, digest: Digest, pinned_ns: int | None) -> None:
        """Pin, or with None unpin."""
        self._do("UPDATE artifact SET pinned_ns = ? WHERE digest = ?", pinned_ns, digest.raw)

    def drop_artifact(self, artifact: int) -> None:
        """Forget an artifact and its views, not its files."""
        self._do("DELETE FROM artifact WHERE id = ?", artifact)

    def add_view(self, artifact: int, name: str, files: bytes) -> None:
        """A tree of these files is there."""
        self._do("INSERT OR REPLACE INTO view VALUES (?, ?, ?)", artifact, name, files)

    def drop_view(self, artifact: Digest, name: str) -> None:
        """The tree is gone."""
        self._do(
            "DELETE FROM view WHERE name = ?"
            " AND artifact = (SELECT id FROM artifact WHERE digest = ?)",
            name,
            artifact.raw,
        )

    def remember(self, ref: str, revision: str, artifact: Digest, now_ns: int) -> None:
        """The ref was this artifact at that revision."""
        self._do(
            "INSERT OR REPLACE INTO ref VALUES (?, ?, ?, ?)", ref, revision, artifact.raw, now_ns
        )

    # --- proofs ---

    def add_proof(self, asker: Digest, now_ns: int, count_max: int) -> None:
        """Somebody proved that they may read; of too many proofs the oldest go."""
        self._do("INSERT OR REPLACE INTO proof VALUES (?, ?)", asker.raw, now_ns)
        self._do(
            "DELETE FROM proof WHERE asker IN"
            " (SELECT asker FROM proof ORDER BY proved_ns DESC, asker LIMIT -1 OFFSET ?)",
            count_max,
        )

    def drop_proof(self, asker: Digest) -> None:
        """It is true no more."""
        self._do("DELETE FROM proof WHERE asker = ?", asker.raw)

    # --- whole files ---

    def add_whole(self, content: Digest, sha256: bytes, *, is_ours: bool) -> None:
        """A content is this as a whole; what we found ourselves is never replaced by a belief."""
        self._do(
            "INSERT INTO whole VALUES (?, ?, ?) ON CONFLICT (content) DO UPDATE"
            " SET sha256 = excluded.sha256, ours = excluded.ours WHERE excluded.ours >= ours",
            content.raw,
            sha256,
            int(is_ours),
        )

    def drop_stray_wholes(self) -> None:
        """Forget contents that no file has: of pulls that were stopped before they were sealed."""
        self._do(
            "DELETE FROM whole WHERE content NOT IN"
            " (SELECT content FROM file WHERE content IS NOT NULL)"
        )

    def add_versions(self, ref: str, files: Iterable[tuple[str, str, Digest]]) -> None:
        """Files of a ref (path, version, content) as they are now, if they are here."""
        self._connection.executemany(
            "INSERT OR REPLACE INTO version SELECT ?, ?, ?, content FROM file WHERE content = ?",
            [(ref, path, version, content.raw) for path, version, content in files],
        )

    # --- signatures ---

    def add_signature(self, artifact: int, row: SignatureRow) -> None:
        """A signature was verified; it stands for what this trust said of the artifact before."""
        self._do(
            "INSERT OR REPLACE INTO signature VALUES (?, ?, ?, ?, ?, ?)",
            artifact,
            row.trust.raw,
            row.method,
            row.signer,
            row.files,
            row.verified_ns,
        )
