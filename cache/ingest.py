"""One pull's hold on the store: what is here, and where what arrives is written."""

import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

from damselfly.cache import disk
from damselfly.cache.admission import Admission
from damselfly.cache.catalog import ChunkRow
from damselfly.cache.files import Files, Filling
from damselfly.cache.room import RoomKeeper, human
from damselfly.cache.sealing import Sealing
from damselfly.cache.syncer import Syncer
from damselfly.errors import DigestMismatchError, IntegrityError, LocalProtocolError, StoreFullError
from damselfly.model.bitmap import Bitmap
from damselfly.model.digest import Digest
from damselfly.model.manifest import Chunk, Manifest, ManifestFile
from damselfly.model.plan import Plan


class Ingest:
    """Made by `Store.ingest`; holds the wanted files open for writing until `close()`.

    Any thread may call, several at once; `write` is the hot path and takes no lock of the store
    while it writes. What `write` has returned from survives kill -9. Chunks are by index in `plan`.
    """

    def __init__(
        self,
        plan: Plan,
        digests: Sequence[Digest | None],
        fillings: Mapping[int, Filling],
        *,
        files: Files,
        admission: Admission,
        sealing: Sealing,
        room: RoomKeeper,
        syncer: Syncer,
    ) -> None:
        self.plan = plan
        self._given = list(digests)
        self._fillings = dict(fillings)
        self._files = files
        self._admission = admission
        self._sealing = sealing
        self._room = room
        self._syncer = syncer
        held = sum(len(filling.now().digests) for filling in self._fillings.values())
        self.has_others = files.catalog.totals()[2] > held
        """Other files of the store have chunks that these may have too."""
        self._lock = threading.Lock()
        self._active = 1  # Calls at work, and one until `close`.
        self._is_closed = False

    @property
    def wanted(self) -> frozenset[int]:
        """The file numbers that this pull is about."""
        return frozenset(self._fillings)

    def have(self) -> Bitmap:
        """Which chunks of the wanted files are here: verified, and committed."""
        bits = 0
        for number, filling in self._fillings.items():
            bits |= filling.now().have << self.plan.firsts[number]
        return Bitmap(self.plan.chunk_count, bits)

    def digests(self) -> list[Digest | None]:
        """The digest of every chunk as far as known: those given, and of those that are here."""
        known = list(self._given)
        for number, filling in self._fillings.items():
            first = self.plan.firsts[number]
            for within, digest in list(filling.now().digests.items()):
                known[first + within] = digest
        return known

    def write(self, index: int, digest: Digest, data: bytes | bytearray | memoryview) -> None:
        """Keep a chunk that the caller has verified; it is committed when this returns.

        A chunk that is here already is not written again.

        Raises:
            StoreFullError: the disk, or the quota, is full.
            DigestMismatchError: the chunk is here already, and is something else.
            IntegrityError: the disk refuses.
        """
        span = self.plan.span(index)
        number = index - self.plan.firsts[span.file]
        with self._working(), memoryview(data) as view, self._disk_errors(index):
            assert view.nbytes == span.length, "a chunk of another length than planned"
            while not self._is_here(index, number, self._filling(span.file), digest):
                filling = self._filling(span.file)
                if self._files.write_chunk(filling, number, span.start, digest, view.cast("B")):
                    self._syncer.note(filling.id, number, span.length)

    def copy_local(self, index: int, digest: Digest) -> bool:
        """Take the chunk from another place in the store; False: it is not here, or no good.

        Raises:
            StoreFullError: as `write`.
            IntegrityError: as `write`.
        """
        span = self.plan.span(index)
        number = index - self.plan.firsts[span.file]
        with self._working(), self._disk_errors(index):
            while not self._is_here(index, number, self._filling(span.file), digest):
                filling = self._filling(span.file)
                source = self._files.locate(digest)
                if source is None:
                    return False
                with source:
                    if source.length != span.length:
                        return False
                    kept = self._files.clone_chunk(filling, number, span.start, digest, source)
                if kept is False:
                    return False
                self._syncer.note(filling.id, number, span.length)
        return True

    # --- whole files ---

    def share(self, file: int) -> float:
        """How much of a wanted file's chunks is here, as a part of all of them."""
        count = len(self.plan.files[file].lengths)
        return self._filling(file).have.bit_count() / count if count else 1.0

    def content(self, file: int) -> Digest | None:
        """What a wanted file is, by its chunks; None while it lacks some."""
        digests, planned = self._filling(file).digests, self.plan.files[file]
        known = [digests.get(number) for number in range(len(planned.lengths))]
        chunks = tuple(
            Chunk(digest, length)
            for digest, length in zip(known, planned.lengths, strict=True)
            if digest is not None
        )
        return ManifestFile(planned.path, chunks).id if len(chunks) == len(known) else None

    def read(self, index: int, view: memoryview) -> Digest | None:
        """Read a chunk back, verified; None: it is not here, or was bad and is here no more.

        Raises:
            IntegrityError: the disk refuses.
        """
        span = self.plan.span(index)
        number = index - self.plan.firsts[span.file]
        with self._working(), self._disk_errors(index):
            while True:
                filling = self._filling(span.file)
                digest = filling.digests.get(number)
                if digest is None:
                    return None
                chunk = ChunkRow(number, span.start, span.length, digest)
                if self._files.read_chunk(filling.id, chunk, view):
                    return digest
                if self._filling(span.file) is filling:
                    return None  # Else it became another file meanwhile, which has the chunk.

    def discard(self, file: int) -> None:
        """A wanted file is not what its origin published: keep nothing that this pull began.

        A file that an artifact of this store has, under whatever name, stays as it is.
        """
        with self._working(), self._room.lock:
            self._admission.discard(self.plan, file, self._filling(file).id)

    def seal(self, manifest: Manifest) -> None:
        """Make the wanted files whole, and record the artifact; may be called again.

        `manifest` is of all the plan's files, or of exactly the wanted ones: after a first contact
        that took a selection, nobody knows the digests of the others.

        Raises:
            ChunkNotFoundError: a wanted file lacks a chunk: see `have()` again.
            ManifestError: the manifest is of other files than those pulled.
        """
        with self._working():
            plan, fillings = self.plan, self._fillings
            if len(manifest.files) != len(plan.files) and len(manifest.files) == len(fillings):
                chosen = sorted(fillings)
                plan = Plan(plan.ref, tuple(plan.files[number] for number in chosen))
                fillings = {place: fillings[number] for place, number in enumerate(chosen)}
            self._sealing.seal(plan, manifest, fillings)

    def close(self) -> None:
        """Let go, when the calls at work have ended; what is here stays for the next pull."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._end_work()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Ingest {self.plan.ref} {len(self.have())}/{self.plan.chunk_count}>"

    def _filling(self, file: int) -> Filling:
        return self._fillings[file].now()

    @staticmethod
    def _is_here(index: int, number: int, filling: Filling, digest: Digest) -> bool:
        held = filling.digests.get(number)
        if held is not None and held != digest:
            raise DigestMismatchError(str(held), str(digest), f"a second source of chunk {index}")
        return held is not None

    @contextmanager
    def _disk_errors(self, index: int) -> Generator[None, None, None]:
        try:
            yield
        except OSError as exc:
            doing = f"writing chunk {index} of {self.plan.ref}"
            if disk.is_full(exc):
                missing, _ = self._files.promised_bytes()
                raise StoreFullError(
                    f"{doing} to the store {self._room.path}: open pulls have {human(missing)}"
                    f" to write, its file system has {human(self._room.free_bytes())} free"
                ) from exc
            raise IntegrityError(doing) from exc

    @contextmanager
    def _working(self) -> Generator[None, None, None]:
        with self._lock:
            if self._is_closed:
                raise LocalProtocolError(f"the pull of {self.plan.ref} is closed")
            self._active += 1
        try:
            yield
        finally:
            self._end_work()

    def _end_work(self) -> None:
        with self._lock:
            self._active -= 1
            if self._active:
                return
        with self._room.lock:
            for filling in self._fillings.values():
                self._files.end_filling(filling)
            self._admission.abandon({filling.now().id for filling in self._fillings.values()})
