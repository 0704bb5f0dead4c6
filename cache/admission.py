"""How a pull begins: find what is here of each file, reserve room, make the rest.

Which file a pull goes on with, first match:

1. every digest of the file known: the file with that content, whole or partial, whoever began it;
2. the file that first contact with the same plan began at the same path;
3. every digest known: a file cut alike, of which every chunk that is here has the right digest (an
   interrupted first contact under another plan); it changes hands, for its old plan has no evidence
   that its other chunks would be the same;
4. a new one.

A `partial/` name is the file's number in the catalog, not a hash of any of these keys, so that a
file changes from one key to the next without a rename.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from damselfly.cache import disk
from damselfly.cache.catalog import Catalog, FileRow
from damselfly.cache.files import Files, Filling, shape_of
from damselfly.cache.room import RoomKeeper, human
from damselfly.cache.scrub import Scrub
from damselfly.clock import Clock
from damselfly.errors import IntegrityError, StoreFullError
from damselfly.model.digest import Digest
from damselfly.model.manifest import Chunk, ManifestFile
from damselfly.model.plan import Plan

_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class _Sought:
    """A file of the plan that is not here; equal ones are one file."""

    content: Digest | None
    path: str | None  # The key of first contact, while the content is not known.
    shape: Digest
    bytes: int
    chunk_count: int


class Admission:
    """See the module. Thread-safe by the room's lock."""

    def __init__(
        self, *, catalog: Catalog, files: Files, scrub: Scrub, room: RoomKeeper, clock: Clock
    ) -> None:
        self._catalog = catalog
        self._files = files
        self._scrub = scrub
        self._room = room
        self._clock = clock

    def admit(
        self, plan: Plan, digests: Sequence[Digest | None], wanted: frozenset[int]
    ) -> dict[int, Filling]:
        """Open the wanted files for writing, with room for all of them.

        Raises:
            StoreFullError: there is no room, and none can be made.
            IntegrityError: somebody keeps changing a file while we re-read it.
        """
        with disk.disk_errors(f"beginning to pull {plan.ref}"):
            for _ in range(_ATTEMPTS):
                with self._room.lock:
                    found = {number: self._find(plan, number, digests) for number in sorted(wanted)}
                    rows = {row.id: row for row in found.values() if isinstance(row, FileRow)}
                    doubtful = [row for row in rows.values() if self._is_doubtful(row)]
                    if not doubtful:
                        return self._take(plan, found)
                for row in doubtful:  # Without the lock: it may take a minute.
                    self._scrub.check(row)
        raise IntegrityError(f"files of {plan.ref} change while they are re-read")

    def abandon(self, files: Iterable[int]) -> None:
        """Remove those files that have no chunk, no artifact and no pull: their room is dear."""
        with self._room.lock:
            files = set(files)
            empty = [row for row in self._catalog.leftovers() if row.id in files and row.held == 0]
            if empty:
                self._room.drop([], empty)

    def discard(self, plan: Plan, file: int, row_id: int) -> None:
        """Forget what was begun of a plan's file, and that the plan goes on with it."""
        row = self._catalog.file(row_id)
        if row is not None and not row.is_placed:
            self._files.drop_chunks(row, self._catalog.chunks(row.id))
        with self._catalog.change() as change:
            change.drop_contact(plan.id, plan.files[file].path)

    # --- finding ---

    def _find(self, plan: Plan, number: int, digests: Sequence[Digest | None]) -> FileRow | _Sought:
        file = plan.files[number]
        known = [digests[index] for index in plan.indexes(number)]
        chunks = tuple(
            Chunk(digest, length)
            for digest, length in zip(known, file.lengths, strict=True)
            if digest is not None
        )
        shape = shape_of(file.lengths)
        begun = self._catalog.file_of_contact(plan.id, file.path)
        if len(chunks) < len(known):
            if begun is not None and self._agree(begun, known):
                return begun
            return _Sought(None, file.path, shape, file.bytes, len(known))
        content = ManifestFile(file.path, chunks).id
        if (row := self._catalog.file_of_content(content)) is not None:
            return row
        if begun is not None and begun.content is None:
            self._agree(begun, known)
            with self._catalog.change() as change:
                change.set_content(begun.id, content)
        elif (begun := self._adoptable(shape, known)) is not None:
            with self._catalog.change() as change:
                change.set_content(begun.id, content)
                change.forget_contacts(begun.id)
        else:
            return _Sought(content, None, shape, file.bytes, len(known))
        row = self._catalog.file(begun.id)
        assert row is not None, "nobody removes a file while we have the lock"
        return row

    def _agree(self, row: FileRow, known: Sequence[Digest | None]) -> bool:
        """Drop what contradicts the digests we are told; False: the file is another's by now."""
        wrong = [
            chunk
            for chunk in self._catalog.chunks(row.id)
            if known[chunk.number] not in {None, chunk.digest}
        ]
        if wrong and row.content is not None:
            return False
        self._files.drop_chunks(row, wrong)
        return True

    def _adoptable(self, shape: Digest, known: Sequence[Digest | None]) -> FileRow | None:
        pulled, _ = self._files.in_use()
        for row in self._catalog.files_of_shape(shape):
            if row.id not in pulled and all(
                known[chunk.number] == chunk.digest for chunk in self._catalog.chunks(row.id)
            ):
                return row
        return None

    def _is_doubtful(self, row: FileRow) -> bool:
        if row.ino is None:
            return False  # Lost, and known to be: it will be made anew.
        return self._files.is_doubtful(row)

    # --- taking ---

    def _take(self, plan: Plan, found: dict[int, FileRow | _Sought]) -> dict[int, Filling]:
        # Existing files first: the eviction below must not take what we are about to use.
        taken: dict[int, Filling] = {}
        made: dict[_Sought, Filling] = {}
        doing = f"pulling {plan.ref}"
        try:
            lost: dict[int, FileRow] = {}
            for number, row in found.items():
                if isinstance(row, FileRow):
                    taken[number] = self._files.fill(row)
                    if row.ino is None:
                        lost[row.id] = row
            sought = {one for one in found.values() if isinstance(one, _Sought)}
            need = sum(one.bytes for one in sought) + sum(row.bytes for row in lost.values())
            self._room.reserve(need, doing)
            made = self._make(plan, sought)
            self._remake(lost, taken)
            self._reallocate(found, taken)
        except BaseException as exc:
            for filling in [*taken.values(), *made.values()]:
                self._files.end_filling(filling)
            self.abandon(filling.id for filling in made.values())
            if isinstance(exc, OSError) and disk.is_full(exc):
                free = self._room.free_bytes()
                raise StoreFullError(
                    f"{doing}: allocating its files in the store; {human(free)} are free"
                ) from exc
            raise
        for number, one in found.items():
            if isinstance(one, _Sought):
                filling = made[one]
                taken[number] = self._files.again(filling)
        for filling in made.values():
            self._files.end_filling(filling)
        with self._catalog.change() as change:
            change.touch_files({f.id for f in taken.values()}, self._clock.wall_ns())
        return taken

    def _make(self, plan: Plan, sought: set[_Sought]) -> dict[_Sought, Filling]:
        now_ns = self._clock.wall_ns()
        ids: dict[_Sought, int] = {}
        with self._catalog.change() as change:
            for one in sought:
                file = change.add_file(one.content, one.shape, one.bytes, one.chunk_count, now_ns)
                if one.path is not None:
                    change.set_contact(plan.id, one.path, file)
                ids[one] = file
        inodes: dict[int, tuple[int, bool]] = {}
        try:
            for one, file in ids.items():
                inodes[file] = self._files.create(file, one.bytes)
            with self._catalog.change() as change:
                for file, (ino, _) in inodes.items():
                    change.set_inode(file, ino)
        except BaseException:
            for file in inodes:
                self._files.partial.remove(str(file))
            with self._catalog.change() as change:
                for file in ids.values():
                    change.drop_file(file)
            raise
        made: dict[_Sought, Filling] = {}
        for one, file in ids.items():
            row = self._catalog.file(file)
            assert row is not None, "we have just made it"
            made[one] = self._files.fill(row)
            made[one].is_allocated = inodes[file][1]
        return made

    def _remake(self, lost: dict[int, FileRow], taken: dict[int, Filling]) -> None:
        """Give rows whose inode is gone a new one."""
        fillings = {filling.id: filling for filling in taken.values()}
        for row in lost.values():
            ino, is_allocated = self._files.create(row.id, row.bytes)
            with self._catalog.change() as change:
                change.set_inode(row.id, ino)
            self._files.forget(row.id)
            fillings[row.id].is_allocated = is_allocated

    def _reallocate(self, found: dict[int, FileRow | _Sought], taken: dict[int, Filling]) -> None:
        """Ask again for the room of files that an earlier run could not finish."""
        for number, row in found.items():
            if not isinstance(row, FileRow) or row.is_placed or row.ino is None:
                continue
            if row.held < row.chunk_count:
                taken[number].is_allocated = self._files.allocate(row)
