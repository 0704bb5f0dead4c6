"""No adoption without possession: an origin that names bytes has to show that it has them.

The threat. A node's store holds models of many owners, and everything in it is found by digest.
Whoever makes pods names refs, and may run a server: `https://their.host/` that publishes a manifest
with the chunk digests of somebody's private model (a list of hashes is not guarded like the model),
or a listing with the digest of somebody's private file. Its own credentials open it, for it says
yes to everything, and the node would assemble the private model out of its store, or out of its
peers' stores, and mount it.

The rule. Before files are shown to a pod, the ref's own origin, asked with the pod's own
credentials, has served spans of each of them that equal the bytes in the store. Where the spans lie
nobody can foresee: a key of the store draws them for the content of a file, every ten minutes anew.
What is pulled, from where, and what lies in the
store does not matter: nothing that is not shown leaks. Exempt is what the origin delivered itself:
at first contact every digest comes from somebody of the swarm who read those bytes from it
(agents are trusted with that, as always where a ref has no pin).

What is kept. That this ref's origin has this artifact stays true, and is kept under a digest with
the store's own key; so each node asks once for a ref and an artifact, and remembers its own first
contacts. A selection of files counts for that selection only.

What it cannot do. An origin that has most of an artifact and lacks a part of it (a private
fine-tune of a public model) passes with the probability that all spans miss what it lacks: 4 spans
for each file and one more for every 512 MiB. With 6 % of 16 GiB lacking, in four files, that is
0.05; many more spans would cost more requests than reading does. So luck cannot be tried at speed:

- For ten minutes the spans of a file stay where they are, whoever asks, and whether the origin
  answered wrongly, broke off or fell silent when it saw what was asked of it. That is one draw, so
  six an hour for each node: in the example one in four succeeds in an hour, on one node.
- A host that failed with an artifact rests with it for ten minutes, by whatever ref.
- Names of hosts cost nothing (a wildcard in DNS is thousands). After three failures with one
  artifact within ten minutes no origin may show it that has not done so before, for ten minutes.
  Whoever provokes that keeps others from showing it by a new ref meanwhile, and no more.

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
REFUSED_S = 600.0
REFUSED_MAX = 1024
FAILURES_MAX = 3
"""Of one artifact within REFUSED_S, by whatever hosts."""
DRAW_S = 600
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
        self._refused: OrderedDict[tuple[str, Digest], tuple[str, float]] = OrderedDict()
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
        key = (ref.location.partition("://")[2].partition("/")[0], shown.artifact)
        told, refused_s = self._refused.get(key, ("", 0.0))
        if told and self._clock.monotonic_s() - refused_s < REFUSED_S:
            raise OriginDeniedError(told)
        self._check_rest(shown.artifact)
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
            told = f"{ref.safe} names {shown.artifact}, and does not have the bytes of {found}"
            self._refused[key] = told, self._clock.monotonic_s()
            self._refused.move_to_end(key)
            if len(self._refused) > REFUSED_MAX:
                self._refused.popitem(last=False)
            self._failures.note(shown.artifact, self._clock.monotonic_s())
            raise OriginDeniedError(told)
        self._check_rest(shown.artifact)  # Others may have failed meanwhile: none runs ahead.
        await work(partial(note, self._store, ref, shown, self._clock.wall_ns()))
        logger.info("origin.possesses", extra={"ref": ref.safe, "artifact": str(shown.artifact)})

    def _check_rest(self, artifact: Digest) -> None:
        if self._failures.are_too_many(artifact, self._clock.monotonic_s()):
            raise OriginDeniedError(
                f"{FAILURES_MAX} origins have named {artifact} and did not have its bytes: no other"
                " may show it for a while"
            )

    async def has(
        self, planned: PlannedFile, file: ManifestFile, read: Reading, *, work: Work
    ) -> bool:
        """Whether the origin shows that what it planned is this file, which is here."""
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
        turn = self._clock.wall_ns() // (DRAW_S * 10**9)
        for index, start, stop in drawn(file, seed_of(self._store.proofs.key, file, turn)):
            inside = sum(chunk.length for chunk in file.chunks[:index])
            here = await work(partial(_read, self._store, file.chunks[index].digest, start, stop))
            there = bytearray(stop - start)
            async with read(planned, inside + start, inside + stop) as stream:
                await stream.readinto(memoryview(there))
            if here is None:
                raise ArtifactNotFoundError(f"{file.path} has just gone from the store")
            if here != bytes(there):
                return file.path
        return None


class Failures:
    """How often artifacts were named by who did not have them. Bounded, and pure."""

    def __init__(self) -> None:
        self._failed_s: OrderedDict[Digest, tuple[float, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._failed_s)

    def are_too_many(self, artifact: Digest, now_s: float) -> bool:
        """Whether it was named in vain so often that it rests."""
        failed_s = self._failed_s.get(artifact, ())
        return len(failed_s) >= FAILURES_MAX and now_s - failed_s[-1] < REFUSED_S

    def note(self, artifact: Digest, now_s: float) -> None:
        """It was named in vain once more."""
        before = self._failed_s.pop(artifact, ())
        lately = [each for each in before if now_s - each < REFUSED_S]
        self._failed_s[artifact] = (*lately, now_s)[-FAILURES_MAX:]
        if len(self._failed_s) > REFUSED_MAX:
            # A flood of others must not make anybody forget one that rests.
            del self._failed_s[min(self._failed_s, key=lambda each: self._weight(each, now_s))]

    def _weight(self, artifact: Digest, now_s: float) -> tuple[int, float]:
        failed_s = self._failed_s[artifact]
        lately = sum(now_s - each < REFUSED_S for each in failed_s)
        return lately, failed_s[-1]


def seed_of(key: bytes, file: ManifestFile, turn: int) -> bytes:
    """What decides where the spans of a file lie, by its content alone, in one stretch of time."""
    return blake3(_SPANS_MARK + b"%d:" % turn + file.id.raw, key=key).digest()


def drawn(file: ManifestFile, seed: bytes) -> Iterator[tuple[int, int, int]]:
    """Spans of a file to compare: the chunk, and where in it; in chunks drawn by their bytes."""
    if file.bytes <= WHOLE_BYTES_MAX:
        for index, chunk in enumerate(file.chunks):
            yield index, 0, chunk.length
        return
    stops: list[int] = []
    at = 0
    for chunk in file.chunks:
        at += chunk.length
        stops.append(at)
    for number in range(SPANS_MIN + file.bytes // BYTES_PER_SPAN):
        byte = int.from_bytes(blake3(b"%d" % number, key=seed).digest(16)) % file.bytes
        index = bisect_right(stops, byte)
        length = file.chunks[index].length
        within = byte - (stops[index] - length)
        start = max(0, min(within, length - SPAN_BYTES))
        yield index, start, min(length, start + SPAN_BYTES)


def _read(store: Store, digest: Digest, start: int, stop: int) -> bytes | None:
    located = store.locate(digest)
    if located is None:
        return None
    with located:
        return os.pread(located.fd, stop - start, located.offset + start)
