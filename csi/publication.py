"""A volume at a target: its state, and what a call does to it. Pure: facts in, one command out.

                      Open                      Mount
    nothing ─────────────────> opening ─────────────────> published ──── Done (again and again)
       ▲                          │                           │
       └──────── unpublish, or a final error: what was made is taken away again

A volume id may be at several targets (pods that share a claim), and each is published and taken
away by itself, so the unit of state is the target. What is known of one:

- the *record*: a file, written before anything is mounted and removed after everything is gone;
- the *opening*: the agent is being asked; it is known to this process alone;
- the *mount*, as the kernel tells it.

Rule 1: a target that is mounted as its record says is published. Nothing else is looked at: not the
        agent, not the origin, not the secret. A kubelet that restarts publishes everything again.
Rule 2: under a mount that is well nothing is ever changed; a pod may be reading.
Rule 3: a dead mount (its directory is gone, its server does not answer) is no mount. It is taken
        away, lazily, and the volume is mounted anew.
Rule 4: the record outlives a reboot, which takes all mounts: with its lease and its view still in
        the store, the volume is mounted again without asking anybody.
Rule 5: the same target with another volume or other contents is refused, never exchanged.
"""

from dataclasses import dataclass
from enum import Enum

from damselfly.client.record import Record
from damselfly.csi.status import ConflictError, PreconditionError
from damselfly.csi.volume import Wish, recorded
from damselfly.errors import DamselflyError


class Publication(Record):
    """The record of a volume at a target.

    `ref` is `recorded`, without what may be a signature: to compare and to show, not to pull.
    `artifact`, `store` and `path` are what the agent opened. They are empty in a record that was
    made for a mount which had lost its own, as is `ref`: such a volume is taken for what is wanted.
    """

    volume_id: str
    target: str
    lease: str
    ref: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    layout: str = "plain"
    artifact: str = ""
    store: str = ""
    path: str = ""
    bytes: int = 0
    files: int = 0
    published_ns: int = 0
    format: int = 1

    def shows(self, wish: Wish) -> bool:
        """This volume is the one that is wished for."""
        if self.volume_id != wish.volume_id:
            return False
        return not self.ref or (self.ref, self.include, self.exclude, self.layout) == (
            recorded(wish.source.ref),
            wish.source.include,
            wish.source.exclude,
            wish.source.layout,
        )


class Mount(Enum):
    """What is mounted at a target."""

    NONE = "nothing"
    WELL = "the view, sealed: read-only, without devices and set-user-id bits"
    WRITABLE = "the view, not sealed: mounted by another hand than this driver's"
    DEAD = "a mount whose directory is gone"
    FOREIGN = "something else"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is so at a target now.

    `record` is the target's record, or what the agent has just opened for it (`is_fresh`).
    `is_held`: its view is in the store (looked at where nothing is mounted). Without a record, any
    mount that lives is FOREIGN.
    """

    mount: Mount
    record: Publication | None = None
    is_fresh: bool = False
    is_held: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """It is published."""


@dataclass(frozen=True, slots=True)
class Open:
    """Ask the agent for the volume."""


@dataclass(frozen=True, slots=True)
class Show:
    """Lease it, record it, and mount it if it is not mounted, or not sealed."""

    record: Publication


@dataclass(frozen=True, slots=True)
class Clear:
    """Take away the mount that is there, and look again."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with an error; nothing was changed."""

    error: DamselflyError


Command = Done | Open | Show | Clear | Refuse


def publish(wish: Wish, facts: Facts) -> Command:
    """What a publish does that found these facts."""
    record = facts.record
    if record is not None and not record.shows(wish):
        return Refuse(conflict(wish, record))
    if facts.mount is Mount.DEAD:
        return Clear()
    if record is None:
        # Whatever is mounted there, the agent says what it should be.
        return Open()
    match facts.mount:
        case Mount.WELL:
            return Show(record) if facts.is_fresh else Done()
        case Mount.WRITABLE:
            return Show(record)
        case Mount.FOREIGN:
            return Refuse(
                PreconditionError(f"something else is mounted at {wish.target}: not touching it")
            )
        case Mount.NONE:
            if facts.is_held:
                return Show(record)
            return Refuse(_unseen(record)) if facts.is_fresh else Open()


def conflict(wish: Wish, other: Publication | Wish) -> ConflictError:
    """Say that a target is taken."""
    if other.volume_id != wish.volume_id:
        return ConflictError(f"{wish.target} is the target of another volume, {other.volume_id}")
    return ConflictError(f"{wish.target} has this volume already, with other attributes")


def _unseen(record: Publication) -> PreconditionError:
    return PreconditionError(
        f"the agent opened {record.path}, which is not to be seen from here: the driver needs the"
        " agent's store at the same path"
    )
