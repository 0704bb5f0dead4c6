"""Whatever happens in between, the view is what the server had at the version that was reached."""

from typing import Any

from hypothesis import settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from damselfly.p2p.kubernetes.endpoint_slices import EndpointSlices, List, Wait, Watch

NAMES = st.sampled_from(["a", "b", "c"])
HOSTS = st.sets(st.integers(1, 9), max_size=4)
JITTER = st.floats(0, 0.99)


class Server:
    """What an API server has, and what it remembers of how that came about."""

    def __init__(self) -> None:
        self.version = 1
        self.slices: dict[str, dict[str, Any]] = {}
        self.events: list[tuple[int, str, dict[str, Any]]] = []
        self.forgotten = 0
        self.views: dict[int, set[str]] = {1: set()}

    def put(self, name: str, hosts: set[int]) -> None:
        kind = "MODIFIED" if name in self.slices else "ADDED"
        self._write(kind, name, hosts)
        self.slices[name] = self.events[-1][2]
        self._remember()

    def delete(self, name: str) -> None:
        if name in self.slices:
            self._write("DELETED", name, set())
            del self.slices[name]
            self._remember()

    def _write(self, kind: str, name: str, hosts: set[int]) -> None:
        self.version += 1
        value = {
            "metadata": {"name": name, "resourceVersion": str(self.version)},
            "addressType": "IPv4",
            "ports": [{"name": "peers", "port": 1}],
            "endpoints": [{"addresses": [f"10.0.0.{host}"]} for host in sorted(hosts)],
        }
        self.events.append((self.version, kind, value))

    def _remember(self) -> None:
        self.views[self.version] = self.seen()

    def seen(self) -> set[str]:
        return {
            f"{entry['addresses'][0]}:1"
            for each in self.slices.values()
            for entry in each["endpoints"]
        }

    def pass_version(self) -> None:
        self.version += 1
        self._remember()


class Watching(RuleBasedStateMachine):
    """A client that carries out commands, and a network between it and the server."""

    def __init__(self) -> None:
        super().__init__()
        self.server = Server()
        self.core = EndpointSlices()
        self.now = 0.0
        self.reached: int | None = None
        """The version that the core should have the view of."""
        self.watching: int | None = None
        """Up to where the open watch has been told."""

    @initialize()
    def begin(self) -> None:
        assert self.core.next_command(0.0) == List()

    # --- the server ------------------------------------------------------------

    @rule(name=NAMES, hosts=HOSTS)
    def puts(self, name: str, hosts: set[int]) -> None:
        self.server.put(name, hosts)

    @rule(name=NAMES)
    def deletes(self, name: str) -> None:
        self.server.delete(name)

    @rule()
    def passes(self) -> None:
        self.server.pass_version()

    @rule()
    def forgets(self) -> None:
        self.server.forgotten = self.server.version
        self.server.events.clear()

    # --- the client --------------------------------------------------------------

    @precondition(lambda self: self.watching is None)
    @rule(works=st.booleans(), jitter=JITTER)
    def acts(self, works: bool, jitter: float) -> None:
        command = self.core.next_command(self.now)
        match command:
            case Wait(until_s):
                assert self.now < until_s <= self.now + 30.0
                self.now = until_s
            case _ if not works:
                self.core.failed(self.now, jitter=jitter)
            case List():
                version = self.server.version
                self.core.listed(list(self.server.slices.values()), str(version), self.now)
                self.reached = version
            case Watch(version):
                assert version == str(self.reached)
                if int(version) < self.server.forgotten:
                    self.core.failed(self.now, jitter=jitter, is_version_bad=True)
                else:
                    self.watching = int(version)

    @property
    def is_behind(self) -> bool:
        """The open watch lacks what the server has forgotten: all it can be told is 410."""
        return self.watching is not None and self.watching < self.server.forgotten

    def _pending(self) -> list[tuple[int, str, dict[str, Any]]]:
        assert self.watching is not None
        return [event for event in self.server.events if event[0] > self.watching]

    @precondition(lambda self: self.watching is not None and not self.is_behind)
    @rule(count=st.integers(1, 5), again=st.booleans())
    def is_told(self, count: int, again: bool) -> None:
        for version, kind, value in self._pending()[:count]:
            for _ in range(1 + again):
                self.core.event(kind, value, self.now)
            self.watching = self.reached = version

    @precondition(lambda self: self.watching is not None and not self.is_behind)
    @rule()
    def is_bookmarked(self) -> None:
        if not self._pending():
            mark = {"metadata": {"resourceVersion": str(self.server.version)}}
            self.core.event("BOOKMARK", mark, self.now)
            self.watching = self.reached = self.server.version

    @precondition(lambda self: self.watching is not None)
    @rule(in_order=st.booleans(), is_version_bad=st.booleans(), jitter=JITTER)
    def is_cut(self, in_order: bool, is_version_bad: bool, jitter: float) -> None:
        self.watching = None
        if in_order:
            self.core.closed(self.now, jitter=jitter)
        else:
            self.core.failed(self.now, jitter=jitter, is_version_bad=is_version_bad)

    @rule(seconds=st.floats(0, 4000))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    # --- what holds ----------------------------------------------------------------

    @invariant()
    def the_view_is_that_of_the_version_reached(self) -> None:
        expected = set[str]() if self.reached is None else self.server.views[self.reached]
        assert set(self.core.view) == expected

    def teardown(self) -> None:
        """With a server that works, the view becomes what the server has."""
        if self.watching is not None:
            self.is_cut(in_order=False, is_version_bad=False, jitter=0.0)
        for _ in range(20):
            self._catch_up()
        assert set(self.core.view) == self.server.seen()

    def _catch_up(self) -> None:
        if self.watching is None:
            self.acts(works=True, jitter=0.0)
        elif self.is_behind:
            self.is_cut(in_order=False, is_version_bad=True, jitter=0.0)
        else:
            self.is_told(count=1000, again=False)


Watching.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestWatching = Watching.TestCase
