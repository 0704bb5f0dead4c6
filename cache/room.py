"""Making room, and taking away: who goes when a pull needs space, and in which order.

A removal commits first and unlinks after: from the commit on nobody is handed the artifact, and a
stop in between leaves names without a row, which the next start removes. The other way round it
would leave rows without files: chunks that we promise and do not have.

Leases are read from disk when it matters, because other processes make them (`lease.py`).
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

from damselfly.cache import disk
from damselfly.cache.catalog import ArtifactRow, Catalog, FileRow
from damselfly.cache.directory import Directory
from damselfly.cache.evict import Candidate, Choice, Room, available, choose, evictable, shortage
from damselfly.cache.files import Files
from damselfly.cache.lease import Leases
from damselfly.cache.limits import Limits
from damselfly.cache.report import Removed
from damselfly.cache.views import Views
from damselfly.clock import Clock
from damselfly.errors import StoreFullError
from damselfly.model.digest import Digest

logger = logging.getLogger(__name__)

_HOLDERS_TOLD_MAX = 5


class RoomKeeper:
    """Reserves, evicts, removes.

    `lock` serialises whatever changes which files and artifacts there are: admission and sealing
    of pulls, views, removals. Reading and writing chunks never take it.
    """

    def __init__(
        self,
        root: Directory,
        *,
        catalog: Catalog,
        files: Files,
        views: Views,
        leases: Leases,
        limits: Limits,
        clock: Clock,
    ) -> None:
        self.lock = threading.RLock()
        self._root = root
        self._catalog = catalog
        self._files = files
        self._views = views
        self._leases = leases
        self._limits = limits
        self._clock = clock
        self.removed: Callable[[str, Removed], None] = lambda reason, removed: None
        """Hears of what was taken away, and why: `capacity`, `free_space` or `removed`."""

    def reserve(self, need: int, doing: str) -> None:
        """Make sure that `need` more bytes may be promised; evict for it if that is what it takes.

        Raises:
            StoreFullError: not even evicting all that may go would do.
        """
        with self.lock:
            room = self._now()
            wanted = shortage(room, need, self._limits)
            if not wanted.should:
                return
            candidates, rows = self._candidates()
            sizes = {row.id: row.bytes for row in self._catalog.files() if row.ino is not None}
            pulled, _ = self._files.in_use()
            freeable = {file: size for file, size in sizes.items() if file not in pulled}
            choice = choose(candidates, freeable, wanted)
            if not choice.is_enough:
                raise StoreFullError(
                    self._told(
                        doing=doing,
                        need=need,
                        room=room,
                        choice=choice,
                        candidates=candidates,
                        sizes=sizes,
                    )
                )
            for victim in choice.victims:
                logger.info("artifact.evicted", extra={"artifact": victim.name, "for": doing})
            chosen = {victim.key for victim in choice.victims}
            removed = self.drop(
                [row for row in self._catalog.artifacts() if row.id in chosen],
                [row for row in rows if -row.id in chosen],
            )
            is_disk_full = need + self._limits.keep_free_bytes > room.free_bytes
            self.removed("free_space" if is_disk_full else "capacity", removed)

    def available(self, apart: Digest | None, kept: Collection[int]) -> int:
        """What could be promised in all, if everything went but the artifact `apart` and `kept`."""
        with self.lock:
            candidates, _ = self._candidates()
            pulled, _ = self._files.in_use()
            freeable = {
                row.id: row.bytes
                for row in self._catalog.files()
                if row.ino is not None and row.id not in pulled and row.id not in kept
            }
            others = [one for one in candidates if one.name != str(apart)]
            return available(self._now(), evictable(others, freeable), self._limits)

    def _now(self) -> Room:
        own, _, _ = self._catalog.totals()
        _, unallocated = self._files.promised_bytes()
        return Room(own_bytes=own, free_bytes=self.free_bytes() - unallocated)

    @property
    def path(self) -> str:
        """Where the store is, for messages."""
        return self._root.path

    def free_bytes(self) -> int:
        """What the store's file system has left for us."""
        return disk.free_bytes(self._root.fd)

    def held_by(self, artifact: ArtifactRow, files: Iterable[int]) -> str | None:
        """Why an artifact may not be evicted."""
        leases = self._leases.of(artifact.digest, self._clock.wall_ns())
        if leases:
            return "leased by " + ", ".join(lease.id for lease in leases)
        if artifact.pinned_ns is not None:
            return "pinned"
        return self._used_by(files)

    def _used_by(self, files: Iterable[int]) -> str | None:
        pulled, served = self._files.in_use()
        files = set(files)
        if not pulled.isdisjoint(files):
            return "being pulled"
        if not served.isdisjoint(files):
            return "being served"
        return None

    def _candidates(self) -> tuple[list[Candidate], list[FileRow]]:
        files_of: dict[int, set[int]] = {}
        for artifact, file in self._catalog.file_links():
            files_of.setdefault(artifact, set()).add(file)
        candidates = [
            Candidate(
                row.id,
                str(row.digest),
                row.used_ns,
                frozenset(files_of[row.id]),
                self.held_by(row, files_of[row.id]),
            )
            for row in self._catalog.artifacts()
            if row.id in files_of
        ]
        leftovers = self._catalog.leftovers()
        candidates += [
            Candidate(
                -row.id,
                self._files.name_of(row),
                row.used_ns,
                frozenset({row.id}),
                self._used_by({row.id}),
            )
            for row in leftovers
        ]
        return candidates, leftovers

    def _told(
        self,
        *,
        doing: str,
        need: int,
        room: Room,
        choice: Choice,
        candidates: Sequence[Candidate],
        sizes: dict[int, int],
    ) -> str:
        """Everything somebody needs who wants to make room."""
        limits = self._limits
        parts = [
            f"{doing}: the store {self._root.path} needs {human(need)};"
            f" its file system has {human(room.free_bytes)} free,"
            f" of which {human(limits.keep_free_bytes)} stay free"
        ]
        if limits.capacity_bytes is not None:
            parts.append(f"{human(room.own_bytes)} of its {human(limits.capacity_bytes)} are taken")
        parts.append(f"{human(choice.evictable_bytes)} could be evicted")
        held = sorted(
            ((sum(sizes.get(f, 0) for f in one.files), one) for one in candidates if one.held_by),
            key=lambda pair: (-pair[0], pair[1].key),
        )
        for size, one in held[:_HOLDERS_TOLD_MAX]:
            parts.append(f"{one.name} ({human(size)}) is {one.held_by}")
        if len(held) > _HOLDERS_TOLD_MAX:
            parts.append(f"and {len(held) - _HOLDERS_TOLD_MAX} more are held")
        return "; ".join(parts)

    def drop(self, artifacts: Sequence[ArtifactRow], leftovers: Sequence[FileRow]) -> Removed:
        """Take artifacts away, and every file that nothing names then and no pull has open."""
        with self.lock:
            rows = {row.id: row for row in leftovers}
            naming = Counter(file for _, file in self._catalog.file_links())
            for artifact in artifacts:
                found = {row.id: row for row in self._catalog.artifact_files(artifact.id).values()}
                naming.subtract(found.keys())
                rows |= found
            pulled, _ = self._files.in_use()
            going = [row for row in rows.values() if naming[row.id] <= 0 and row.id not in pulled]
            with self._catalog.change() as change:
                for artifact in artifacts:
                    change.drop_artifact(artifact.id)
                for row in going:
                    change.drop_file(row.id)
            with disk.disk_errors("removing files from the store"):
                for artifact in artifacts:
                    self._views.remove(artifact.digest)
                for row in going:
                    self._files.unlink(row)
            return Removed(
                artifacts=tuple(artifact.digest for artifact in artifacts),
                file_count=len(going),
                bytes=sum(row.bytes for row in going if row.ino is not None),
            )


def human(count: int) -> str:
    """Bytes for a person."""
    if abs(count) < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if abs(value) < 1000:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} TB"
