"""Which addresses a Service of Kubernetes has: a pure core (facts in with `now`, commands out).

Theory of operation
-------------------
A Service's EndpointSlices are listed once and then watched from the version of the list. Events
say what changed; bookmarks only say how far the server is.

    listed(slices, version)  ─┐                      ┌─> List
    event(kind, slice)       ─┼─> EndpointSlices ────┼─> Watch(version)
    closed, failed           ─┘         │            └─> Wait(until_s)
                                        └─> view: address -> name of its node

Rule 1. A list replaces everything; an event replaces one slice. Both may be told again.
Rule 2. Nothing but a list or an event changes the view: while the server is gone, for seconds or
for hours, it stays what it was. An outage of discovery must not dissolve the swarm.
Rule 3. A watch that broke goes on from the last version seen, bookmarks included; that is cheap for
the server, which has a thousand of us. What a server answers 410 (it has forgotten that version),
or anything else that is no sign of trouble of its own, is followed by a list.
Rule 4. After a failure we wait, twice as long after each in a row. A watch that lasted or told us
something ends the row, and one that the server ended in good order after a while is no failure:
servers end every watch after some minutes. How long exactly we wait is drawn by the shell
(`jitter`), or a thousand agents would come back in one moment.
Rule 5. Once in `relist_s` the list is asked for anyway: a server that was restored from a backup
may say nothing about versions that it has not reached again.
Rule 6. One agent is one address. Slices overlap while they are rewritten; and on a dual-stack
Service every pod has two addresses, of which the family that we are reached by ourselves counts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from damselfly.errors import RemoteProtocolError
from damselfly.p2p.kubernetes.endpoints import EndpointSlice
from damselfly.p2p.kubernetes.objects import version_of


@dataclass(frozen=True, kw_only=True)
class EndpointSlicesLimits:
    """How patient we are with the server, and how much it may tell us."""

    back_off_s_min: float = 0.5
    """A load balancer's next server answers at once: the first wait is short."""
    back_off_s_max: float = 30.0
    """So long after an outage everybody is up to date again."""
    steady_s: float = 5.0
    """A watch that lasted so long worked."""
    relist_s: float = 3600.0
    """A list of 10,000 agents is 5 MB: nothing an hour, much a minute."""
    slices_max: int = 10_000


@dataclass(frozen=True, slots=True)
class List:
    """Ask for all slices."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Ask for what changes after `version`."""

    version: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing before `until_s`."""

    until_s: float


Command = List | Watch | Wait


class EndpointSlices:
    """The slices of one Service. Belongs to one task, which carries out one command at a time."""

    def __init__(
        self, *, prefers_ipv6: bool = False, limits: EndpointSlicesLimits | None = None
    ) -> None:
        self._prefers_ipv6 = prefers_ipv6
        self._limits = limits or EndpointSlicesLimits()
        self._slices: dict[str, EndpointSlice] = {}
        self._version: str | None = None
        self._failures = 0
        self._not_before_s = 0.0
        self._watching_since_s: float | None = None
        self._listed_s: float | None = None
        self.view: Mapping[str, str] = {}
        """The addresses listed, each with the name of its node (empty when that is unknown)."""

    # --- facts ---------------------------------------------------------------

    def listed(self, slices: Iterable[object], version: str, now: float) -> None:
        """The server has exactly these slices, as of `version`.

        Raises:
            RemoteProtocolError: they are no slices, or too many.
        """
        found = {each.name: each for each in map(EndpointSlice.parse, slices)}
        if len(found) > self._limits.slices_max:
            raise RemoteProtocolError(f"the API server lists {len(found)} EndpointSlices")
        self._slices = found
        self._version = version
        self._listed_s = now
        self._not_before_s = now
        self._merge()

    def event(self, kind: str, value: object, now: float) -> None:
        """The watch told of a change.

        Raises:
            RemoteProtocolError: it is no event about a slice.
        """
        if kind == "BOOKMARK":
            self._version = version_of(value)
        elif kind in {"ADDED", "MODIFIED", "DELETED"}:
            found = EndpointSlice.parse(value)
            if kind == "DELETED":
                self._slices.pop(found.name, None)
            elif len(self._slices) < self._limits.slices_max or found.name in self._slices:
                self._slices[found.name] = found
            else:
                raise RemoteProtocolError(f"the API server adds to {len(self._slices)} slices")
            self._version = found.version
            self._merge()
        else:
            raise RemoteProtocolError(f"the API server tells of an unknown event {kind[:20]!r}")
        self._failures = 0

    def closed(self, now: float, *, jitter: float) -> None:
        """The server ended the watch in good order. `jitter` is drawn from [0, 1)."""
        since_s = self._watching_since_s
        if since_s is not None and now - since_s >= self._limits.steady_s:
            self._end_watch(now)
            self._failures = 0
            self._not_before_s = now
        else:
            self._rest(now, jitter)

    def failed(self, now: float, *, jitter: float, is_version_bad: bool = False) -> None:
        """The list or the watch failed. `jitter` is drawn from [0, 1).

        `is_version_bad`: the server has forgotten the version (410), or is well and does not go
        on from there.
        """
        if is_version_bad:
            self._version = None
        self._rest(now, jitter)

    def _rest(self, now: float, jitter: float) -> None:
        limits = self._limits
        since_s = self._watching_since_s
        if since_s is not None and now - since_s >= limits.steady_s:
            self._failures = 0
        self._end_watch(now)
        rest_s = limits.back_off_s_min * 2.0 ** min(self._failures, 16)
        self._failures += 1
        self._not_before_s = now + min(rest_s, limits.back_off_s_max) * (0.5 + 0.5 * jitter)

    def _end_watch(self, now: float) -> None:
        self._watching_since_s = None
        if self._listed_s is not None and now - self._listed_s >= self._limits.relist_s:
            self._version = None

    # --- commands --------------------------------------------------------------

    def next_command(self, now: float) -> Command:
        """What to do now; it ends with a fact."""
        if now < self._not_before_s:
            return Wait(self._not_before_s)
        if self._version is None:
            return List()
        self._watching_since_s = now
        return Watch(self._version)

    # --- for the shell and tests to look at --------------------------------------

    @property
    def has_listed(self) -> bool:
        """The server was heard of at least once: the view is more than a beginning."""
        return self._listed_s is not None

    @property
    def problems(self) -> Mapping[str, str]:
        """Slices that list nobody although they should, and why."""
        return {each.name: each.problem for each in self._slices.values() if each.problem}

    def __repr__(self) -> str:
        return f"<EndpointSlices {len(self.view)} addresses in {len(self._slices)} slices>"

    def _merge(self) -> None:
        endpoints = [each for name in sorted(self._slices) for each in self._slices[name].endpoints]
        reached = {each.pod for each in endpoints if each.is_ipv6 is self._prefers_ipv6}
        view: dict[str, str] = {}
        for each in endpoints:
            is_second = each.is_ipv6 is not self._prefers_ipv6 and each.pod in reached
            if not (is_second and each.pod):
                view[each.address] = view.get(each.address) or each.node
        self.view = view
