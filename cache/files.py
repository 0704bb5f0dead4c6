"""The files of the store: one inode per content, in `partial/` until whole, then in `files/`.

    partial/<row>       private (0600), preallocated; chunks are written in place once verified
    files/<content>     0444 and world-readable; the inode that every view links

Order of things, so that kill -9 at any moment loses nothing and shows nothing unverified:

1. A chunk: `pwrite`, then its row. A row without bytes cannot be; bytes without a row are nothing.
2. A whole file: content recorded, mode 0444, renamed into `files/`, then recorded as placed. A stop
   in between leaves an inode in one folder and a row that says the other: the inode number tells
   (`reconcile.py`).
3. A removal: the row, then the file. A stop in between leaves a file without a row: a stranger,
   removed at the next start.
4. A placed file that loses a chunk (bad disk, changed by hand) stays where it is, under its inode,
   because pods have it mounted; its missing chunks are written in place again. Meanwhile its time
   says nothing: each chunk is hashed before it is served, and the file before it is whole again.

What a file looks like from outside (inode, size, mtime) was recorded when it was whole, and is
compared before a chunk is handed out. If it differs, the file is *suspect*: every chunk is hashed
before it is served, until `scrub.py` has re-read the file.
"""

import errno
import logging
import os
import stat
import threading
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from struct import Struct
from typing import Self

from damselfly.cache import disk
from damselfly.cache.catalog import Catalog, ChunkRow, FileRow
from damselfly.cache.descriptors import Descriptor, Descriptors
from damselfly.cache.directory import READ_ONLY, Directory
from damselfly.cache.limits import Limits
from damselfly.cache.scratch import Scratch
from damselfly.model.digest import Digest

logger = logging.getLogger(__name__)

_LENGTH = Struct("<Q")
_INO_MASK = (1 << 63) - 1


def shape_of(lengths: Iterable[int]) -> Digest:
    """What files that are cut alike have in common."""
    return Digest.of(b"".join(_LENGTH.pack(length) for length in lengths))


def ino_of(stats: os.stat_result) -> int:
    """The inode number as the catalog can hold it (a signed integer)."""
    return stats.st_ino & _INO_MASK


class Filling:
    """A file that open pulls may write to; one object per file, shared by those pulls.

    `lock` orders the commits of its chunks. `have` (bits by chunk number) and `digests` mirror the
    catalog. When two files turn out to have the same content, one gets the other as `successor`.
    """

    __slots__ = (
        "digests",
        "have",
        "id",
        "is_allocated",
        "lock",
        "missing_bytes",
        "successor",
        "users",
    )

    def __init__(self, row: FileRow, chunks: Iterable[ChunkRow]) -> None:
        self.id = row.id
        self.lock = threading.Lock()
        self.digests: dict[int, Digest] = {}
        self.have = 0
        self.missing_bytes = row.bytes
        for chunk in chunks:
            self.add(chunk.number, chunk.length, chunk.digest)
        self.is_allocated = True
        """What is missing has room on disk; False on a file system that cannot allocate."""
        self.successor: Filling | None = None
        self.users = 0

    def add(self, number: int, length: int, digest: Digest) -> None:
        """The chunk is committed."""
        if number not in self.digests:
            self.have |= 1 << number
            self.digests[number] = digest
            self.missing_bytes -= length

    def discard(self, number: int, length: int) -> None:
        """The chunk is not here after all."""
        if self.digests.pop(number, None) is not None:
            self.have &= ~(1 << number)
            self.missing_bytes += length

    def now(self) -> "Filling":
        """The file that this one is today."""
        filling = self
        while filling.successor is not None:
            filling = filling.successor
        return filling


class Located:
    """A chunk on disk, held against eviction until `close()`.

    `fd` is shared with other readers: use `pread` or `sendfile` with offsets. It stays good until
    `close()`, whatever happens to the file's name. Close from any thread; twice is harmless.
    """

    __slots__ = ("_descriptor", "_files", "fd", "length", "offset")

    def __init__(self, files: "Files", descriptor: Descriptor, offset: int, length: int) -> None:
        self._files = files
        self._descriptor: Descriptor | None = descriptor
        self.fd = descriptor.fd
        self.offset = offset
        self.length = length

    def close(self) -> None:
        """Let the file go."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._files.end_reading(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Located fd {self.fd} [{self.offset}, +{self.length})>"


class Files:
    """Inodes and their rows. Any thread; see the module for what may happen in which order."""

    def __init__(
        self, partial: Directory, files: Directory, catalog: Catalog, limits: Limits
    ) -> None:
        self.partial = partial
        self.files = files
        self.catalog = catalog
        self.scratch = Scratch(limits.scratch_buffers_max)
        self._readers = Descriptors(limits.open_files_max)
        self._writers = Descriptors(limits.open_files_max)
        self._lock = threading.Lock()  # Guards the two below; never held while anything waits.
        self._fillings: dict[int, Filling] = {}
        self._reading: Counter[int] = Counter()

    def close(self) -> None:
        """Close what nobody is using."""
        self._readers.close()
        self._writers.close()

    # --- opening ---

    def open(self, row: FileRow) -> int:
        """Open the row's inode for reading, wherever it lies.

        Raises:
            FileNotFoundError: it is gone, or another inode has its name.
        """
        for folder, name in self._places(row):
            try:
                fd = folder.open_file(name)
            except FileNotFoundError:
                continue
            if ino_of(os.fstat(fd)) == row.ino:
                return fd
            os.close(fd)
        raise FileNotFoundError(f"{self.name_of(row)} is gone, or was replaced")

    def open_by_id(self, file: int) -> tuple[FileRow, int]:
        """Open a file of which only the id is known; a seal may be moving it meanwhile.

        Raises:
            FileNotFoundError: it is gone, or another inode has its name.
        """
        row = self.catalog.file(file)
        while row is not None:
            try:
                return row, self.open(row)
            except FileNotFoundError:
                before, row = row, self.catalog.file(file)
                if row is not None and not row.lies_elsewhere(before):
                    raise
        raise FileNotFoundError(f"partial/{file}")

    def _places(self, row: FileRow) -> list[tuple[Directory, str]]:
        """Where it may lie: files move from the first to the second, so we look in that order."""
        places = [] if row.is_placed else [(self.partial, str(row.id))]
        if row.content is not None:
            places.append((self.files, row.content.hex))
        return places

    def name_of(self, row: FileRow) -> str:
        """What the file is called in the store, for messages."""
        if row.is_placed and row.content is not None:
            return f"files/{row.content.hex}"
        return f"partial/{row.id}"

    def _open_writable(self, file: int) -> int:
        _, fd = self.open_by_id(file)
        try:
            return disk.open_writable(fd)
        finally:
            os.close(fd)

    def looks_right(self, row: FileRow, stats: os.stat_result) -> bool:
        """The inode looks as it did; only a file that is not written to has a time to compare."""
        if stats.st_size != row.bytes or ino_of(stats) != row.ino:
            return False
        return row.mtime_ns is None or stats.st_mtime_ns == row.mtime_ns

    def is_doubtful(self, row: FileRow) -> bool:
        """The file has to be re-read before it is shown, or written on."""
        return row.is_suspect or row.was_repaired or not self._seems_right(row)

    def _seems_right(self, row: FileRow) -> bool:
        """What lies under the file's name looks as it did."""
        for folder, name in self._places(row):
            stats = folder.stat(name)
            if stats is not None and ino_of(stats) == row.ino:
                return stat.S_ISREG(stats.st_mode) and self.looks_right(row, stats)
        return False

    # --- reading ---

    def locate(self, digest: Digest) -> Located | None:
        """Find a chunk to serve; microseconds when its file is open already."""
        for row, chunk in self.catalog.places(digest):
            if (located := self._locate(row, chunk)) is not None:
                return located
        return None

    def _locate(self, row: FileRow, chunk: ChunkRow) -> Located | None:
        with self._lock:
            self._reading[row.id] += 1
        try:
            descriptor = self._readers.acquire(row.id, lambda: self.open_by_id(row.id)[1])
        except FileNotFoundError:
            self._end_reading(row.id)
            self._suspect(row)  # Unless an eviction took it just now: then there is no row.
            return None
        except BaseException:
            self._end_reading(row.id)
            raise
        located = Located(self, descriptor, chunk.start, chunk.length)
        try:
            if not self.looks_right(row, os.fstat(descriptor.fd)):
                self._suspect(row)
            elif not row.is_suspect and (row.mtime_ns is not None or not row.is_placed):
                return located  # The common case: one `fstat`, no hash.
            if self.is_good(descriptor.fd, chunk):
                return located
            self.drop_chunks(row, [chunk])
        except BaseException:
            located.close()
            raise
        located.close()
        return None

    def read_chunk(self, file: int, chunk: ChunkRow, view: memoryview) -> bool:
        """Fill `view` with a chunk of one file, verified; a bad one is dropped. False: it is bad.

        Raises:
            OSError: the disk refuses in another way than by not having it.
        """
        with self._lock:
            self._reading[file] += 1
        try:
            descriptor = self._readers.acquire(file, lambda: self.open_by_id(file)[1])
            try:
                is_good = (
                    disk.read_into(descriptor.fd, view, chunk.start) == chunk.length
                    and Digest.of(view) == chunk.digest
                )
            finally:
                self._readers.release(descriptor)
        except FileNotFoundError:
            is_good = False
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            is_good = False
        finally:
            self._end_reading(file)
        if not is_good and (row := self.catalog.file(file)) is not None:
            self.drop_chunks(row, [chunk])
        return is_good

    def end_reading(self, descriptor: Descriptor) -> None:
        """A `Located` was closed."""
        self._readers.release(descriptor)
        self._end_reading(descriptor.key)

    def _end_reading(self, file: int) -> None:
        with self._lock:
            self._reading[file] -= 1
            if not self._reading[file]:
                del self._reading[file]

    def is_good(self, fd: int, chunk: ChunkRow) -> bool:
        """Read one chunk and hash it."""
        with self.scratch.take() as buffer:
            data = buffer[: chunk.length]
            return (
                disk.read_into(fd, data, chunk.start) == chunk.length
                and Digest.of(data) == chunk.digest
            )

    def _suspect(self, row: FileRow) -> None:
        if row.is_suspect:
            return
        with self.catalog.change() as change:
            change.set_suspect(row.id)
        logger.warning("file.suspect", extra={"file": self.name_of(row)})

    # --- chunks ---

    def drop_chunks(self, row: FileRow, chunks: Sequence[ChunkRow]) -> None:
        """Take back that these chunks are here."""
        if not chunks:
            return
        numbers = [chunk.number for chunk in chunks]
        with self._filling_of(row.id) as filling:
            with self.catalog.change() as change:
                change.drop_chunks(row.id, numbers)
            if filling is not None:
                for chunk in chunks:
                    filling.discard(chunk.number, chunk.length)
        logger.warning("chunks.dropped", extra={"file": self.name_of(row), "numbers": numbers})

    def lose(self, row: FileRow) -> None:
        """The inode is gone: so are its chunks."""
        chunks = self.catalog.chunks(row.id)
        with self._filling_of(row.id) as filling:
            with self.catalog.change() as change:
                change.set_lost(row.id)
            if filling is not None:
                for chunk in chunks:
                    filling.discard(chunk.number, chunk.length)
        self.forget(row.id)
        logger.warning("file.lost", extra={"file": self.name_of(row)})

    @contextmanager
    def _filling_of(self, file: int) -> Generator[Filling | None, None, None]:
        with self._lock:
            filling = self._fillings.get(file)
        if filling is None:
            yield None
        else:
            with filling.lock:
                yield filling

    def write_chunk(
        self, filling: Filling, number: int, start: int, digest: Digest, data: memoryview
    ) -> bool:
        """Write a verified chunk in place and commit it; False: the file has a successor now.

        Raises:
            OSError: the disk refuses.
        """
        descriptor = self._writer(filling)
        if descriptor is None:
            return False
        try:
            disk.write_all(descriptor.fd, data, start)
        finally:
            self._writers.release(descriptor)
        return self._commit(filling, number, start, len(data), digest)

    def clone_chunk(
        self, filling: Filling, number: int, start: int, digest: Digest, source: Located
    ) -> bool | None:
        """Take a chunk from elsewhere in the store, verified.

        True: it is committed. None: the file has a successor now. False: the source is not what
        it should be.
        """
        length = source.length
        descriptor = self._writer(filling)
        if descriptor is None:
            return None
        try:
            with self.scratch.take() as buffer:
                data = buffer[:length]
                fd = descriptor.fd
                is_clone = disk.clone_range(source.fd, source.offset, length, fd, start)
                source_fd, offset = (fd, start) if is_clone else (source.fd, source.offset)
                # A clone is verified in its new place: nobody sees it before its row is there. A
                # copy passes through memory anyway, to be hashed, and is written if it is good.
                # (`copy_file_range` would read it twice.)
                if disk.read_into(source_fd, data, offset) != length or Digest.of(data) != digest:
                    return False
                if not is_clone:
                    disk.write_all(fd, data, start)
        finally:
            self._writers.release(descriptor)
        return True if self._commit(filling, number, start, length, digest) else None

    def _writer(self, filling: Filling) -> Descriptor | None:
        try:
            return self._writers.acquire(filling.id, lambda: self._open_writable(filling.id))
        except FileNotFoundError:
            with filling.lock:  # A merge holds it from forgetting the file to naming the successor.
                if filling.successor is None:
                    raise
            return None

    def _commit(
        self, filling: Filling, number: int, start: int, length: int, digest: Digest
    ) -> bool:
        with filling.lock:
            if filling.successor is not None:
                return False
            self.catalog.keep_chunk(filling.id, number, start, length, digest.raw)
            filling.add(number, length, digest)
            return True

    # --- pulls ---

    def fill(self, row: FileRow) -> Filling:
        """Open a file for pulls; it cannot be evicted until `end_filling`."""
        with self._lock:
            if (filling := self._fillings.get(row.id)) is not None:
                filling.users += 1
                return filling
        fresh = Filling(row, self.catalog.chunks(row.id))
        with self._lock:
            filling = self._fillings.setdefault(row.id, fresh)
            filling.users += 1
            return filling

    def again(self, filling: Filling) -> Filling:
        """Open it once more."""
        with self._lock:
            filling.users += 1
            return filling

    def end_filling(self, filling: Filling) -> None:
        """One pull less."""
        with self._lock:
            filling = filling.now()
            assert filling.users > 0, "ended more often than begun"
            filling.users -= 1
            if filling.users:
                return
            del self._fillings[filling.id]
        self._writers.forget(filling.id)

    def create(self, file: int, size: int) -> tuple[int, bool]:
        """Make the inode of a new row, with room for all of it.

        Returns its inode number, and whether the room is allocated or only promised.

        Raises:
            OSError: the disk refuses; nothing is left of it.
        """
        name = str(file)
        self.partial.remove(name)  # A stop may have left one behind.
        fd = self.partial.create(name)
        try:
            is_allocated = disk.allocate(fd, size)
            return ino_of(os.fstat(fd)), is_allocated
        except OSError:
            self.partial.remove(name)
            raise
        finally:
            os.close(fd)

    def allocate(self, row: FileRow) -> bool:
        """Ask again for the room that a file in `partial/` was promised.

        Raises:
            OSError: the disk refuses.
        """
        fd = self.open(row)
        try:
            writable = disk.open_writable(fd)
            try:
                return disk.allocate(writable, row.bytes)
            finally:
                os.close(writable)
        finally:
            os.close(fd)

    def place(self, row: FileRow) -> os.stat_result:
        """Move a file that has every chunk into `files/`; how it looks from now on.

        Raises:
            FileNotFoundError: its inode is gone.
        """
        assert row.content is not None, "only a content has a place"
        assert row.has_all, "a file that lacks chunks is not shown to anybody"
        fd = self.open(row)
        try:
            if not row.is_placed:
                os.fchmod(fd, READ_ONLY)
                if self.partial.stat(str(row.id)) is not None:
                    self.partial.move(str(row.id), self.files, row.content.hex)
            return os.fstat(fd)
        finally:
            os.close(fd)

    def merge(self, filling: Filling, keeper: FileRow) -> None:
        """Two files have the same content, and `filling` has all of it: one of them goes.

        A placed file stays, because views may share its inode, and is given what it lacks. One in
        `partial/` yields to the one that is whole.

        Raises:
            OSError: the disk refuses.
        """
        row = self.catalog.file(filling.id)
        assert row is not None, "a file that is being filled has a row"
        kept = self.fill(keeper)
        if not keeper.is_placed:
            filling, kept, row = kept, filling, keeper
        elif not self._complete_from(filling, row, kept):
            self.end_filling(kept)
            raise FileNotFoundError(f"{self.name_of(row)} changed while it was being read")
        # From here `filling` goes, and `kept` stays.
        with filling.lock:
            with self.catalog.change() as change:
                change.replace_file(row.id, by=kept.id)
                if row is keeper and keeper.content is not None:
                    change.set_content(kept.id, keeper.content)
            with self._lock:
                filling.successor = kept
                kept.users += filling.users
                del self._fillings[row.id]
        self.end_filling(kept)  # The use that `fill` above began.
        self.forget(row.id)
        self.unlink(row)

    def _complete_from(self, filling: Filling, row: FileRow, kept: Filling) -> bool:
        missing = [c for c in self.catalog.chunks(row.id) if not kept.have >> c.number & 1]
        if not missing:
            return True
        fd = self.open(row)
        try:
            for chunk in missing:
                with self.scratch.take() as buffer:
                    data = buffer[: chunk.length]
                    if disk.read_into(fd, data, chunk.start) != chunk.length:
                        return False
                    if Digest.of(data) != chunk.digest:
                        return False
                    self.write_chunk(kept, chunk.number, chunk.start, chunk.digest, data)
        finally:
            os.close(fd)
        return True

    # --- going away ---

    def in_use(self) -> tuple[frozenset[int], frozenset[int]]:
        """Files that pulls have open, and files of which a chunk is being served."""
        with self._lock:
            return frozenset(self._fillings), frozenset(self._reading)

    def promised_bytes(self) -> tuple[int, int]:
        """What open pulls have yet to write, and how much of that is not allocated."""
        with self._lock:
            fillings = list(self._fillings.values())
        return (
            sum(filling.missing_bytes for filling in fillings),
            sum(filling.missing_bytes for filling in fillings if not filling.is_allocated),
        )

    def forget(self, file: int) -> None:
        """Open the file afresh the next time."""
        self._readers.forget(file)
        self._writers.forget(file)

    def unlink(self, row: FileRow) -> None:
        """Remove a file whose row is gone; who reads it keeps its bytes."""
        self.forget(row.id)
        for folder, name in self._places(row):
            found = folder.stat(name)
            if found is not None and ino_of(found) == row.ino:
                folder.remove(name)
