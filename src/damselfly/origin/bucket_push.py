"""A push to a bucket, whoever runs it: what is there is kept, the rest is sent in parts.

A bucket has no rename: an object is the old one until its last part is in, and then the new one at
once. So no reader sees half an object, but one that reads without a manifest while a push is under
way may see new objects beside old ones, each of them whole; versions pin what it planned, and it
hears of what was replaced. A manifest never lies: the old one goes before the first object that is
replaced, and the new one comes last.

What there is of an object is told by its size and a mark that a push leaves in its metadata, or by
a SHA-256 that the server itself computed. Parts that a killed push left are found by the journal
(`push_journal.py`), compared with the file by the server's digests of them, and kept.

Two pushes at a time: whoever comes later takes the journal over and ends the sessions of the other,
which notices at its next step. Objects and the manifest are written only over what was seen to be
there (`If-Match`, `If-None-Match`), where the server knows how; before the manifest every object is
looked at once more.

Memory is that of the parts in flight, whatever the files' sizes.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import random
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

from damselfly.errors import (
    DamselflyError,
    OriginBusyError,
    OriginChangedError,
    OriginDeniedError,
    OriginNotFoundError,
    OriginUnavailableError,
    UsageError,
)
from damselfly.model.manifest import MANIFEST_NAME
from damselfly.origin import tree
from damselfly.origin.destination import Parcel, Standing
from damselfly.origin.push_journal import (
    JOURNAL_BYTES_MAX,
    JOURNAL_NAME,
    SESSIONS_MAX,
    Journal,
    Session,
)
from damselfly.origin.threads import Threads
from damselfly.origin.together import together
from damselfly.origin.tree import LocalFile

logger = logging.getLogger(__name__)

MIB = 1 << 20
PART_BYTES = 16 * MIB
"""Large enough that 20 ms between two of them do not matter, small enough to send again."""
IN_FLIGHT_BYTES = 64 * MIB
_PARTS_MAX = 9_000
"""S3 takes 10,000 of an object."""
_LOOKS = 16
_TRIES = 6
_PAUSE_S = 0.5
_PAUSE_S_MAX = 60.0
_THREADS = 4

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Held:
    """An object as it is at its destination.

    `tag` is what a guard compares, `content` the mark that a push left, and `sha256` (hex) what the
    server itself has computed of the whole.
    """

    size: int
    tag: str
    content: str = ""
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class SentPart:
    """A part that is there: `tag` and `sha256` are as the server and its API write them."""

    number: int
    size: int
    tag: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Marks:
    """What is left with an object: the content's name, and its SHA-256 (hex)."""

    content: str
    sha256: str


class BucketWriter(Protocol):
    """What a provider does for a push. Belongs to one event loop, to one bucket, and to one push.

    `over` is what is replaced: that object and no other, or nothing. OriginChangedError says that
    something else is there. Errors are the origin port's, and nothing is tried twice in here.
    """

    async def check(self) -> None:
        """Make sure that there is a bucket.

        Raises:
            UsageError: there is none.
        """
        ...

    async def look(self, key: str) -> Held | None:
        """Look at an object; None if there is none."""
        ...

    async def read(self, key: str, held: Held) -> bytes:
        """Read something small whole."""
        ...

    async def put(self, key: str, data: bytes, marks: Marks, over: Held | None) -> Held:
        """Send an object at once."""
        ...

    async def delete(self, key: str) -> None:
        """Delete an object, if there is one."""
        ...

    async def begin(self, key: str, marks: Marks) -> str:
        """Begin to send an object in parts; returns the name of the session."""
        ...

    async def parts(self, key: str, session: str) -> Mapping[int, SentPart] | None:
        """The parts that are there, by number from 1; None if there is no such session."""
        ...

    def is_same(self, part: SentPart, data: bytes) -> bool:
        """Whether a part that is there has this content. For a thread."""
        ...

    async def send_part(self, key: str, session: str, number: int, data: bytes) -> SentPart:
        """Send a part; one that was there is replaced."""
        ...

    async def finish(
        self, key: str, session: str, parts: Sequence[SentPart], over: Held | None
    ) -> None:
        """Make an object of all parts."""
        ...

    async def abort(self, key: str, session: str) -> None:
        """Throw the parts away, if there is such a session."""
        ...

    def shown(self, key: str) -> str:
        """What people call an object: no secrets."""
        ...

    async def close(self) -> None:
        """Give back what is held."""
        ...


class BucketDestination:
    """A prefix of a bucket, as a `Destination`. Belongs to one event loop, and to one push."""

    def __init__(
        self,
        writer: BucketWriter,
        prefix: str,
        *,
        part_bytes: int = PART_BYTES,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        assert not prefix or prefix.endswith("/"), "a prefix is a directory"
        self._writer = writer
        self._prefix = prefix
        self._part_bytes = part_bytes
        self._patience = _Patience(pause)
        self._threads = Threads(_THREADS)

    @property
    def shown(self) -> str:
        """What people call it."""
        return self._writer.shown(self._prefix)

    @property
    def replaces_all(self) -> bool:
        """What else lies there stays."""
        return False

    async def small(self, path: str, bytes_max: int) -> bytes | None:
        """Read a small object that is there; see `Destination`."""
        await self._patience(self._writer.check)
        held = await self._look(path)
        if held is None:
            return None
        if held.size > bytes_max:
            return b""
        return await self._patience(partial(self._writer.read, self._prefix + path, held))

    async def standing(self, parcel: Parcel) -> Standing:
        """Look what is there already; see `Destination`."""
        await self._patience(self._writer.check)
        held = await together((partial(self._look, file.path) for file in parcel.files), _LOOKS)
        kept = frozenset(
            number for number, each in enumerate(held) if _is_same(parcel, number, each)
        )
        missing = sum(file.size for number, file in enumerate(parcel.files) if number not in kept)
        is_whole = (
            len(kept) == len(parcel.files) and not parcel.drops and await self._has_manifest(parcel)
        )
        return Standing(kept, missing - await self._bytes_half_sent(parcel, kept), is_whole)

    async def push(
        self, parcel: Parcel, standing: Standing, advance: Callable[[str, int], None]
    ) -> None:
        """Send what lacks, then the manifest; see `Destination`."""
        if standing.is_whole:
            return
        run = _Push(
            self._writer,
            self._threads,
            self._prefix,
            parcel,
            advance,
            self._patience,
            _part_bytes_of(parcel, self._part_bytes),
        )
        await run.run([n for n in range(len(parcel.files)) if n not in standing.kept])

    async def close(self) -> None:
        """Give threads and connections back."""
        self._threads.close()
        await self._writer.close()

    async def _look(self, path: str) -> Held | None:
        return await self._patience(partial(self._writer.look, self._prefix + path))

    async def _has_manifest(self, parcel: Parcel) -> bool:
        data = parcel.manifest.canonical()
        held = await self._look(MANIFEST_NAME)
        if held is None or held.size != len(data):
            return False
        read = partial(self._writer.read, self._prefix + MANIFEST_NAME, held)
        return await self._patience(read) == data

    async def _bytes_half_sent(self, parcel: Parcel, kept: frozenset[int]) -> int:
        read = partial(read_journal, self._writer, self._prefix)
        journal, _ = await self._patience(read)
        part_bytes = _part_bytes_of(parcel, self._part_bytes)
        count = 0
        for number, file in enumerate(parcel.files):
            session = journal.sessions.get(file.path)
            if number in kept or session is None or not _suits(session, parcel, number, part_bytes):
                continue
            parts = await self._writer.parts(self._prefix + file.path, session.name) or {}
            count += min(file.size, sum(part.size for part in parts.values()))
        return count


class _Patience:
    """Tries again what failed for now, after a pause, or when the server wants to be asked."""

    def __init__(self, pause: Callable[[float], Awaitable[None]]) -> None:
        self._pause = pause

    async def __call__(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do `work`, which may be done more than once."""
        for tries in range(1, _TRIES):
            try:
                return await work()
            except OriginUnavailableError as exc:
                pause_s = _PAUSE_S * 2 ** (tries - 1) * random.uniform(0.5, 1.5)  # noqa: S311
                if isinstance(exc, OriginBusyError) and exc.retry_after_s is not None:
                    pause_s = max(pause_s, exc.retry_after_s)
                logger.info("push.retried", extra={"tries": tries, "error": exc})
                await self._pause(min(pause_s, _PAUSE_S_MAX))
        return await work()


class _Push:
    """One push: it owns the journal from the first step to the last."""

    def __init__(
        self,
        writer: BucketWriter,
        threads: Threads,
        prefix: str,
        parcel: Parcel,
        advance: Callable[[str, int], None],
        patience: _Patience,
        part_bytes: int,
    ) -> None:
        self._writer = writer
        self._threads = threads
        self._prefix = prefix
        self._parcel = parcel
        self._advance = advance
        self._patience = patience
        self._part_bytes = part_bytes
        self._width = max(1, IN_FLIGHT_BYTES // part_bytes)
        self._in_flight = asyncio.Semaphore(self._width)
        self._noting = asyncio.Lock()
        self._journal = Journal(secrets.token_hex(16))
        self._noted: Held | None = None
        self._is_forgotten = False

    async def run(self, missing: list[int]) -> None:
        """Send everything, then the manifest."""
        await self._take_over(set(missing))
        try:
            await together((partial(self._bring, number) for number in missing), self._width)
            everything = range(len(self._parcel.files))
            there = await together((partial(self._is_there, n) for n in everything), _LOOKS)
            await self._check_owner()
            if not all(there):
                raise self._lost()
            await self._drop()
            await self._leave_manifest()
        except DamselflyError:
            # A session or an object may have gone from under us: the journal tells whether.
            with contextlib.suppress(OriginDeniedError, OriginUnavailableError):
                found, _ = await read_journal(self._writer, self._prefix)
                if found.owner != self._journal.owner:
                    raise self._lost() from None
            raise
        await self._writer.delete(self._prefix + JOURNAL_NAME)

    # --- the journal ----------------------------------------------------------------------------

    async def _take_over(self, missing: set[int]) -> None:
        old, held = await self._read_journal()
        numbers = {file.path: number for number, file in enumerate(self._parcel.files)}
        sessions: dict[str, Session] = {}
        stale: dict[str, Session] = {}
        for path, session in old.sessions.items():
            number = numbers.get(path)
            if number is None or number not in missing:
                stale[path] = session
            elif _suits(session, self._parcel, number, self._part_bytes):
                sessions[path] = session
            else:
                stale[path] = session
        self._journal = replace(self._journal, sessions=sessions)
        self._noted = held
        async with self._noting:
            await self._write_note()
        for path, session in stale.items():
            await self._writer.abort(self._prefix + path, session.name)

    async def _note(self, path: str, session: Session | None) -> None:
        async with self._noting:
            sessions = dict(self._journal.sessions)
            sessions.pop(path, None)
            if session is not None and len(sessions) < SESSIONS_MAX:
                sessions[path] = session
            self._journal = replace(self._journal, sessions=sessions)
            await self._write_note()

    async def _write_note(self) -> None:
        data = self._journal.canonical()
        key, marks = self._prefix + JOURNAL_NAME, _marks_of(data)
        try:
            put = partial(self._writer.put, key, data, marks, self._noted)
            self._noted = await self._patience(put)
        except OriginChangedError:
            # An answer may have been lost, and the work been done.
            found, self._noted = await self._read_journal()
            if found != self._journal:
                raise self._lost() from None

    async def _read_journal(self) -> tuple[Journal, Held | None]:
        return await self._patience(partial(read_journal, self._writer, self._prefix))

    async def _check_owner(self) -> None:
        found, _ = await self._read_journal()
        if found.owner != self._journal.owner:
            raise self._lost()

    def _lost(self) -> UsageError:
        return UsageError(f"another push is writing to {self._writer.shown(self._prefix)}")

    # --- files ----------------------------------------------------------------------------------

    async def _bring(self, number: int) -> None:
        file = self._parcel.files[number]
        key = self._prefix + file.path
        held = await self._look(key)
        if _is_same(self._parcel, number, held):
            return
        if held is not None:
            await self._forget_manifest()
        marks = Marks(str(self._parcel.manifest.files[number].id), self._parcel.sha256[number])
        try:
            if file.size <= self._part_bytes:
                async with self._in_flight:
                    data = await self._threads.run(partial(_read_whole, file, marks.sha256))
                    await self._patience(partial(self._writer.put, key, data, marks, held))
                    self._advance(file.path, file.size)
            else:
                await self._send_in_parts(file, key, marks, held)
        except (OriginChangedError, OriginNotFoundError):
            # An answer may have been lost, and the work been done.
            if not await self._is_there(number):
                raise

    async def _send_in_parts(
        self, file: LocalFile, key: str, marks: Marks, over: Held | None
    ) -> None:
        there: Mapping[int, SentPart] | None = None
        session = self._journal.sessions.get(file.path)
        if session is not None:
            there = await self._writer.parts(key, session.name)
        if session is None or there is None:
            session = Session(await self._writer.begin(key, marks), marks.content, self._part_bytes)
            await self._note(file.path, session)
            there = {}
        descriptor = await self._threads.run(partial(tree.open_unchanged, file))
        try:
            part_count = -(-file.size // self._part_bytes)
            parts = await together(
                (
                    partial(self._part, file, descriptor, key, session.name, number, there)
                    for number in range(1, part_count + 1)
                ),
                self._width,
            )
        finally:
            os.close(descriptor)
        await self._patience(partial(self._writer.finish, key, session.name, parts, over))
        await self._note(file.path, None)

    async def _part(
        self,
        file: LocalFile,
        descriptor: int,
        key: str,
        session: str,
        number: int,
        there: Mapping[int, SentPart],
    ) -> SentPart:
        start = (number - 1) * self._part_bytes
        size = min(self._part_bytes, file.size - start)
        async with self._in_flight:
            data = await self._threads.run(partial(_read_part, file, descriptor, start, size))
            found = there.get(number)
            if found is not None and found.size == size:
                is_same = partial(self._writer.is_same, found, data)
                if await self._threads.run(is_same):
                    return found
            sent = await self._patience(partial(self._writer.send_part, key, session, number, data))
        self._advance(file.path, size)
        return sent

    async def _is_there(self, number: int) -> bool:
        path = self._parcel.files[number].path
        return _is_same(self._parcel, number, await self._look(self._prefix + path))

    async def _look(self, key: str) -> Held | None:
        return await self._patience(partial(self._writer.look, key))

    # --- the manifest ---------------------------------------------------------------------------

    async def _forget_manifest(self) -> None:
        if not self._is_forgotten:
            await self._patience(partial(self._writer.delete, self._prefix + MANIFEST_NAME))
            self._is_forgotten = True

    async def _drop(self) -> None:
        for path in self._parcel.drops:
            await self._forget_manifest()
            await self._patience(partial(self._writer.delete, self._prefix + path))

    async def _leave_manifest(self) -> None:
        data = self._parcel.manifest.canonical()
        key, marks = self._prefix + MANIFEST_NAME, _marks_of(data)
        over = await self._look(key)
        if over is not None and self._is_forgotten:
            raise self._lost()
        try:
            await self._patience(partial(self._writer.put, key, data, marks, over))
        except OriginChangedError:
            held = await self._look(key)
            if held is None or held.size != len(data) or held.content != marks.content:
                raise self._lost() from None


async def read_journal(writer: BucketWriter, prefix: str) -> tuple[Journal, Held | None]:
    """The note of a push that has not ended, else nobody's; and the object that it is."""
    key = prefix + JOURNAL_NAME
    held = await writer.look(key)
    if held is not None and held.size <= JOURNAL_BYTES_MAX:
        with contextlib.suppress(ValueError, OriginNotFoundError):
            return Journal.parse(await writer.read(key, held)), held
    return Journal("nobody"), held


def _suits(session: Session, parcel: Parcel, number: int, part_bytes: int) -> bool:
    """Whether parts of a session can be parts of a file of ours."""
    content = str(parcel.manifest.files[number].id)
    return (session.content, session.part_bytes) == (content, part_bytes)


def _is_same(parcel: Parcel, number: int, held: Held | None) -> bool:
    if held is None or held.size != parcel.files[number].size:
        return False
    if held.sha256 is not None:  # What the server computed counts more than what somebody wrote.
        return held.sha256 == parcel.sha256[number]
    return held.content == str(parcel.manifest.files[number].id)


def _part_bytes_of(parcel: Parcel, least: int) -> int:
    """One size for every part of a push; whole MiB where files are so large that it has to grow."""
    largest = max((file.size for file in parcel.files), default=0)
    needed = -(-largest // _PARTS_MAX)
    return least if needed <= least else -(-needed // MIB) * MIB


def _marks_of(data: bytes) -> Marks:
    digest = hashlib.sha256(data).hexdigest()
    return Marks(f"sha256:{digest}", digest)


def _read_whole(file: LocalFile, sha256: str) -> bytes:
    descriptor = tree.open_unchanged(file)
    try:
        data = _read_part(file, descriptor, 0, file.size)
    finally:
        os.close(descriptor)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise OriginChangedError(f"{file.location} is no longer what was hashed")
    return data


def _read_part(file: LocalFile, descriptor: int, start: int, size: int) -> bytes:
    data = bytearray(size)
    tree.read_exactly(descriptor, memoryview(data), start, file)
    tree.check_unchanged(descriptor, file)
    return bytes(data)
