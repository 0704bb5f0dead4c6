"""What a start does before anything else: make the account and the disk agree.

Whatever the last agent was doing when it stopped, each difference has one meaning:

| on disk | in the account | so |
|---|---|---|
| a name | no row | a stranger: made before its commit, or dropped after it; removed |
| no inode | a row | lost: linked back from a view if one has it, else its chunks are missing |
| in `files/` | not placed | stopped between rename and commit: placed if whole, else moved back |
| in `partial/` | placed | a power cut took the rename back: renamed again |
| size or mtime differ | whole | suspect: re-hashed before use |
| perhaps not written | unsynced, and another boot | re-hashed now: at most what 2 s wrote |
"""

import os
import stat
from collections import Counter

from damselfly.cache import disk
from damselfly.cache.catalog import Catalog, ChunkRow, FileRow
from damselfly.cache.directory import PRIVATE, Directory
from damselfly.cache.files import Files, ino_of
from damselfly.cache.lease import Leases
from damselfly.cache.report import Reconciled
from damselfly.cache.views import Views

_BOOT = "boot_id"


class Reconciliation:
    """One run of it; nothing else uses the store meanwhile."""

    def __init__(
        self, *, catalog: Catalog, files: Files, views: Views, leases: Leases, tmp: Directory
    ) -> None:
        self._catalog = catalog
        self._files = files
        self._views = views
        self._leases = leases
        self._tmp = tmp
        self._counts: Counter[str] = Counter()

    def run(self, boot_id: str, now_ns: int) -> Reconciled:
        """Do all of it, and say what had to be done."""
        with disk.disk_errors("reconciling the store with its account"):
            self._counts["temporaries_removed"] += self._empty(self._tmp)
            needed = {file for _, file in self._catalog.file_links()}
            for row in self._catalog.files():
                self._reconcile(row, is_needed=row.id in needed)
            self._remove_strangers()
            self._rehash_unsynced(boot_id)
            self._counts["views_dropped"] += self._views.reconcile()
            self._counts["leases_expired"] += self._leases.sweep(now_ns)
        return Reconciled(**self._counts)

    @staticmethod
    def _empty(folder: Directory) -> int:
        return sum(folder.remove(name) for name in folder.names())

    def _reconcile(self, row: FileRow, *, is_needed: bool) -> None:
        if not is_needed and not row.held:
            # Nobody could tell it from a new one. (Its inode, if any, is a stranger below.)
            self._drop(row)
            self._counts["files_forgotten"] += 1
            return
        if row.ino is None:
            return
        found = self._find(row)
        if found is None and self._views.rescue(row):
            self._counts["files_recovered"] += 1
            found = self._find(row)
        if found is None:
            self._counts["files_lost"] += 1
            if is_needed:
                self._files.lose(row)
            else:
                self._drop(row)
            return
        where, stats = found
        if where is self._files.files and not row.is_placed:
            self._settle_placed(row, stats)
        elif where is self._files.partial and row.is_placed:
            assert row.content is not None, "only a content is placed"
            self._files.partial.move(str(row.id), self._files.files, row.content.hex)
            self._counts["files_moved"] += 1
        if not row.is_suspect and not self._files.looks_right(row, stats):
            with self._catalog.change() as change:
                change.set_suspect(row.id)
            self._counts["files_suspect"] += 1

    def _settle_placed(self, row: FileRow, stats: os.stat_result) -> None:
        self._counts["files_moved"] += 1
        if row.has_all:
            with self._catalog.change() as change:
                change.set_whole(row.id, ino_of(stats), stats.st_mtime_ns)
            return
        # A power cut took back commits that the rename outlived.
        assert row.content is not None, "only a content is looked for in files/"
        self._files.files.move(row.content.hex, self._files.partial, str(row.id))
        os.chmod(str(row.id), PRIVATE, dir_fd=self._files.partial.fd)

    def _find(self, row: FileRow) -> tuple[Directory, os.stat_result] | None:
        places = [(self._files.partial, str(row.id))]
        if row.content is not None:
            places.append((self._files.files, row.content.hex))
        for folder, name in places:
            stats = folder.stat(name)
            if stats is not None and stat.S_ISREG(stats.st_mode) and ino_of(stats) == row.ino:
                return folder, stats
        return None

    def _drop(self, row: FileRow) -> None:
        with self._catalog.change() as change:
            change.drop_file(row.id)

    def _remove_strangers(self) -> None:
        partial: set[str] = set()
        placed: set[str] = set()
        for row in self._catalog.files():
            if row.is_placed and row.content is not None:
                placed.add(row.content.hex)
            elif row.ino is not None:
                partial.add(str(row.id))
        for folder, known in ((self._files.partial, partial), (self._files.files, placed)):
            for name in set(folder.names()) - known:
                self._counts["strangers_removed"] += folder.remove(name)

    def _rehash_unsynced(self, boot_id: str) -> None:
        if self._catalog.meta(_BOOT) == boot_id and boot_id:
            return
        for file, numbers in self._catalog.unsynced().items():
            row = self._catalog.file(file)
            if row is None or row.ino is None:
                continue
            wanted = set(numbers)
            chunks = [one for one in self._catalog.chunks(file) if one.number in wanted]
            bad = self._bad(row, chunks)
            self._counts["chunks_rehashed"] += len(chunks)
            self._counts["chunks_dropped"] += len(bad)
            self._files.drop_chunks(row, bad)
        with self._catalog.change() as change:
            change.set_meta(_BOOT, boot_id)

    def _bad(self, row: FileRow, chunks: list[ChunkRow]) -> list[ChunkRow]:
        fd = self._files.open(row)
        try:
            return [chunk for chunk in chunks if not self._files.is_good(fd, chunk)]
        finally:
            os.close(fd)
