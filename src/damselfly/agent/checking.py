"""Checks whole files against what their origin published, before anything is sealed.

    chunks come ──> read back in order, verified, hashed ──┐
    others of the swarm say what they found ───────────────┴──> settled, or refused

`p2p/hashing.py` decides who reads what and whom to believe; here files are read, in threads of
their own, a few at a time, from the page cache that they were just written to. Only what an origin
listed is checked. A manifest that an origin left, or that this node has sealed, has digests of
chunks, which rule: the whole-file digests in it are words of whoever wrote it. Nobody believes
them; whoever wants to know asks `verified_here`. A manifest of which peers say that the plan became
it is compared with what the origin listed, by this node itself: who lies of the one would lie of
the other (`believes`).

When a file is refused, nothing that is not known to be right stays: its chunks are taken from the
store, those of every other file that nobody has found to match too, and the home of the swarm
forgets their digests. The next pull reads them anew.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Callable, Collection
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TypeVar

from damselfly.cache.store import Ingest, Store
from damselfly.clock import Clock
from damselfly.errors import (
    ChunkNotFoundError,
    DamselflyError,
    DigestMismatchError,
    LocalProtocolError,
)
from damselfly.model.chunker import CHUNK_BYTES_MAX
from damselfly.model.digest import Digest
from damselfly.model.manifest import Chunk, Manifest, ManifestFile
from damselfly.model.plan import Plan
from damselfly.p2p.hashing import Found, Hash, Hashing, HashingLimits, Refuse
from damselfly.p2p.swarm import Swarm

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

TICK_S = 0.1
"""How often is looked for chunks that came, while they come."""
WAIT_S = 0.02
"""The same when all are here, and only a word is waited for."""
STEP_CHUNKS = 8
"""Read by one call of a thread: long enough to be worth it, short enough to be ended."""


class Reading:
    """One file being read back from the store. One thread at a time."""

    def __init__(self, ingest: Ingest, plan: Plan, file: int) -> None:
        self.file = file
        self.read_bytes = 0
        self._ingest = ingest
        self._plan = plan
        self._indexes = plan.indexes(file)
        self._chunks: list[Chunk] = []
        self._hasher = hashlib.sha256()
        self._view = memoryview(bytearray(min(CHUNK_BYTES_MAX, plan.files[file].bytes)))

    @property
    def next_index(self) -> int | None:
        """The chunk that comes next; None at the end of the file."""
        at = len(self._chunks)
        return self._indexes[at] if at < len(self._indexes) else None

    def step(self, have: int) -> int | None:
        """Read on, as far as `have` (chunk indexes) goes; the chunk that cannot be read, if any.

        Raises:
            IntegrityError: the disk refuses.
        """
        for _ in range(STEP_CHUNKS):
            index = self.next_index
            if index is None or not have >> index & 1:
                return None
            length = self._plan.lengths[index]
            view = self._view[:length]
            digest = self._ingest.read(index, view)
            if digest is None:
                return index
            self._hasher.update(view)
            self._chunks.append(Chunk(digest, length))
            self.read_bytes += length
        return None

    def found(self) -> Found:
        """What the whole file is."""
        assert self.next_index is None, "read to the end"
        content = ManifestFile(self._plan.files[self.file].path, tuple(self._chunks)).id
        return Found(self.file, content, f"sha256:{self._hasher.hexdigest()}")


class Checker:
    """The checks of one pull in one swarm. Belongs to one event loop."""

    def __init__(
        self,
        store: Store,
        ingest: Ingest,
        swarm: Swarm,
        files: Collection[int],
        place: str,
        readers: Executor,
        clock: Clock,
        limits: HashingLimits | None = None,
        *,
        believes: bool = True,
    ) -> None:
        """`place` is what errors call the origin; who `believes` takes others' findings."""
        self._believes = believes
        self._store = store
        self._ingest = ingest
        self._swarm = swarm
        self._plan = plan = swarm.plan
        self._files = frozenset(files)
        self._place = place
        self._readers = readers
        self._clock = clock
        expected = {n: plan.files[n].digests for n in sorted(files) if plan.files[n].digests}
        sizes = {number: plan.files[number].bytes for number in expected}
        self.hashing = Hashing(
            expected, sizes, limits=limits, believes=believes, now=clock.monotonic_s()
        )
        self._coming = set(expected)
        """Files that are not all here yet."""
        self._readings: dict[int, Reading] = {}
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._failure: DamselflyError | None = None
        self._reporting: asyncio.Task[None] | None = None
        if not expected:
            self._ended.set()

    def __repr__(self) -> str:
        return f"<Checker {self.hashing!r}>"

    @property
    def waiting_for(self) -> str | None:
        """What holds it up, in words for people."""
        count = len(self.hashing.unsettled)
        return f"whole-file digests ({count} to go)" if count else None

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Check beside what the caller does; ended with it."""
        if self._ended.is_set():
            yield
            return
        task = asyncio.ensure_future(self._run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def settled(self) -> None:
        """Wait until every file is known to be what its origin published.

        Raises:
            DigestMismatchError: one is not.
            ChunkNotFoundError: a chunk could not be read back, and has to be fetched again.
        """
        self._changed.set()
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure
        if not self._swarm.planner.is_complete:
            raise ChunkNotFoundError(f"{self._place}: a chunk could not be read back")
        await self._tell()  # Others wait for it.

    async def keep(self) -> None:
        """Keep with the artifact, which is sealed now, what was found or believed."""
        await self._work(self._keep)

    # --- the loop ------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                while not self._ended.is_set():
                    await self._look()
                    await self._act(tasks)
                    self._mind_end()
                    is_all_here = not self._coming
                    self._changed.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(WAIT_S if is_all_here else TICK_S):
                            await self._changed.wait()
        except* DamselflyError as group:
            self._fail(_first(group))
        except* Exception as group:
            logger.exception("checking.broken", extra={"ref": self._place})
            self._fail(LocalProtocolError.found(f"checking the files of {self._place}", group))

    def _mind_end(self) -> None:
        is_lost = self._swarm.is_finished and not self._swarm.planner.is_complete
        if is_lost or not self.hashing.unsettled:
            self._ended.set()

    def _fail(self, error: DamselflyError) -> None:
        if self._failure is None:
            self._failure = error
        self._swarm.fail(error)
        self._ended.set()

    async def _look(self) -> None:
        """See what has come."""
        for file in sorted(self._coming):
            share = self._ingest.share(file)
            content = None
            if share >= 1.0:
                content = await self._work(partial(self._ingest.content, file))
            now = self._clock.monotonic_s()
            self.hashing.here(file, share, content, now)
            if content is not None:
                self._coming.discard(file)
                await self._remember(file, content)

    async def _remember(self, file: int, content: Digest) -> None:
        """What is known of a content from earlier needs no reading."""
        now = self._clock.monotonic_s()
        ours = await self._work(partial(self._store.sha256_of, content, is_ours=True))
        if ours is not None and file not in self._readings:
            self.hashing.hashed(Found(file, content, ours), now)
            return
        told = await self._work(partial(self._store.sha256_of, content))
        if told is not None:
            self.hashing.told(Found(file, content, told))

    async def _act(self, tasks: asyncio.TaskGroup) -> None:
        while (action := self.hashing.next_action(self._clock.monotonic_s())) is not None:
            match action:
                case Hash(file):
                    reading = self._readings[file] = Reading(self._ingest, self._plan, file)
                    tasks.create_task(self._read(reading))
                case Refuse():
                    await self._refuse(action)
                    return
        is_free = self._reporting is None or self._reporting.done()
        if is_free and self.hashing.is_report_due(self._clock.monotonic_s()):
            self._reporting = tasks.create_task(self._report())

    async def _report(self) -> None:
        """Tell the home, hear what others found."""
        now = self._clock.monotonic_s()
        agent, boot = self._swarm.me
        reading = {file: one.read_bytes for file, one in self._readings.items()}
        count = len(self._plan.files)
        report = self.hashing.next_report(agent, boot, count, reading, now)
        reply = await self._swarm.tell_hashes(report)
        now = self._clock.monotonic_s()
        if reply is None:
            self.hashing.unheard(now)
        else:
            self.hashing.heard(reply, now)
        self._changed.set()

    async def _tell(self) -> None:
        """Have the home hear what it has not heard yet; a home that cannot hear is let be."""
        if self._reporting is not None:
            await asyncio.wait({self._reporting})
        if self.hashing.has_news:
            await self._report()

    # --- reading ----------------------------------------------------------------------------

    async def _read(self, reading: Reading) -> None:
        file = reading.file
        planner = self._swarm.planner
        try:
            while (index := reading.next_index) is not None:
                if not planner.have >> index & 1:
                    await asyncio.sleep(TICK_S)
                    continue
                lost = await self._work(partial(reading.step, planner.have))
                if lost is not None:
                    self._lost(file, lost)
                    return
            found = await self._work(reading.found)
        finally:
            del self._readings[file]
            self._changed.set()
        await self._work(partial(self._keep_found, found, is_ours=True))
        self.hashing.hashed(found, self._clock.monotonic_s())
        self._changed.set()

    def _lost(self, file: int, index: int) -> None:
        extra = {"ref": self._place, "path": self._plan.files[file].path, "index": index}
        logger.warning("chunk.unreadable", extra=extra)
        self.hashing.lost(file)
        self._coming.add(file)
        self._swarm.lost(index)

    async def _work(self, function: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, function)

    # --- what comes of it ---------------------------------------------------------------------

    async def _refuse(self, refusal: Refuse) -> None:
        path = self._plan.files[refusal.file].path
        unsettled = set(self.hashing.unsettled)
        checked = {n for n in self._files if self._plan.files[n].digests}
        doubted = sorted(unsettled | (self._files - checked))
        for file in doubted:
            await self._work(partial(self._ingest.discard, file))
        if self._believes:  # Else the chunks are those of the manifest, which is left.
            self._swarm.refuted([index for file in doubted for index in self._plan.indexes(file)])
        await self._tell()
        raise DigestMismatchError(
            refusal.expected, refusal.actual, f"the origin ({self._place}: {path})"
        )

    def _keep_found(self, found: Found, *, is_ours: bool) -> None:
        self._store.found_whole(found.content, found.sha256, is_ours=is_ours)

    def _keep(self) -> None:
        for found in self.hashing.found_here.values():
            self._keep_found(found, is_ours=True)
        for found in self.hashing.believed.values():
            self._keep_found(found, is_ours=False)


async def verified_here(
    store: Store,
    ingest: Ingest,
    manifest: Manifest,
    files: Collection[int],
    readers: Executor,
) -> dict[str, str]:
    """Hash every one of these files on this node, believing nobody: `sha256:` by path.

    To be called between the last chunk and the seal. What this node has found before is not read
    again, and what it finds is kept with the artifact.

    Raises:
        DigestMismatchError: a file is not what the manifest says of it as a whole.
        ChunkNotFoundError: a chunk could not be read back, and has to be fetched again.
    """
    loop = asyncio.get_running_loop()
    wanted = ((n, store, ingest, manifest) for n in sorted(files))
    found = await asyncio.gather(
        *(loop.run_in_executor(readers, _verified, *each) for each in wanted)
    )
    return {manifest.files[one.file].path: one.sha256 for one in found}


def _verified(number: int, store: Store, ingest: Ingest, manifest: Manifest) -> Found:
    file = manifest.files[number]
    known = store.sha256_of(file.id, is_ours=True)
    if known is not None:
        found = Found(number, file.id, known)
    else:
        reading = Reading(ingest, ingest.plan, number)
        while reading.next_index is not None:
            if reading.step(-1) is not None:
                raise ChunkNotFoundError(f"{file.path}: a chunk could not be read back")
        found = reading.found()
        store.found_whole(found.content, found.sha256, is_ours=True)
    for digest in file.digests:
        if digest != found.sha256:
            raise DigestMismatchError(digest, found.sha256, f"whoever sent {file.path}")
    return found


def _first(group: BaseExceptionGroup[DamselflyError]) -> DamselflyError:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, DamselflyError), "the group has nothing else"
    return first
