"""One warm-up: which nodes shall hold an artifact, and how far each of them is. A pure core.

Theory of operation
-------------------
    told(agent, progress)  ─┐                ┌─> Ask(agent)
    done(agent, pulled)     │                │
    failed(agent, fault)    ├─> Warmup ──────┤
    lost(agent, fault)      │                └─  next_deadline()
    withdrawn(agent)       ─┘       └─> nodes(), is_over

    waiting ── Ask ──> (told) pulling ── done ──> done
       ▲                 │         └──── failed ─> failed, cancelled
       └─── back-off ────┴─ lost ── patience spent ──> unreachable

Rule 1. What a node answers is final; that it does not answer is not. An agent that restarts is back
in seconds and has forgotten its order, so it is asked again, with back-off.
Rule 2. An order is idempotent: asking again joins what goes on, and of what has come nothing comes
twice. So nobody needs to know whether a node was restarted or only could not be reached.
Rule 3. The patience begins anew whenever a node says something, and so does the back-off. What is
bounded over the whole warm-up is how often it is asked: a node may crash each time it is.
Rule 4. Nodes that do not answer wait without a place: at most `asks_max` are asked at a time, and
the dead must not keep the living from their turn.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from damselfly.client.answers import Progress, Pulled, WarmNode

MESSAGE_CHARS_MAX = 400
"""Of a fault: a warm-up of a thousand nodes tells all of them in one line."""
OUTCOMES = frozenset({"done", "failed", "unreachable", "cancelled"})


@dataclass(frozen=True, kw_only=True)
class WarmLimits:
    """How many nodes are asked, and how often."""

    nodes_max: int = 1000
    """Of one warm-up: all of them fit into one line of progress."""
    asks_max: int = 256
    """Nodes watched at a time, a connection each. Those that wait find more holders later."""
    asks_per_node_max: int = 50
    """An agent that crashes whenever it pulls is given up at some point."""
    patience_s: float = 60.0
    """A restart takes seconds; a node that reboots is asked by the next warm-up."""
    back_off_s_min: float = 0.2
    back_off_s_max: float = 5.0


@dataclass(frozen=True, slots=True)
class Ask:
    """Give this agent the order, and watch it."""

    agent: str


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong: the class of an error by name, and its message, which holds no secrets."""

    error: str
    message: str


@dataclass(slots=True)
class _Node:
    agent: str
    name: str
    heard_s: float
    due_s: float
    state: str = "waiting"
    is_asked: bool = False
    asks: int = 0
    losses: int = 0
    """In a row."""
    progress: Progress | None = None
    pulled: Pulled | None = None
    fault: Fault | None = None

    @property
    def is_over(self) -> bool:
        return self.state in OUTCOMES


@dataclass(slots=True)
class Warmup:
    """One warm-up of the agents in `names`, which gives the name of each one's node."""

    names: Mapping[str, str]
    began_s: float
    limits: WarmLimits = field(default_factory=WarmLimits)
    version: int = 0
    """Grows with every fact."""
    _nodes: dict[str, _Node] = field(init=False)

    def __post_init__(self) -> None:
        assert len(self.names) <= self.limits.nodes_max
        self._nodes = {
            agent: _Node(agent, name, heard_s=self.began_s, due_s=self.began_s)
            for agent, name in sorted(self.names.items())
        }

    def __repr__(self) -> str:
        over = sum(node.is_over for node in self._nodes.values())
        return f"<Warmup {over} of {len(self._nodes)} over>"

    # --- facts -------------------------------------------------------------------------------

    def told(self, agent: str, progress: Progress, now: float) -> None:
        """The node pulls, and is so far."""
        node = self._alive(agent)
        if node is not None:
            node.state = "pulling"
            node.progress = progress
            node.heard_s = now
            node.losses = 0
            node.fault = None

    def done(self, agent: str, pulled: Pulled, now: float) -> None:
        """The node holds it."""
        node = self._alive(agent)
        if node is not None:
            node.state = "done"
            node.pulled = pulled
            node.heard_s = now
            node.fault = None

    def failed(self, agent: str, fault: Fault) -> None:
        """The node says that it cannot, or does not want to."""
        node = self._alive(agent)
        if node is not None:
            node.state = "cancelled" if fault.error == "CancelledError" else "failed"
            node.fault = fault

    def lost(self, agent: str, fault: Fault, now: float) -> None:
        """The node cannot be reached, has hung up, or is too busy to take the order."""
        node = self._alive(agent)
        if node is None:
            return
        limits = self.limits
        node.is_asked = False
        node.losses += 1
        node.fault = fault
        end_s = node.heard_s + limits.patience_s
        if now >= end_s or node.asks >= limits.asks_per_node_max:
            node.state = "unreachable"
            return
        node.state = "trying"
        rest_s = limits.back_off_s_min * 2 ** min(node.losses - 1, 16)
        # The last try is at the end of the patience, not at the last step of the back-off.
        node.due_s = min(now + min(limits.back_off_s_max, rest_s), end_s)

    def withdrawn(self, agent: str) -> None:
        """Nobody wants this node warmed any more."""
        node = self._alive(agent)
        if node is not None:
            node.state = "cancelled"
            node.fault = Fault("CancelledError", "the warm-up was cancelled")

    def _alive(self, agent: str) -> _Node | None:
        """The node, if it can still be told something about: outcomes are final."""
        node = self._nodes.get(agent)
        if node is None or node.is_over:
            return None
        self.version += 1
        return node

    # --- commands ----------------------------------------------------------------------------

    def next_action(self, now: float) -> Ask | None:
        """Who to ask now, if anybody."""
        if self._ask_count >= self.limits.asks_max:
            return None
        for node in self._nodes.values():
            if not node.is_over and not node.is_asked and node.due_s <= now:
                node.is_asked = True
                node.asks += 1
                return Ask(node.agent)
        return None

    def next_deadline(self) -> float | None:
        """When to ask for actions again, if no fact comes before."""
        if self._ask_count >= self.limits.asks_max:
            return None
        waiting = (n.due_s for n in self._nodes.values() if not n.is_over and not n.is_asked)
        return min(waiting, default=None)

    @property
    def _ask_count(self) -> int:
        return sum(node.is_asked and not node.is_over for node in self._nodes.values())

    # --- the view ----------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Every node has its outcome."""
        return all(node.is_over for node in self._nodes.values())

    @property
    def artifact(self) -> str | None:
        """What the nodes that are done hold, if it is one and the same."""
        held = {node.pulled.artifact for node in self._nodes.values() if node.pulled is not None}
        return held.pop() if len(held) == 1 else None

    def nodes(self) -> tuple[WarmNode, ...]:
        """Every node as it is now, in the order of addresses."""
        return tuple(_shown(node) for node in self._nodes.values())


def _shown(node: _Node) -> WarmNode:
    shown = WarmNode(agent=node.agent, node=node.name, state=node.state)
    if node.pulled is not None:
        pulled = node.pulled
        shown = shown.but(
            artifact=pulled.artifact,
            bytes_done=pulled.bytes,
            bytes_total=pulled.bytes,
            bytes_from_origin=pulled.bytes_from_origin,
            bytes_from_peers=pulled.bytes_from_peers,
            bytes_from_store=pulled.bytes_from_store,
        )
    elif node.progress is not None:
        progress = node.progress
        shown = shown.but(
            phase=progress.phase,
            artifact=progress.artifact,
            bytes_done=progress.bytes_done,
            bytes_total=progress.bytes_total,
            bytes_from_origin=progress.bytes_from_origin,
            bytes_from_peers=progress.bytes_from_peers,
            bytes_from_store=progress.bytes_from_store,
            waiting_for=progress.waiting_for,
        )
    if node.fault is not None:
        shown = shown.but(error=node.fault.error, message=node.fault.message)
    return shown
