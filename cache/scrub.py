"""Re-read what is on disk, and take back what is wrong.

Reads go past the page cache where the file system can (`O_DIRECT`): what is asked is whether the
disk still has the bytes, and a scrub of a large store must not push the pods' pages out of memory.
A file found wrong is not thrown away: its bad chunks lose their rows, its inode stays where the
views have it, and the next pull of the same content writes those chunks in place.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

from damselfly.cache import disk
from damselfly.cache.catalog import ChunkRow, FileRow
from damselfly.cache.files import Files, ino_of
from damselfly.cache.views import Views
from damselfly.model.digest import Digest


@dataclass(frozen=True, slots=True)
class Bad:
    """A chunk that is wrong on disk; `actual` None: it cannot be read."""

    chunk: ChunkRow
    actual: Digest | None


class Scrub:
    """Any thread may call; several files may be re-read at once."""

    def __init__(self, files: Files, views: Views) -> None:
        self._files = files
        self._views = views

    def check(self, row: FileRow, on_bytes: Callable[[int], None] | None = None) -> list[Bad]:
        """Hash every chunk that a file has, drop the wrong ones, believe the rest again."""
        while (fd := self._open(row)) is None:
            known, now = row, self._files.catalog.file(row.id)
            if now is None:
                return []  # An eviction took it.
            row = now
            if not row.lies_elsewhere(known):
                chunks = self._files.catalog.chunks(row.id)
                self._files.lose(row)
                return [Bad(chunk, None) for chunk in chunks]
        chunks = self._files.catalog.chunks(row.id)
        try:
            before = os.fstat(fd)
            seemed_right = self._files.looks_right(row, before) and not (
                row.is_suspect or row.was_repaired
            )
            if before.st_size != row.bytes:
                before = self._resize(fd, row.bytes)
            bad = self._hash_all(fd, chunks, on_bytes)
            self._files.drop_chunks(row, [one.chunk for one in bad])
            if bad or not seemed_right:
                self._believe(row, before, os.fstat(fd), is_good=not bad)
        finally:
            os.close(fd)
        return bad

    def is_wrong(self, row: FileRow, chunk: ChunkRow) -> bool:
        """Hash one chunk, and change nothing."""
        try:
            fd = self._files.open(row)
        except FileNotFoundError:
            return True
        try:
            return bool(self._hash_all(fd, [chunk], None))
        finally:
            os.close(fd)

    def _open(self, row: FileRow) -> int | None:
        try:
            return self._files.open(row)
        except FileNotFoundError:
            if not self._views.rescue(row):
                return None
        try:
            return self._files.open(row)
        except FileNotFoundError:
            return None

    def _believe(
        self, row: FileRow, before: os.stat_result, after: os.stat_result, *, is_good: bool
    ) -> None:
        changed = before.st_mtime_ns != after.st_mtime_ns
        if changed and row.is_placed:
            return  # Somebody was writing while we read: it stays suspect.
        with self._files.catalog.change() as change:
            if is_good and row.is_whole:
                change.set_whole(row.id, ino_of(after), after.st_mtime_ns)
            else:
                change.set_believed(row.id, None)

    @staticmethod
    def _resize(fd: int, size: int) -> os.stat_result:
        """Give the inode its length back, whoever changed it; the hashes say what is left."""
        writable = disk.open_writable(fd)
        try:
            os.ftruncate(writable, size)
        finally:
            os.close(writable)
        return os.fstat(fd)

    def _hash_all(
        self, fd: int, chunks: list[ChunkRow], on_bytes: Callable[[int], None] | None
    ) -> list[Bad]:
        direct = disk.open_direct(fd)
        bad: list[Bad] = []
        try:
            for chunk in chunks:
                actual = self._hash(fd, direct, chunk)
                if actual != chunk.digest:
                    bad.append(Bad(chunk, actual))
                if on_bytes is not None:
                    on_bytes(chunk.length)
        finally:
            if direct is not None:
                os.close(direct)
        return bad

    def _hash(self, fd: int, direct: int | None, chunk: ChunkRow) -> Digest | None:
        with self._files.scratch.take() as buffer:
            try:
                lead = chunk.start % disk.BLOCK_BYTES
                room = -(-(lead + chunk.length) // disk.BLOCK_BYTES) * disk.BLOCK_BYTES
                if direct is not None:
                    count = os.preadv(direct, [buffer[:room]], chunk.start - lead)
                    if count >= lead + chunk.length:
                        return Digest.of(buffer[lead : lead + chunk.length])
                data = buffer[: chunk.length]
                if disk.read_into(fd, data, chunk.start) == chunk.length:
                    return Digest.of(data)
            except OSError:
                return None
        return None
