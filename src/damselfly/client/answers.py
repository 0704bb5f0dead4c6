"""What is said on the agent's socket: one record per question and answer.

The agent builds these and the client reads them, so the two sides cannot drift apart. Counts of
bytes are of the artifact's own bytes, before any protocol; seconds are durations, `_ns` is wall
time since 1970.
"""

from typing import ClassVar

from damselfly.client.record import Record


class Credentials(Record):
    """What proves to an origin who asks: a bearer token, or a name and a password.

    Never logged, never stored, never told to another agent.
    """

    token: str | None = None
    username: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        return "<Credentials>"


class PullRequest(Record):
    """Pull what is at `ref`: all of it, or the files that some `include` and no `exclude` names.

    `credentials` are shown to the origin, and to nobody else. With `hold` what was pulled is leased
    for as long as the answer is being listened to, so that somebody can copy it in peace. What the
    ref is may have been found out `age_s_max` ago; without it, as long ago as the agents believe.
    """

    ref: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    credentials: Credentials | None = None
    hold: bool = False
    age_s_max: float | None = None

    origin: str | None = None
    """`auto`, `never` or `always`: when the origin is asked; None is as the agent is set."""


class VolumeRequest(Record):
    """Open a volume: prove that `credentials` may read `ref`, pull it, lease it, show it.

    `lease` names the lease that keeps the artifact here; whoever asked removes its file to give it
    back (`model/lease.py` has the rules), with or without an agent. `layout` is `plain`, the files
    as they are at the origin, or `hf-cache`, the tree that the hub's own client keeps.
    """

    ref: str
    lease: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    layout: str = "plain"
    credentials: Credentials | None = None


class CapacityRequest(Record):
    """How much could be stored: of anything, or of `ref`, which may be here already in part."""

    ref: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


class WarmRequest(Record):
    """Make nodes hold what is at `ref` before it is needed.

    Which nodes: those of the agents at the addresses `agents`, those whose Kubernetes label is
    `selector` (LABEL=VALUE), or `everywhere`; without any of them, this node. `pin` keeps the
    artifact on each until it is unpinned, `ttl_s` for so long after it has come.
    """

    ref: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    selector: str | None = None
    everywhere: bool = False
    pin: bool = False
    ttl_s: float | None = None


class CancelRequest(Record):
    """Stop the pulls of a ref or an artifact."""

    target: str


class VerifyRequest(Record):
    """Re-read and re-hash one artifact, or all; `repair` fetches what is bad again."""

    artifact: str | None = None
    repair: bool = False


class ArtifactRequest(Record):
    """Do something with one artifact."""

    artifact: str


class Progress(Record):
    """How far a pull has come.

    `phase` is `resolving` until sizes are known, then `fetching`, then `verifying` if it must be
    signed, then `sealing`. `waiting_for` says in words what a pull that does not move waits for.
    """

    event: ClassVar[str] = "progress"

    ref: str
    artifact: str | None = None
    phase: str = "resolving"
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_from_origin: int = 0
    bytes_from_peers: int = 0
    bytes_from_store: int = 0
    peers: int = 0
    seconds: float = 0.0
    waiting_for: str | None = None


class Signature(Record):
    """A signature that the agent verified: by whom (for people), how, when, and of how many files.

    `method` is `key`, `certificate` or `keyless`.
    """

    by: str
    method: str
    verified_ns: int
    files: int


class Pulled(Record):
    """A pull ended well: `path` is a read-only view of the files in the store."""

    event: ClassVar[str] = "done"

    ref: str
    artifact: str
    path: str
    bytes: int
    files: int
    seconds: float
    bytes_from_origin: int
    bytes_from_peers: int
    bytes_from_store: int
    signature: Signature | None = None


class Opened(Record):
    """A volume is open: `path` is what to mount, `store` the store's root that it lies in.

    `path` is a directory of the store that exists as long as the lease does.
    """

    event: ClassVar[str] = "done"

    ref: str
    artifact: str
    path: str
    store: str
    bytes: int
    files: int


class Capacity(Record):
    """`available_bytes` can be stored: free space, what may be evicted for it, and what is here.

    `ref_bytes` is the size of the ref that was asked about, `ref_bytes_held` what of it is here.
    """

    available_bytes: int
    ref_bytes: int | None = None
    ref_bytes_held: int = 0


class WarmNode(Record):
    """One node of a warm-up: the address of its agent, Kubernetes' name of it, and how far it is.

    `state` is `waiting` (not asked yet), `pulling`, `trying` (it does not answer, and is asked
    again), or its outcome: `done`, `failed`, `unreachable`, `cancelled`, and to a cancellation also
    `idle` (nothing was to be cancelled there). `error` is the class of what went wrong.
    """

    agent: str
    node: str = ""
    state: str = "waiting"
    phase: str = ""
    artifact: str | None = None
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_from_origin: int = 0
    bytes_from_peers: int = 0
    bytes_from_store: int = 0
    waiting_for: str | None = None
    error: str | None = None
    message: str | None = None


class WarmProgress(Record):
    """How far a warm-up has come, on every node."""

    event: ClassVar[str] = "progress"

    ref: str
    nodes: tuple[WarmNode, ...]
    seconds: float = 0.0


class Warmed(Record):
    """A warm-up ended, or was cancelled: what became of it on every node.

    `artifact` is there if all nodes that hold the ref hold the same.
    """

    event: ClassVar[str] = "done"

    ref: str
    artifact: str | None
    nodes: tuple[WarmNode, ...]
    seconds: float


class Cancelled(Record):
    """A pull that was stopped because somebody asked for it."""

    ref: str
    artifact: str | None = None


class HeldArtifact(Record):
    """An artifact in the store, whole or in part.

    `bytes` and `files` count what its manifest lists, `bytes_held` what is here. `path` is a view
    of it, if there is one. `refs` are the names it was pulled by. `signature` is the one that was
    verified last; None if none was.
    """

    artifact: str
    refs: tuple[str, ...] = ()
    bytes: int = 0
    bytes_held: int = 0
    files: int = 0
    pinned: bool = False
    leases: int = 0
    used_ns: int | None = None
    path: str | None = None
    signature: Signature | None = None


class ExplainedRun(Record):
    """Consecutive chunks of a file that came the same way: `first` counts within the file.

    `source` is origin, peer, store (they were here) or copied (from other files here), `by` who
    served them, `why` in words. `asked_s` counts from the pull's begin, `seconds` from there.
    """

    first: int
    chunks: int
    bytes: int
    source: str
    by: str
    why: str
    asked_s: float
    seconds: float


class ExplainedFile(Record):
    """How the chunks of one file came; those that have not are in no run."""

    path: str
    bytes: int
    runs: tuple[ExplainedRun, ...] = ()


class Explained(Record):
    """Where the chunks of one pull came from, and why; `policy` is `--origin`'s.

    `error` is why a pull failed.
    """

    ref: str
    artifact: str | None
    phase: str
    policy: str
    began_ns: int
    seconds: float
    chunks: int
    chunks_missing: int
    files: tuple[ExplainedFile, ...] = ()
    error: str | None = None


class VerifyProgress(Record):
    """How far a verification has come.

    `phase` is `reading`, then `repairing` while bad chunks are being fetched again; before that it
    may say what the verification waits for.
    """

    event: ClassVar[str] = "progress"

    artifact: str | None
    phase: str = "reading"
    bytes_done: int = 0
    bytes_total: int = 0
    chunks_bad: int = 0


class BadChunk(Record):
    """Bytes on disk that are not what they should be: `length` bytes at `start` of file `path`."""

    event: ClassVar[str] = "bad"

    artifact: str
    path: str
    start: int
    length: int
    digest: str


class Verified(Record):
    """A verification ended: `chunks_bad` were found, of which `chunks_repaired` are well again.

    `unrepaired` names the artifacts that a repair could not mend, each with the reason.
    """

    event: ClassVar[str] = "done"

    artifacts: int
    bytes: int
    chunks_bad: int
    chunks_repaired: int
    seconds: float
    unrepaired: tuple[str, ...] = ()


class Removed(Record):
    """An artifact is no longer in the store; what others share with it is."""

    artifact: str
    bytes_freed: int


class Collected(Record):
    """What a collection of the unreferenced gave back."""

    bytes_freed: int
    files: int = 0


class StoreStatus(Record):
    """The store: `bytes` are ours, `reserved_bytes` promised to pulls, `free_bytes` the disk's."""

    path: str
    bytes: int
    capacity_bytes: int
    reserved_bytes: int = 0
    free_bytes: int = 0
    artifacts: int = 0
    leases: int = 0
    pins: int = 0


class PeerStatus(Record):
    """Another agent as this one sees it: `connected`, `resting` or `quarantined`."""

    agent: str
    state: str
    zone: str = ""


class Traffic(Record):
    """Bytes moved since the agent started."""

    bytes_from_origin: int = 0
    bytes_from_peers: int = 0
    bytes_from_store: int = 0
    bytes_served: int = 0


class Status(Record):
    """The agent at a glance; `state` is `starting`, `ready` or `draining`."""

    version: str
    agent: str
    state: str
    zone: str
    pid: int
    uptime_s: float
    store: StoreStatus
    peers: tuple[PeerStatus, ...] = ()
    pulls: tuple[Progress, ...] = ()
    traffic: Traffic = Traffic()


class Check(Record):
    """One thing that a doctor looked at: `ok`, `warning` or `bad`, and what to do about it."""

    name: str
    verdict: str
    detail: str
    advice: str = ""


class Setting(Record):
    """One setting in effect, and who set it (a flag, a variable, a file, or the default)."""

    key: str
    value: str
    source: str


class Diagnosis(Record):
    """What a doctor found, and the configuration in effect."""

    checks: tuple[Check, ...]
    settings: tuple[Setting, ...] = ()
