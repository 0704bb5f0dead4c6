"""Links and flows under a virtual clock: every flow gets its max-min fair rate.

A flow is one connection between two links (somebody's uplink, somebody's downlink) and carries its
transfers one after the other, as a connection does. Each link has a *level*: the rate that a flow
bottlenecked there gets. A flow's rate is the least of its links' levels and its own cap, and a
link's level follows from those of the links at the other ends of its flows. Going around until
nothing changes gives the max-min fair rates (Bertsekas and Gallager, 1992, §6.5).

When a flow comes or goes, only links whose level moves by more than `tolerance` are worked out
again, `visits_max` links at most. With `tolerance` 0 and no limit on visits the rates are exact;
`test_network.py` compares the two.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


class Events:
    """What happens when: a heap under a virtual clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.count = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []

    def at(self, when_s: float, do: Callable[..., None], *args: object) -> None:
        """Call `do(*args)` then."""
        self.count += 1
        heapq.heappush(self._heap, (when_s, self.count, do, args))

    def step(self) -> bool:
        """Let the next thing happen; False when nothing will."""
        if not self._heap:
            return False
        when_s, _, do, args = heapq.heappop(self._heap)
        self.now = max(self.now, when_s)
        do(*args)
        return True


@dataclass(slots=True, eq=False)
class Link:
    """One direction of somebody's link, in bytes per second."""

    cap: float
    level: float = math.inf
    flows: "dict[Flow, Link]" = field(default_factory=dict["Flow", "Link"])
    """Active flows, and the link at the other end of each."""
    is_queued: bool = False


@dataclass(slots=True, eq=False)
class Transfer:
    """Bytes on their way over one flow."""

    size: float
    done: Callable[..., None]
    args: tuple[object, ...]


@dataclass(slots=True, eq=False)
class Flow:
    """One connection's payload from one link to another."""

    source: Link
    sink: Link
    cap: float = math.inf
    rate: float = 0.0
    left: float = 0.0
    """Of the first transfer in the queue, as of `since_s`."""
    since_s: float = 0.0
    due_s: float = math.inf
    """The earliest wake-up in the heap. Invariant: not later than the first transfer's end."""
    queue: deque[Transfer] = field(default_factory=deque[Transfer])
    is_active: bool = False


class Network:
    """All flows there are."""

    def __init__(self, events: Events, *, tolerance: float = 0.0, visits_max: int = 10_000) -> None:
        self._events = events
        self._tolerance = tolerance
        self._visits_max = visits_max
        self.visits = 0
        self.moved_bytes = 0.0

    def send(self, flow: Flow, size: float, done: Callable[..., None], *args: object) -> Transfer:
        """Queue bytes on a flow; `done(*args)` is called when the last one has arrived."""
        transfer = Transfer(size, done, args)
        flow.queue.append(transfer)
        if len(flow.queue) == 1:
            now = self._events.now
            flow.left = size
            flow.since_s = now
            flow.due_s = math.inf
            flow.is_active = True
            flow.rate = 0.0
            flow.source.flows[flow] = flow.sink
            flow.sink.flows[flow] = flow.source
            self._settle((flow.source, flow.sink))
            self._retime(flow, min(flow.source.level, flow.sink.level, flow.cap))
        return transfer

    def cancel(self, flow: Flow, transfer: Transfer) -> float:
        """Stop a transfer; returns how many of its bytes have arrived."""
        if transfer not in flow.queue:
            return 0.0
        if flow.queue[0] is not transfer:
            flow.queue.remove(transfer)
            return 0.0
        arrived = self.arrived(flow, transfer)
        self._next(flow)
        return arrived

    def arrived(self, flow: Flow, transfer: Transfer) -> float:
        """How many bytes of a transfer have arrived by now."""
        if not flow.queue or flow.queue[0] is not transfer:
            return 0.0
        left = flow.left - flow.rate * (self._events.now - flow.since_s)
        return transfer.size - max(0.0, left)

    def drop(self, flows: Iterable[Flow]) -> None:
        """Forget everything queued on these flows, without a word."""
        for flow in flows:
            flow.queue.clear()
            self._rest(flow)

    def _wake(self, flow: Flow, due_s: float) -> None:
        if not flow.is_active or due_s != flow.due_s:
            return
        now = self._events.now
        flow.left -= flow.rate * (now - flow.since_s)
        flow.since_s = now
        if flow.left > 1e-6 * flow.queue[0].size + 1e-9:
            flow.due_s = now + flow.left / flow.rate if flow.rate else math.inf
            if flow.rate:
                self._events.at(flow.due_s, self._wake, flow, flow.due_s)
            return
        transfer = flow.queue[0]
        self.moved_bytes += transfer.size
        self._next(flow)
        transfer.done(*transfer.args)

    def _next(self, flow: Flow) -> None:
        flow.queue.popleft()
        if not flow.queue:
            self._rest(flow)
            return
        flow.left = flow.queue[0].size
        flow.since_s = self._events.now
        flow.due_s = math.inf
        self._retime(flow, flow.rate)

    def _rest(self, flow: Flow) -> None:
        if flow.is_active:
            flow.is_active = False
            flow.rate = 0.0
            del flow.source.flows[flow]
            del flow.sink.flows[flow]
            self._settle((flow.source, flow.sink))

    def _retime(self, flow: Flow, rate: float) -> None:
        now = self._events.now
        flow.left -= flow.rate * (now - flow.since_s)
        flow.since_s = now
        flow.rate = rate
        due_s = now + max(0.0, flow.left) / rate if rate else math.inf
        if due_s < flow.due_s:
            flow.due_s = due_s
            self._events.at(due_s, self._wake, flow, due_s)

    def _settle(self, links: Iterable[Link]) -> None:
        """Work out the levels of these links, and of those that depend on them."""
        queue = deque(links)
        for link in queue:
            link.is_queued = True
        visits = self._visits_max
        tolerance = self._tolerance
        while queue:
            link = queue.popleft()
            link.is_queued = False
            if visits <= 0:
                continue
            visits -= 1
            self.visits += 1
            old = link.level
            new = level_of(link)
            if new == old or abs(new - old) <= tolerance * min(new, old):
                continue
            link.level = new
            for flow, other in link.flows.items():
                rate = min(new, other.level, flow.cap)
                if rate != flow.rate:
                    self._retime(flow, rate)
                if not other.is_queued and (old < other.level or new < other.level):
                    other.is_queued = True
                    queue.append(other)


def level_of(link: Link) -> float:
    """The rate that a flow gets which nothing but this link holds back."""
    wishes = [min(flow.cap, other.level) for flow, other in link.flows.items()]
    if not wishes:
        return math.inf
    left = link.cap
    count = len(wishes)
    share = left / count
    if min(wishes) >= share:
        return share
    wishes.sort()
    for wish in wishes:
        share = left / count
        if wish >= share:
            return share
        left -= wish
        count -= 1
    return math.inf
