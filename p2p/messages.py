"""What agents say to each other about a swarm.

    member ── Report ──> home      claims wanted, bytes so far, chunks come; every second at least
    member <── Reply ─── home      claims granted, whom to follow
    member <── LiveLine ─ home     as it happens: digests at first contact, members, claims
    member <── HaveLine ─ member   which chunks I hold: first all of them, then each new one

Sets of chunk indexes are integers: bit `i` stands for chunk `i` (`Bitmap` writes and reads them).
`parse` trusts nobody: whatever breaks a rule or a limit is a `RemoteProtocolError`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NewType, cast

from damselfly.errors import RemoteProtocolError
from damselfly.model.bitmap import Bitmap, indexes_of
from damselfly.model.digest import Digest
from damselfly.p2p.fields import (
    Fields,
    base64_of,
    checked_digest,
    checked_integer,
    checked_text,
    checked_tuple,
    digests_of,
    written,
)

AgentID = NewType("AgentID", str)
"""An agent's name: the address it advertises, `host:port`."""

SwarmID = NewType("SwarmID", str)
"""A swarm's name: the plan's id at first contact, the artifact's digest once there is one."""

CHUNK_COUNT_MAX: Final = 1 << 20
"""4 TiB at 4 MiB a chunk."""
REPORT_BYTES_MAX: Final = 16 << 20
"""A full state with 300,000 digests at first contact; ordinary reports have a few hundred bytes."""
LINE_BYTES_MAX: Final = 16 << 20
"""The first live line at first contact tells every digest known so far."""
MEMBERS_MAX: Final = 4096
FOLLOWED_MAX: Final = 64
_ENTRIES_MAX: Final = 4096

AGENT_PATTERN: Final = re.compile(
    r"(\[[0-9A-Fa-f:.]{2,45}\]|(?=[^:]{1,254}:)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?)"
    r":(0|[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])",
    re.ASCII,
)
"""No name that a resolver chokes on, and no port that there is not: strangers write these."""
BOOT_PATTERN: Final = re.compile(r"[0-9A-Za-z_-]{1,64}", re.ASCII)
ZONE_PATTERN: Final = re.compile(r"[0-9A-Za-z._/:-]{0,63}", re.ASCII)
_BYTES_MAX: Final = 1 << 50
_SECONDS_MAX: Final = 86_400.0


class HandBack(Enum):
    """Why a claim is given back."""

    DENIED = "denied"
    """The origin refused our credentials; somebody else's may be good."""
    FAILED = "failed"
    """The origin failed, or does not deliver."""
    CANCELLED = "cancelled"
    """We need the chunks no more, or have them from a peer."""


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive chunks, read from the origin by one request: what a claim is for."""

    start: int
    count: int

    @property
    def bits(self) -> int:
        """Its indexes as a set."""
        return ((1 << self.count) - 1) << self.start


@dataclass(frozen=True, slots=True)
class OpenClaim:
    """A claim its holder is working on: what is left of the run, and all bytes it brought."""

    run: Run
    received_bytes: int
    is_resting: bool = False
    """The origin asked for rest, or its budget is used up: its holder waits, and is not silent."""


@dataclass(frozen=True, slots=True)
class ReturnedClaim:
    """What is left of a run, given back."""

    run: Run
    reason: HandBack


@dataclass(frozen=True, slots=True)
class Lack:
    """A chunk that a member wants and cannot get from those it tried."""

    index: int
    tried: tuple[AgentID, ...]
    """Holders that failed it, or sent wrong bytes."""


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody of the swarm, for others to follow."""

    agent: AgentID
    zone: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """Everything a home must know of a member; sent to a home that may not know it."""

    have: int
    """The chunks it holds, verified."""
    wanted: int
    """The chunks it wants in the end, held or not."""
    digests: Mapping[int, Digest] = field(default_factory=dict[int, Digest])
    """Digests by index, at first contact; empty where the manifest is sealed."""
    is_sealed: bool = True
    """The member has a manifest with every digest."""
    can_claim: bool = True
    """It could fetch from the origin itself."""
    zone: str = ""
    peers: tuple[AgentID, ...] = ()
    """Members it has heard of: a young home waits for them."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a member tells its home, at once when a claim ends and every second otherwise."""

    agent: AgentID
    boot: str
    """New at every start of the agent: a home forgets what it knew of an earlier boot."""
    chunk_count: int
    serial: int
    """Grows with every report of this boot: late ones are recognised."""
    state: State | None = None
    done: tuple[tuple[int, Digest], ...] = ()
    """Chunks that came from the origin since the last answered report."""
    got: tuple[int, ...] = ()
    """Chunks that came from anywhere else since then."""
    lost: tuple[int, ...] = ()
    """Chunks no longer held: found bad on disk."""
    refuted: tuple[int, ...] = ()
    """Chunks no longer held, of a file that is not what its origin published: one of the digests
    that were told at first contact is wrong, and nobody knows which."""
    open: tuple[OpenClaim, ...] = ()
    """Every claim it works on. One that is missing here is no claim any more."""
    returned: tuple[ReturnedClaim, ...] = ()
    dead: tuple[AgentID, ...] = ()
    """Agents that could not be reached. A word against them, not a verdict."""
    corrupt: tuple[AgentID, ...] = ()
    """Agents whose bytes did not verify."""
    lacking: tuple[Lack, ...] = ()
    room: int = 0
    """How many more claims it can work on now."""
    urgent: int | None = None
    """A chunk that somebody is waiting for."""
    first_byte_s: float | None = None
    """How long the origin took to begin its latest answer."""
    chunk_s: float | None = None
    """How long a chunk of the mean size takes from the origin, once its answer has begun."""
    next_s: float = 1.0
    """When to expect the next report at the latest."""
    sealed: Digest | None = None
    """The artifact's digest, once this member has sealed the manifest."""
    is_leaving: bool = False

    def to_json(self) -> bytes:
        """Write it on one line."""
        value: dict[str, object] = {
            "agent": self.agent,
            "boot": self.boot,
            "chunks": self.chunk_count,
            "serial": self.serial,
            "room": self.room,
            "next_s": self.next_s,
        }
        if self.state is not None:
            value["state"] = _state_written(self.state, self.chunk_count)
        if self.done:
            value["done"] = [[index, digest.hex] for index, digest in self.done]
        if self.got:
            value["got"] = self.got
        if self.lost:
            value["lost"] = self.lost
        if self.refuted:
            value["refuted"] = self.refuted
        if self.open:
            value["open"] = [
                [c.run.start, c.run.count, c.received_bytes, *([1] if c.is_resting else ())]
                for c in self.open
            ]
        if self.returned:
            value["returned"] = [[c.run.start, c.run.count, c.reason.value] for c in self.returned]
        if self.dead:
            value["dead"] = self.dead
        if self.corrupt:
            value["corrupt"] = self.corrupt
        if self.lacking:
            value["lacking"] = [[lack.index, *lack.tried] for lack in self.lacking]
        for name in ("urgent", "first_byte_s", "chunk_s"):
            if getattr(self, name) is not None:
                value[name] = getattr(self, name)
        if self.sealed is not None:
            value["sealed"] = self.sealed.hex
        if self.is_leaving:
            value["leaving"] = True
        return written(value)

    @classmethod
    def parse(cls, data: bytes) -> "Report":
        """Read one from somebody we do not trust.

        Raises:
            RemoteProtocolError: it breaks a rule or a limit.
        """
        fields = Fields.parse("a report", data, REPORT_BYTES_MAX)
        count = fields.integer("chunks", 0, CHUNK_COUNT_MAX)
        entry = _Entries("a report", count)
        return cls(
            agent=_agent(fields.text("agent", AGENT_PATTERN)),
            boot=fields.text("boot", BOOT_PATTERN),
            chunk_count=count,
            serial=fields.integer("serial", 0, 1 << 62),
            state=_state_read(fields.fields("state"), count) if fields.has("state") else None,
            done=fields.items("done", count, entry.digest),
            got=fields.items("got", count, entry.index),
            lost=fields.items("lost", count, entry.index),
            refuted=fields.items("refuted", count, entry.index),
            open=fields.items("open", _ENTRIES_MAX, entry.open_claim),
            returned=fields.items("returned", _ENTRIES_MAX, entry.returned_claim),
            dead=fields.items("dead", _ENTRIES_MAX, _agent),
            corrupt=fields.items("corrupt", _ENTRIES_MAX, _agent),
            lacking=fields.items("lacking", _ENTRIES_MAX, entry.lack),
            room=fields.integer("room", 0, _ENTRIES_MAX, 0),
            urgent=fields.integer("urgent", 0, count - 1) if fields.has("urgent") else None,
            first_byte_s=_seconds(fields, "first_byte_s"),
            chunk_s=_seconds(fields, "chunk_s"),
            next_s=fields.number("next_s", 0.0, _SECONDS_MAX, 1.0),
            sealed=fields.digest("sealed"),
            is_leaving=fields.flag("leaving"),
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """What a home answers to a report, at once."""

    boot: str
    """The home's own: another one means that it has forgotten us."""
    grants: tuple[Run, ...] = ()
    """One claim each."""
    revoked: tuple[Run, ...] = ()
    """Claims that are for nothing: somebody else holds these chunks."""
    members: tuple[Member, ...] | None = None
    """Whom to follow from now on; None where nothing changed."""
    holders: tuple[tuple[int, tuple[AgentID, ...]], ...] = ()
    """Who holds what the member lacks."""
    retry_after_s: float | None = None
    """The home does not grant yet: ask again after so long."""
    need_state: bool = False
    """The home does not know the member: send everything."""
    has_hope: bool = True
    """False when what the member lacks is neither held nor wanted by anybody who could fetch it."""
    sealed: Digest | None = None

    def to_json(self) -> bytes:
        """Write it on one line."""
        value: dict[str, object] = {"boot": self.boot}
        if self.grants:
            value["grants"] = [[run.start, run.count] for run in self.grants]
        if self.revoked:
            value["revoked"] = [[run.start, run.count] for run in self.revoked]
        if self.members is not None:
            value["members"] = [[member.agent, member.zone] for member in self.members]
        if self.holders:
            value["holders"] = [[index, *agents] for index, agents in self.holders]
        if self.retry_after_s is not None:
            value["retry_after_s"] = self.retry_after_s
        if self.need_state:
            value["need_state"] = True
        if not self.has_hope:
            value["stuck"] = True
        if self.sealed is not None:
            value["sealed"] = self.sealed.hex
        return written(value)

    @classmethod
    def parse(cls, data: bytes, chunk_count: int) -> "Reply":
        """Read one from somebody we do not trust.

        Raises:
            RemoteProtocolError: it breaks a rule or a limit.
        """
        fields = Fields.parse("a home's reply", data, REPORT_BYTES_MAX)
        entry = _Entries("a home's reply", chunk_count)
        return cls(
            boot=fields.text("boot", BOOT_PATTERN),
            grants=fields.items("grants", _ENTRIES_MAX, entry.run),
            revoked=fields.items("revoked", _ENTRIES_MAX, entry.run),
            members=(
                fields.items("members", FOLLOWED_MAX, entry.member)
                if fields.has("members")
                else None
            ),
            holders=fields.items("holders", _ENTRIES_MAX, entry.holders),
            retry_after_s=_seconds(fields, "retry_after_s"),
            need_state=fields.flag("need_state"),
            has_hope=not fields.flag("stuck"),
            sealed=fields.digest("sealed"),
        )


@dataclass(frozen=True, slots=True)
class LiveLine:
    """What a home tells a member without being asked: one line of the live stream."""

    digests: Mapping[int, Digest] = field(default_factory=dict[int, Digest])
    """New digests, at first contact; in the first line every digest known so far."""
    joined: tuple[Member, ...] = ()
    """Follow these too."""
    left: tuple[AgentID, ...] = ()
    """These are no members any more."""
    forgotten: tuple[int, ...] = ()
    """The digests of these led to a file that is wrong: they are to be told anew."""
    has_claims: bool = False
    """Claims can be had again: report."""
    sealed: Digest | None = None
    """The artifact's digest, once a member has sealed the manifest."""

    def to_json(self, chunk_count: int) -> bytes:
        """Write it on one line."""
        value: dict[str, object] = {}
        if self.digests:
            value.update(_digests_written(self.digests, chunk_count))
        if self.joined:
            value["joined"] = [[member.agent, member.zone] for member in self.joined]
        if self.left:
            value["left"] = self.left
        if self.forgotten:
            value["forgotten"] = self.forgotten
        if self.has_claims:
            value["claims"] = True
        if self.sealed is not None:
            value["sealed"] = self.sealed.hex
        return written(value)

    @classmethod
    def parse(cls, data: bytes, chunk_count: int) -> "LiveLine":
        """Read one from somebody we do not trust.

        Raises:
            RemoteProtocolError: it breaks a rule or a limit.
        """
        fields = Fields.parse("a live line", data, LINE_BYTES_MAX)
        entry = _Entries("a live line", chunk_count)
        return cls(
            digests=_digests_read(fields, chunk_count),
            joined=fields.items("joined", MEMBERS_MAX, entry.member),
            left=fields.items("left", MEMBERS_MAX, _agent),
            forgotten=fields.items("forgotten", chunk_count, entry.index),
            has_claims=fields.flag("claims"),
            sealed=fields.digest("sealed"),
        )


@dataclass(frozen=True, slots=True)
class HaveLine:
    """What a member tells its followers of the chunks it holds: one line of the have stream."""

    have: int | None = None
    """Everything held; in the first line of a stream."""
    got: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()
    is_leaving: bool = False

    def to_json(self, chunk_count: int) -> bytes:
        """Write it on one line."""
        value: dict[str, object] = {}
        if self.have is not None:
            value["have"] = _bits_written(self.have, chunk_count)
        if self.got:
            value["got"] = self.got
        if self.lost:
            value["lost"] = self.lost
        if self.is_leaving:
            value["leaving"] = True
        return written(value)

    @classmethod
    def parse(cls, data: bytes, chunk_count: int) -> "HaveLine":
        """Read one from somebody we do not trust.

        Raises:
            RemoteProtocolError: it breaks a rule or a limit.
        """
        fields = Fields.parse("a have line", data, LINE_BYTES_MAX)
        entry = _Entries("a have line", chunk_count)
        return cls(
            have=fields.bits("have", chunk_count) if fields.has("have") else None,
            got=fields.items("got", chunk_count, entry.index),
            lost=fields.items("lost", chunk_count, entry.index),
            is_leaving=fields.flag("leaving"),
        )


def _length(value: object) -> int:
    return len(cast("list[object]", value)) if isinstance(value, list) else 0


class _Entries:
    """Readers of what stands in the lists of a message about `chunk_count` chunks."""

    def __init__(self, what: str, chunk_count: int) -> None:
        self._count = chunk_count
        self._told = f"{what} has a bad entry"

    def index(self, value: object) -> int:
        return checked_integer(value, 0, self._count - 1, self._told)

    def digest(self, value: object) -> tuple[int, Digest]:
        index, digest = checked_tuple(value, 2, self._told)
        return self.index(index), checked_digest(digest, self._told)

    def run(self, value: object) -> Run:
        start, count = checked_tuple(value, 2, self._told)
        return self._run(start, count)

    def open_claim(self, value: object) -> OpenClaim:
        is_resting = _length(value) == 4
        start, count, received, *_ = checked_tuple(value, 4 if is_resting else 3, self._told)
        length = checked_integer(received, 0, _BYTES_MAX, self._told)
        return OpenClaim(self._run(start, count), length, is_resting)

    def returned_claim(self, value: object) -> ReturnedClaim:
        start, count, reason = checked_tuple(value, 3, self._told)
        try:
            return ReturnedClaim(self._run(start, count), HandBack(reason))
        except ValueError as exc:
            raise RemoteProtocolError(self._told) from exc

    def lack(self, value: object) -> Lack:
        return Lack(*self.holders(value))

    def holders(self, value: object) -> tuple[int, tuple[AgentID, ...]]:
        if not isinstance(value, list) or not 1 <= len(value) <= 1 + FOLLOWED_MAX:  # pyright: ignore[reportUnknownArgumentType]
            raise RemoteProtocolError(self._told)
        index, *agents = checked_tuple(value, len(value), self._told)  # pyright: ignore[reportUnknownArgumentType]
        return self.index(index), tuple(map(_agent, agents))

    def member(self, value: object) -> Member:
        agent, zone = checked_tuple(value, 2, self._told)
        return Member(_agent(agent), checked_text(zone, ZONE_PATTERN, self._told))

    def _run(self, start: object, count: object) -> Run:
        first = checked_integer(start, 0, self._count - 1, self._told)
        return Run(first, checked_integer(count, 1, self._count - first, self._told))


def _agent(value: object) -> AgentID:
    return AgentID(checked_text(value, AGENT_PATTERN, "an agent's id is not host:port"))


def _seconds(fields: Fields, name: str) -> float | None:
    return fields.number(name, 0.0, _SECONDS_MAX) if fields.has(name) else None


def _bits_written(bits: int, chunk_count: int) -> str:
    return base64_of(Bitmap(chunk_count, bits).to_bytes())


def _digests_written(digests: Mapping[int, Digest], chunk_count: int) -> dict[str, object]:
    """A few digests as a list, many as a bitmap and their bytes in its order."""
    if len(digests) <= 16:
        return {"digests": [[index, digest.hex] for index, digest in digests.items()]}
    known = Bitmap.of(chunk_count, digests).bits
    return {
        "known": _bits_written(known, chunk_count),
        "raw": base64_of(b"".join(digests[index].raw for index in indexes_of(known))),
    }


def _digests_read(fields: Fields, chunk_count: int) -> dict[int, Digest]:
    entry = _Entries("a list of digests", chunk_count)
    digests = dict(fields.items("digests", 16, entry.digest))
    digests.update(digests_of(fields, "raw", fields.bits("known", chunk_count)))
    return digests


def _state_written(state: State, chunk_count: int) -> dict[str, object]:
    value: dict[str, object] = {
        "have": _bits_written(state.have, chunk_count),
        "wanted": _bits_written(state.wanted, chunk_count),
        "sealed": state.is_sealed,
        "can_claim": state.can_claim,
        "zone": state.zone,
        "peers": state.peers,
    }
    if state.digests:
        value.update(_digests_written(state.digests, chunk_count))
    return value


def _state_read(fields: Fields, chunk_count: int) -> State:
    return State(
        have=fields.bits("have", chunk_count),
        wanted=fields.bits("wanted", chunk_count),
        digests=_digests_read(fields, chunk_count),
        is_sealed=fields.flag("sealed"),
        can_claim=fields.flag("can_claim"),
        zone=fields.text("zone", ZONE_PATTERN),
        peers=fields.items("peers", MEMBERS_MAX, _agent),
    )
