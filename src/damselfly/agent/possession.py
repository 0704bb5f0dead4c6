"""No adoption without possession: an origin that names bytes has to show that it has them.

The threat. A node's store holds models of many owners, and everything in it is found by digest.
Whoever makes pods names refs, and may run a server: `https://their.host/` that publishes a manifest
with the chunk digests of somebody's private model (a list of hashes is not guarded like the model),
or a listing with the digest of somebody's private file. Its own credentials open it, for it says
yes to everything, and the node would assemble the private model out of its store, or out of its
peers' stores, and mount it.

The rule. Before files are shown to a pod, the ref's own origin, asked with the pod's own
credentials, has served spans of each of them that equal the bytes in the store. Where the spans lie
nobody can foresee: a key of the store draws them for the content of a file, every hour anew. What
is pulled, from where, and what lies in the store does not matter: nothing that is not shown leaks.
Exempt is what the origin delivered itself: at first contact every digest comes from somebody of the
swarm who read those bytes from it (agents are trusted with that, as always where a ref has no pin).

What is kept. That this ref's origin has this artifact stays true, and is kept under a digest with
the store's own key; so each node asks once for a ref and an artifact, and remembers its own first
contacts. A selection of files counts for that selection only.

Luck. An origin that has most of a file and lacks a part of it (a private fine-tune of a public
model) passes with the probability that all spans miss what it lacks: 4 spans for each file and one
more for every 512 MiB. With 6 % of 16 GiB lacking, in four files, that is 0.05; many more spans
would cost more requests than reading does. So luck is not to be tried again. For an hour a chunk of
which an origin had other bytes makes every file with that chunk harder to show, whoever names it:

    failures   what is compared of a file
    0          4 spans, and one for every 512 MiB
    1          a span of every chunk; all of it up to 64 MiB
    2          four spans of every chunk
    3          all of it

Nobody is refused: who has the bytes shows them. Nothing goes by hosts, ports, refs or artifacts,
which cost an attacker nothing, and which others share. Who breaks off once it saw what is asked of
it has failed once, however often, for an origin that is only ill does so too.

What an attacker can still do. Each hour and node it has one draw of those few spans for a file: in
the example one in twenty passes. A second one must have a part of every chunk, so what lacks a
whole chunk fails for sure. By failing three times it makes others who have the file, and show it by
a new ref within the hour, serve all of it once; it learns nothing by that, and keeps nobody out.

Spans are a sample. An origin that names other files than there are, each a few private chunks among
many of its own, has most of each of them: it passes with nearly any draw. So who guards a model
keeps its digests as secret as its bytes. Who commands the agent (`damselfly pull`) is not asked for
anything: it may read the store anyway.
"""

import logging
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Awaitable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from itertools import accumulate, count, islice
from typing import Protocol, TypeVar

from blake3 import blake3

from damselfly.agent import proof
from damselfly.agent.holdings import Shown
from damselfly.cache.store import Store
from damselfly.clock import Clock
from damselfly.errors import (
    ArtifactNotFoundError,
    DamselflyError,
    OriginDeniedError,
    OriginUnavailableError,
)
from damselfly.model.digest import Digest
from damselfly.model.manifest import ManifestFile
from damselfly.model.plan import Plan, PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin.port import OriginStream
from damselfly.origin.together import together

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

SPAN_BYTES = 4096
SPANS_MIN = 4
WHOLE_BYTES_MAX = 16 * SPAN_BYTES
"""A file that is no longer is compared whole."""
BYTES_PER_SPAN = 512 << 20
TOGETHER_MAX = 4
SPANS_TOGETHER_MAX = 4
"""Of one file, where they are many."""
HARDER_WHOLE_BYTES_MAX = 64 << 20
"""Once somebody has failed, a file that is no longer is compared whole."""
SPANS_OF_CHUNK = (0, 1, 4)
"""By the number of failures; after more a file is compared whole."""
FAILURES_COUNTED = len(SPANS_OF_CHUNK)
FAILED_S = 3600.0
FAILED_MAX = 4096
"""Chunks of which failures are remembered."""
DRAW_S = 3600
_MARK = b"damselfly-possession/1\n"
_SPANS_MARK = b"damselfly-spans/1\n"


class Reading(Protocol):
    """Reads a span of a file where it was proved, and with whose credentials it was."""

    def __call__(
        self, file: PlannedFile, start: int, stop: int, /
    ) -> AbstractAsyncContextManager[OriginStream]:
        """Read bytes `[start, stop)`; see `Origin.open`."""
        ...


class Work(Protocol):
    """Runs what touches the disk in a worker."""

    def __call__(self, function: "partial[_T]", /) -> Awaitable[_T]:
        """Run it."""
        ...


def key_of(store: Store, ref: Ref, shown: Shown) -> Digest:
    """What a store keeps it under that the origin of `ref` has these files."""
    hasher = blake3(_MARK, key=store.proofs.key)
    files = "all" if shown.files is None else ",".join(map(str, sorted(shown.files)))
    for part in (str(ref.unpinned), str(shown.artifact), files):
        data = part.encode()
        hasher.update(b"%d:" % len(data) + data)
    return Digest(hasher.digest())


def is_known(store: Store, ref: Ref, shown: Shown) -> bool:
    """Whether the origin has shown these files, or is this machine. Reads the disk."""
    whole = Shown(shown.artifact, None)
    return not proof.is_needed(ref) or any(
        store.proofs.proved_ns(key_of(store, ref, one)) is not None for one in (shown, whole)
    )


def note(store: Store, ref: Ref, shown: Shown, now_ns: int) -> None:
    """The origin has delivered, or shown, these files. Writes to the disk."""
    if proof.is_needed(ref):
        store.proofs.add(key_of(store, ref, shown), now_ns)


class Possession:
    """Asks origins to show what they name. Belongs to one event loop; holds no credentials."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._failures = Failures()

    async def prove(self, ref: Ref, plan: Plan, shown: Shown, read: Reading, *, work: Work) -> None:
        """Make sure that the origin of `ref` has these files, which are here; `plan` is theirs.

        Returns without having proved it where the files are gone: `is_known` tells.

        Raises:
            OriginDeniedError: it has other bytes: nobody may see these through it.
            OriginUnavailableError, OriginChangedError, OriginNotFoundError: it does not say.
        """
        if await work(partial(is_known, self._store, ref, shown)):
            return
        manifest = self._store.manifest(shown.artifact)
        if manifest is None:
            return  # An eviction took it: there is nothing to show, and nothing is noted.
        planned = {file.path: file for file in plan.files}
        numbers = range(len(manifest.files)) if shown.files is None else sorted(shown.files)
        files = [
            (manifest.files[number], planned.get(manifest.files[number].path)) for number in numbers
        ]
        try:
            wrong = await together(
                (partial(self._compare, *each, read, work) for each in files), TOGETHER_MAX
            )
        except ArtifactNotFoundError:
            return  # As above.
        except OriginUnavailableError as exc:
            raise OriginUnavailableError(f"having {ref.safe} show what it names") from exc
        found = next((path for path in wrong if path is not None), None)
        if found is not None:
            raise OriginDeniedError(
                f"{ref.safe} names {shown.artifact}, and does not have the bytes of {found}"
            )
        await work(partial(note, self._store, ref, shown, self._clock.wall_ns()))
        logger.info("origin.possesses", extra={"ref": ref.safe, "artifact": str(shown.artifact)})

    async def has(
        self, planned: PlannedFile, file: ManifestFile, read: Reading, *, work: Work
    ) -> bool:
        """Whether the origin shows that what it planned is this file, which is here.

        No where it would have to show all of it: then it is read like any other.
        """
        if self._failures.of(file, self._clock.monotonic_s()) >= FAILURES_COUNTED:
            return False
        try:
            wrong = await self._compare(file, planned, read, work)
        except DamselflyError as exc:  # Then it is read like any other; that says what is wrong.
            logger.info("file.unproved", extra={"path": file.path, "error": exc})
            return False
        return wrong is None

    async def _compare(
        self, file: ManifestFile, planned: PlannedFile | None, read: Reading, work: Work
    ) -> str | None:
        """The path of a file of which a span differs; None: they are equal."""
        if planned is None or planned.bytes != file.bytes:
            return file.path
        failures = self._failures.of(file, self._clock.monotonic_s())
        turn = self._clock.wall_ns() // (DRAW_S * 10**9)
        spans = drawn(file, seed_of(self._store.proofs.key, file, turn), failures)
        are_many = 0 < failures < FAILURES_COUNTED and file.bytes > HARDER_WHOLE_BYTES_MAX
        width = SPANS_TOGETHER_MAX if are_many else 1
        starts = tuple(accumulate((chunk.length for chunk in file.chunks), initial=0))
        while batch := list(islice(spans, width)):
            jobs = (
                partial(self._is_equal, file, planned, starts[span[0]], span, read, work)
                for span in batch
            )
            if not all(await together(jobs, width)):
                return file.path
        return None

    async def _is_equal(
        self,
        file: ManifestFile,
        planned: PlannedFile,
        offset: int,
        span: tuple[int, int, int],
        read: Reading,
        work: Work,
    ) -> bool:
        index, start, stop = span
        digest = file.chunks[index].digest
        here = await work(partial(_read, self._store, digest, start, stop))
        if here is None:
            raise ArtifactNotFoundError(f"{file.path} has just gone from the store")
        there = bytearray(stop - start)
        is_whole_anyway = file.bytes <= WHOLE_BYTES_MAX
        try:
            async with read(planned, offset + start, offset + stop) as stream:
                await stream.readinto(memoryview(there))
        except DamselflyError:
            if not is_whole_anyway:
                self._failures.note(digest, self._clock.monotonic_s(), 1)
            raise
        if here == bytes(there):
            return True
        if not is_whole_anyway:
            self._failures.note(digest, self._clock.monotonic_s())
        return False


class Failures:
    """Of which chunks origins lately had other bytes, and how often. Bounded, and pure."""

    def __init__(self) -> None:
        self._failed: OrderedDict[Digest, tuple[int, float]] = OrderedDict()
        self._forgotten = 0, 0.0
        """The failures of chunks that had to make room, and when: they count for every file."""

    def __len__(self) -> int:
        return len(self._failed)

    def of(self, file: ManifestFile, now_s: float) -> int:
        """How often somebody has failed lately with a chunk of this file."""
        count = _lately(self._forgotten, now_s)
        if self._failed:
            failed = {chunk.digest for chunk in file.chunks} & self._failed.keys()
            count = max((count, *(_lately(self._failed[digest], now_s) for digest in failed)))
        return count

    def note(self, chunk: Digest, now_s: float, count_max: int = FAILURES_COUNTED) -> None:
        """Somebody has failed with this chunk; that makes no more than `count_max` of it."""
        before = _lately(self._failed.pop(chunk, (0, 0.0)), now_s)
        self._failed[chunk] = max(before, min(before + 1, count_max)), now_s
        if len(self._failed) > FAILED_MAX:
            # A flood of others frees nobody: what is forgotten counts for all.
            least = min(self._failed, key=lambda each: _lately(self._failed[each], now_s))
            count, failed_s = self._failed.pop(least)
            if count := _lately((count, failed_s), now_s):
                self._forgotten = (
                    max(count, _lately(self._forgotten, now_s)),
                    max(failed_s, self._forgotten[1]),
                )


def _lately(failed: tuple[int, float], now_s: float) -> int:
    count, failed_s = failed
    return count if now_s - failed_s < FAILED_S else 0


def seed_of(key: bytes, file: ManifestFile, turn: int) -> bytes:
    """What decides where the spans of a file lie, by its content alone, in one stretch of time."""
    return blake3(_SPANS_MARK + b"%d:" % turn + file.id.raw, key=key).digest()


def drawn(file: ManifestFile, seed: bytes, failures: int = 0) -> Iterator[tuple[int, int, int]]:
    """Spans of a file to compare: the chunk, and where in it; in chunks drawn by their bytes.

    After failures they are in every chunk, or all of it.
    """
    whole_bytes_max = HARDER_WHOLE_BYTES_MAX if failures else WHOLE_BYTES_MAX
    if file.bytes <= whole_bytes_max or failures >= FAILURES_COUNTED:
        for index, chunk in enumerate(file.chunks):
            yield index, 0, chunk.length
        return
    numbers = count()
    if failures:
        for index, chunk in enumerate(file.chunks):
            for _ in range(SPANS_OF_CHUNK[failures]):
                yield index, *_around(_below(chunk.length, next(numbers), seed), chunk.length)
        return
    stops = tuple(accumulate(chunk.length for chunk in file.chunks))
    for number in islice(numbers, SPANS_MIN + file.bytes // BYTES_PER_SPAN):
        byte = _below(file.bytes, number, seed)
        index = bisect_right(stops, byte)
        length = file.chunks[index].length
        yield index, *_around(byte - (stops[index] - length), length)


def _below(limit: int, number: int, seed: bytes) -> int:
    return int.from_bytes(blake3(b"%d" % number, key=seed).digest(16)) % limit


def _around(byte: int, length: int) -> tuple[int, int]:
    start = max(0, min(byte, length - SPAN_BYTES))
    return start, min(length, start + SPAN_BYTES)


def _read(store: Store, digest: Digest, start: int, stop: int) -> bytes | None:
    located = store.locate(digest)
    if located is None:
        return None
    with located:
        return os.pread(located.fd, stop - start, located.offset + start)
