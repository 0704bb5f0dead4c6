"""Who reads which file again to see whether it is what its origin published. Pure: facts, commands.

Theory of operation
-------------------
Origins publish digests of whole files (`sha256:`), chunks arrive in any order and from anybody, so
each file has to be read again, in order, before a manifest is sealed. One agent need not read them
all: those of a swarm share the files, and tell each other what they found through the home.

    member ── HashReport ──> home    what it wants, what it reads now, what it found
    member <── HashReply ─── home    which files are its own to read, what others found

    heard, held, hashed, lost ──> Hashing ──> Hash(file), Refuse(file)      a member's part
    reported ──> HashDesk ──> HashReply (returned at once)                  the home's part

What was found is one sentence: *this content is sha256:X*. The content is named by the digests and
lengths of its chunks (`ManifestFile.id`), so the sentence means the same to everybody, and whoever
holds other chunks knows that it is not about theirs.

Rule 1. The desk gives a file to the member that rendezvous ranks first among those that want it and
have spoken lately. Who reads it keeps it while the reading gets on; when it falls silent, the next
in rank is told. Nobody else learns of it: a member that waits just goes on waiting.
Rule 2. A match that others found is believed: a ref without a pin trusts the agents anyway
(`agent/resolver.py`), and a liar gains nothing that it could not have by naming another plan.
Rule 3. A mismatch that others found is a hint. Whoever hears of one, or hears two things of one
content, reads the file itself: one liar must not end anybody's pull.
Rule 4. What we found ourselves is final, and outlives whatever was believed before.
Rule 5. A member that waits for a file on which nobody gets on reads it itself after `patience_s`;
and whatever the home says, after the time that the slowest reading could take. A home that lies, or
has gone, costs time, never the check.
Rule 6. A reading may begin when a part of the file is here, and then follows the chunks: but not at
once, for whoever comes first would be given everything.
"""

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from damselfly.errors import RemoteProtocolError
from damselfly.model.bitmap import Bitmap, indexes_of
from damselfly.model.digest import Digest
from damselfly.model.plan import FILES_MAX
from damselfly.p2p.fields import (
    Fields,
    base64_of,
    checked_digest,
    checked_integer,
    checked_text,
    checked_tuple,
    written,
)
from damselfly.p2p.messages import AGENT_PATTERN, BOOT_PATTERN, AgentID, SwarmID
from damselfly.p2p.rendezvous import home_of

HASH_MESSAGE_BYTES_MAX: Final = 4 << 20
FOUND_MAX: Final = 4096
"""Sentences in one message: what is left over is told with the next one."""
CONTENTS_MAX: Final = 64
"""Contents that others may speak of for one file: there is one, or there are liars."""
_BYTES_MAX: Final = 1 << 50
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Found:
    """File number `file`, with this content, is `sha256`."""

    file: int
    content: Digest
    sha256: str

    def to_json(self) -> list[object]:
        """Write it as a list."""
        return [self.file, self.content.hex, self.sha256]


@dataclass(frozen=True, slots=True)
class HashReport:
    """What a member tells its home about whole files."""

    agent: AgentID
    boot: str
    file_count: int
    wanted: int
    """The files it will hold whole, and whose origin published a digest."""
    reading: tuple[tuple[int, int], ...] = ()
    """Files it reads now, and how many bytes it has read of each."""
    found: tuple[Found, ...] = ()
    """What it found itself, and the home may not know."""
    refused: int = 0
    """Files that it found to be something else than they should be."""

    def to_json(self) -> bytes:
        """Write it on one line."""
        value: dict[str, object] = {
            "agent": self.agent,
            "boot": self.boot,
            "files": self.file_count,
            "wanted": base64_of(Bitmap(self.file_count, self.wanted).to_bytes()),
        }
        if self.reading:
            value["reading"] = self.reading
        if self.found:
            value["found"] = [found.to_json() for found in self.found]
        if self.refused:
            value["refused"] = base64_of(Bitmap(self.file_count, self.refused).to_bytes())
        return written(value)

    @classmethod
    def parse(cls, data: bytes) -> "HashReport":
        """Read one from somebody we do not trust.

        Raises:
            RemoteProtocolError: it breaks a rule or a limit.
        """
        fields = Fields.parse("a report of hashes", data, HASH_MESSAGE_BYTES_MAX)
        count = fields.integer("files", 0, FILES_MAX)
        entry = _Entries("a report of hashes", count)
        return cls(
            agent=AgentID(fields.text("agent", AGENT_PATTERN)),
            boot=fields.text("boot", BOOT_PATTERN),
            file_count=count,
            wanted=fields.bits("wanted", count),
            reading=fields.items("reading", FOUND_MAX, entry.reading),
            found=fields.items("found", FOUND_MAX, entry.found),
            refused=fields.bits("refused", count),
        )


@dataclass(frozen=True, slots=True)
class HashReply:
    """What the home answers, at once."""

    yours: tuple[int, ...] = ()
    """Files for this member to read."""
    others: tuple[int, ...] = ()
    """Files that somebody reads now, and gets on with."""
    found: tuple[Found, ...] = ()
    """What others found of the files that this member wants."""

    def to_json(self) -> bytes:
        """Write it on one line."""
        value: dict[str, object] = {}
        if self.yours:
            value["yours"] = self.yours
        if self.others:
            value["others"] = self.others
        if self.found:
            value["found"] = [found.to_json() for found in self.found]
        return written(value)

    @classmethod
    def parse(cls, data: bytes, file_count: int) -> "HashReply":
        """Read one from somebody we do not trust.

        Raises:
            RemoteProtocolError: it breaks a rule or a limit.
        """
        fields = Fields.parse("a reply about hashes", data, HASH_MESSAGE_BYTES_MAX)
        entry = _Entries("a reply about hashes", file_count)
        return cls(
            yours=fields.items("yours", FOUND_MAX, entry.file),
            others=fields.items("others", FOUND_MAX, entry.file),
            found=fields.items("found", FOUND_MAX, entry.found),
        )


class _Entries:
    """Readers of what stands in the lists of a message about `file_count` files."""

    def __init__(self, what: str, file_count: int) -> None:
        self._count = file_count
        self._told = f"{what} has a bad entry"

    def file(self, value: object) -> int:
        return checked_integer(value, 0, self._count - 1, self._told)

    def reading(self, value: object) -> tuple[int, int]:
        file, read_bytes = checked_tuple(value, 2, self._told)
        return self.file(file), checked_integer(read_bytes, 0, _BYTES_MAX, self._told)

    def found(self, value: object) -> Found:
        file, content, sha256 = checked_tuple(value, 3, self._told)
        return Found(
            self.file(file),
            checked_digest(content, self._told),
            checked_text(sha256, _SHA256, self._told),
        )


# --- the home's part -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class HashDeskLimits:
    """What a desk remembers, and for how long."""

    patience_s: float = 5.0
    """A member that says nothing, or a reading that does not move, for so long is passed over."""
    members_max: int = 4096
    candidates_max: int = 32
    """Ranking is among so many members at most: it is done for each file anew."""
    window_files: int = 256
    """Files that are given out at a time: they are finished in order, more or less."""
    found_max: int = 4
    """Different things that may be told of one file: one is true, the others are lies."""
    readers_max: int = 8
    """Members that are remembered for reading one file."""
    scanned_max: int = 16_384
    """Files that are looked at for one answer: the next one goes on from there."""


@dataclass(slots=True, eq=False)
class _Member:
    boot: str
    wanted: int
    heard_s: float
    bits: bytes = b""
    """What it wants once more: a bit of a long integer costs as much as all of it."""
    reading: dict[int, tuple[int, float]] = field(default_factory=dict[int, tuple[int, float]])
    """How far each reading was, and when it last moved."""
    told_from: int = 0
    """The file from which on it is told next what others found."""
    open_from: int = 0
    """The file from which on is looked for what nobody has found."""

    def wants(self, file: int) -> bool:
        return bool(self.bits[file >> 3] >> (file & 7) & 1)


class HashDesk:
    """What the home of one swarm knows of its files. Soft state; belongs to one task."""

    def __init__(
        self, swarm: SwarmID, file_count: int, *, limits: HashDeskLimits | None = None
    ) -> None:
        self.file_count = file_count
        self._swarm = swarm
        self._limits = limits or HashDeskLimits()
        self._members: dict[AgentID, _Member] = {}
        self._found: dict[int, dict[Found, AgentID]] = {}
        self._readers: dict[int, dict[AgentID, None]] = {}
        self._refused: set[int] = set()
        """Files that somebody found to be wrong: whoever holds them reads them for itself."""

    def __repr__(self) -> str:
        return f"<HashDesk {len(self._members)} members, {len(self._found)} files found>"

    def reported(self, report: HashReport, now: float) -> HashReply:
        """Take a member's report; answer it.

        Raises:
            RemoteProtocolError: it speaks of another number of files, or there is no room for it.
        """
        if report.file_count != self.file_count:
            raise RemoteProtocolError(
                f"{report.agent} counts {report.file_count} files, not {self.file_count}"
            )
        self._sweep(now)
        member = self._members.get(report.agent)
        if member is None or member.boot != report.boot:
            if member is None and len(self._members) >= self._limits.members_max:
                raise RemoteProtocolError(f"{len(self._members)} members hash here already")
            self.left(report.agent)
            member = self._members[report.agent] = _Member(report.boot, report.wanted, now)
        member.heard_s = now
        member.wanted = report.wanted
        member.bits = report.wanted.to_bytes((self.file_count + 7) // 8, "little")
        before = member.reading
        self._reads_no_more(report.agent, member)
        for file, read_bytes in report.reading:
            known = before.get(file)
            is_moved = known is None or read_bytes > known[0]
            member.reading[file] = (read_bytes, now if known is None or is_moved else known[1])
            readers = self._readers.setdefault(file, {})
            if len(readers) < self._limits.readers_max:
                readers[report.agent] = None
        for found in report.found:
            self._learn(found, report.agent)
            self._refused.discard(found.file)
        self._refused.update(islice(indexes_of(report.refused), FOUND_MAX))
        return self._answer(report.agent, member, now)

    def left(self, agent: AgentID) -> None:
        """This agent is no member any more."""
        member = self._members.pop(agent, None)
        if member is not None:
            self._reads_no_more(agent, member)

    def is_vacant(self, now: float) -> bool:
        """Nobody has spoken lately."""
        self._sweep(now)
        return not self._members

    def _reads_no_more(self, agent: AgentID, member: _Member) -> None:
        for file in member.reading:
            readers = self._readers.get(file, {})
            readers.pop(agent, None)
            if not readers:
                self._readers.pop(file, None)
        member.reading = {}

    def _learn(self, found: Found, agent: AgentID) -> None:
        told = self._found.setdefault(found.file, {})
        if found not in told:
            # An agent has one voice about a file; the latest word is the one that counts.
            for earlier in [one for one, teller in told.items() if teller == agent]:
                del told[earlier]
            if len(told) < self._limits.found_max:
                told[found] = agent

    def _answer(self, agent: AgentID, member: _Member, now: float) -> HashReply:
        limits = self._limits
        found = self._news_for(agent, member)
        yours: list[int] = []
        others: list[int] = []
        candidates = self._candidates(agent)
        window = 0
        scanned, go_on = _scan(member.wanted, member.open_from, limits.scanned_max)
        for file in scanned:
            if file in self._found and file not in self._refused:
                continue
            window += 1
            if window > limits.window_files:
                break
            reader = self._reader_of(file, now)
            if reader is None:
                able = [one for one in candidates if self._members[one].wants(file)]
                reader = home_of(f"{self._swarm}/{file}", able)
            if reader == agent:
                yours.append(file)
            else:
                others.append(file)
        if not window:
            member.open_from = go_on
        return HashReply(tuple(yours), tuple(others), tuple(found))

    def _news_for(self, agent: AgentID, member: _Member) -> list[Found]:
        """What others found of the files that a member wants: so much of it as one answer takes."""
        news: list[Found] = []
        scanned, go_on = _scan(member.wanted, member.told_from, self._limits.scanned_max)
        for file in scanned:
            told = self._found.get(file, {})
            if len(news) + len(told) > FOUND_MAX:
                member.told_from = file
                return news
            news += [one for one, teller in told.items() if teller != agent]
        member.told_from = go_on
        return news

    def _candidates(self, agent: AgentID) -> list[AgentID]:
        """Who is ranked: everybody, or in a large swarm a part of it that is the same for all."""
        agents = sorted(self._members)[: self._limits.candidates_max]
        return agents if agent in agents else [*agents, agent]

    def _reader_of(self, file: int, now: float) -> AgentID | None:
        for agent in self._readers.get(file, {}):
            reading = self._members[agent].reading[file]
            if now - reading[1] <= self._limits.patience_s:
                return agent
        return None

    def _sweep(self, now: float) -> None:
        patience_s = self._limits.patience_s
        for agent in [a for a, m in self._members.items() if now - m.heard_s > patience_s]:
            self.left(agent)


def _scan(wanted: int, start: int, count: int) -> tuple[list[int], int]:
    """So many of the files wanted, from `start` on; and where the next scan goes on."""
    files = [start + file for file in islice(indexes_of(wanted >> start), count)]
    if len(files) == count:
        return files, files[-1] + 1
    return files, 0


# --- a member's part ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hash:
    """Read this file, in order, as its chunks come."""

    file: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """We read it: it is not what its origin published."""

    file: int
    expected: str
    actual: str


@dataclass(frozen=True, kw_only=True)
class HashingLimits:
    """How a member shares the work, and how patient it is."""

    readings_max: int = 2
    begins_at: float = 0.25
    """A file is read from when so much of it is here."""
    patience_s: float = 3.0
    slow_bytes_per_s: float = 50e6
    """Nobody who reads is slower than this, or we do it ourselves."""
    report_s: float = 0.5
    """Between reports while chunks still come."""
    wait_s_min: float = 0.02
    wait_s_max: float = 0.5
    """Between reports while we only wait for what others find: at first short, then longer."""


@dataclass(slots=True, eq=False)
class _File:
    expected: tuple[str, ...]
    bytes: int
    share: float = 0.0
    content: Digest | None = None
    held_s: float = 0.0
    """Since when it is all here."""
    heard_s: float = 0.0
    """When the home last said that somebody reads it."""
    told: dict[Digest, set[str]] = field(default_factory=dict[Digest, set[str]])
    is_ours: bool = False
    is_doubted: bool = False
    is_read: bool = False
    """We are at it."""
    own: Found | None = None
    is_matched: bool = False


class Hashing:
    """One member's part in one swarm. Belongs to one task.

    `expected` are the digests that the origin published, by file number; `sizes` the files' bytes.
    Who does not `believe` reads every file, whatever others found.
    """

    def __init__(
        self,
        expected: Mapping[int, tuple[str, ...]],
        sizes: Mapping[int, int],
        *,
        limits: HashingLimits | None = None,
        believes: bool = True,
        now: float,
    ) -> None:
        self._limits = limits or HashingLimits()
        self._believes = believes
        self._files = {file: _File(digests, sizes[file]) for file, digests in expected.items()}
        wanted = bytearray(max(expected, default=0) // 8 + 1)
        for file in expected:
            wanted[file >> 3] |= 1 << (file & 7)
        self._wanted = int.from_bytes(wanted, "little")
        self._actions: deque[Hash | Refuse] = deque()
        self._untold: dict[int, Found] = {}
        self._asked: dict[int, Found] | None = None
        self._report_s = now
        self._waits_s = self._limits.wait_s_min

    def __repr__(self) -> str:
        return f"<Hashing {len(self.unsettled)} of {len(self._files)} files to go>"

    # --- facts ---------------------------------------------------------------

    def here(self, file: int, share: float, content: Digest | None, now: float) -> None:
        """So much of a file is here; its content, when that is all of it."""
        one = self._files[file]
        one.share = share
        if content is not None and one.content != content:
            one.content = content
            one.held_s = one.heard_s = now
            self._waits_s = self._limits.wait_s_min
            self._report_s = min(self._report_s, now)
        self._judge(one)

    def lost(self, file: int) -> None:
        """A chunk of it cannot be read back: it is fetched again, and the file is read anew."""
        one = self._files[file]
        one.is_read = False
        one.content = None
        one.share = 0.0

    def hashed(self, found: Found, now: float) -> None:
        """We have read a file to its end."""
        one = self._files[found.file]
        one.is_read = False
        one.own = found
        self._untold[found.file] = found
        self._report_s = now
        wrong = next((digest for digest in one.expected if digest != found.sha256), None)
        if wrong is not None:
            one.is_matched = False
            self._actions.append(Refuse(found.file, wrong, found.sha256))
        else:
            one.is_matched = True

    def heard(self, reply: HashReply, now: float) -> None:
        """The home answered."""
        self._asked = None
        for one in self._files.values():
            one.is_ours = False
        for file in reply.yours:
            if file in self._files:
                self._files[file].is_ours = True
        for file in reply.others:
            if file in self._files:
                self._files[file].heard_s = now
        for found in reply.found:
            self.told(found)

    def told(self, found: Found) -> None:
        """Somebody found this, or we believed it once."""
        one = self._files.get(found.file)
        if one is None or (found.content not in one.told and len(one.told) >= CONTENTS_MAX):
            return
        said = one.told.setdefault(found.content, set())
        if len(said) < 2:  # More would say no more than "doubt it".
            said.add(found.sha256)
        self._judge(one)

    def unheard(self, now: float) -> None:
        """The home could not be asked."""
        if self._asked is not None:
            self._untold = self._asked | self._untold
            self._asked = None
        self._report_s = max(self._report_s, now + self._limits.wait_s_max)

    def _judge(self, one: _File) -> None:
        """Believe a match, doubt everything else that was told of the content that is here."""
        if one.content is None or one.own is not None or not self._believes:
            return
        said = one.told.get(one.content)
        if said is None:
            return
        is_match = all({digest} == said for digest in one.expected)
        one.is_matched = is_match
        one.is_doubted = not is_match

    # --- commands ------------------------------------------------------------

    def next_action(self, now: float) -> Hash | Refuse | None:
        """The next thing to do, if any."""
        if self._actions:
            return self._actions.popleft()
        limits = self._limits
        reading = sum(one.is_read for one in self._files.values())
        if reading >= limits.readings_max:
            return None
        for file, one in self._files.items():
            if one.is_matched or one.is_read or one.own is not None:
                continue
            if self._is_due(one, now):
                one.is_read = True
                return Hash(file)
        return None

    def _is_due(self, one: _File, now: float) -> bool:
        limits = self._limits
        if (one.is_ours or not self._believes) and one.share >= limits.begins_at:
            return True
        if one.content is None:
            return False
        if one.is_doubted:
            return True
        longest_s = limits.patience_s + one.bytes / limits.slow_bytes_per_s
        return now - one.heard_s > limits.patience_s or now - one.held_s > longest_s

    def is_report_due(self, now: float) -> bool:
        """A report should leave now."""
        return self._asked is None and now >= self._report_s

    def next_report(
        self, agent: AgentID, boot: str, file_count: int, reading: Mapping[int, int], now: float
    ) -> HashReport:
        """The report that is due; `reading` says how far our readings are."""
        limits = self._limits
        if all(one.content is not None for one in self._files.values()):
            self._report_s = now + self._waits_s
            self._waits_s = min(2 * self._waits_s, limits.wait_s_max)
        else:
            self._report_s = now + limits.report_s
        told = dict(list(self._untold.items())[:FOUND_MAX])
        self._asked = told
        self._untold = {file: one for file, one in self._untold.items() if file not in told}
        return HashReport(
            agent,
            boot,
            file_count,
            self._wanted,
            tuple(reading.items()),
            tuple(told.values()),
            self._refused,
        )

    @property
    def _refused(self) -> int:
        bits = 0
        for file, one in self._files.items():
            if one.own is not None and not one.is_matched:
                bits |= 1 << file
        return bits

    @property
    def has_news(self) -> bool:
        """We found something that the home has not heard."""
        return bool(self._untold) or self._asked is not None

    @property
    def unsettled(self) -> tuple[int, ...]:
        """The files that nobody is known to have found to be what they should be."""
        return tuple(file for file, one in self._files.items() if not one.is_matched)

    @property
    def found_here(self) -> dict[int, Found]:
        """What we found ourselves, match or not, by file number."""
        return {file: one.own for file, one in self._files.items() if one.own is not None}

    @property
    def believed(self) -> dict[int, Found]:
        """The files that only others found to match: by number, what they said."""
        return {
            file: Found(file, one.content, one.expected[0])
            for file, one in self._files.items()
            if one.is_matched and one.own is None and one.content is not None
        }
