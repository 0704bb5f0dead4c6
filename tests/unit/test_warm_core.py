"""A warm-up's core: whom it asks, when it asks again, and what becomes of each node."""

import pytest
from hypothesis import given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from damselfly.agent.warm import OUTCOMES, Fault, WarmLimits, Warmup
from damselfly.client.answers import Progress, Pulled, WarmNode

GONE = Fault("PeerUnavailableError", "dialling")
DENIED = Fault("DeniedError", "not allowed")
LIMITS = WarmLimits(patience_s=10.0, back_off_s_min=0.5, back_off_s_max=2.0)


def begun(*agents: str, limits: WarmLimits = LIMITS) -> Warmup:
    return Warmup({agent: f"node-{agent}" for agent in agents}, 0.0, limits)


def asked(core: Warmup, now: float = 0.0) -> list[str]:
    found: list[str] = []
    while (action := core.next_action(now)) is not None:
        found.append(action.agent)
    return found


def progress(done: int = 1) -> Progress:
    return Progress(ref="r", phase="fetching", bytes_done=done, bytes_total=10)


def pulled(artifact: str = "blake3:aa") -> Pulled:
    return Pulled(
        ref="r",
        artifact=artifact,
        path="/p",
        bytes=10,
        files=1,
        seconds=1.0,
        bytes_from_origin=1,
        bytes_from_peers=9,
        bytes_from_store=0,
    )


def node(core: Warmup, agent: str) -> WarmNode:
    return next(node for node in core.nodes() if node.agent == agent)


def test_everybody_is_asked_once_and_at_once() -> None:
    core = begun("a", "b", "c")

    assert asked(core) == ["a", "b", "c"]
    assert asked(core, 5.0) == []
    assert core.next_deadline() is None


def test_it_is_over_when_every_node_has_its_outcome() -> None:
    core = begun("a", "b")
    asked(core)
    core.told("a", progress(), 1.0)
    core.done("a", pulled(), 2.0)
    is_half_over = core.is_over

    core.failed("b", DENIED)

    assert not is_half_over
    assert core.is_over
    done, failed = core.nodes()
    assert (done.state, done.node, done.bytes_from_peers) == ("done", "node-a", 9)
    assert (failed.state, failed.error, failed.message) == ("failed", "DeniedError", "not allowed")
    assert core.artifact == "blake3:aa"


def test_a_lost_node_is_asked_again_with_back_off() -> None:
    core = begun("a")
    asked(core)

    core.lost("a", GONE, 0.0)
    assert node(core, "a").state == "trying"
    assert asked(core, 0.4) == []
    assert core.next_deadline() == 0.5
    assert asked(core, 0.5) == ["a"]
    core.lost("a", GONE, 0.5)
    assert core.next_deadline() == 1.5
    asked(core, 1.5)
    core.lost("a", GONE, 1.5)

    assert core.next_deadline() == 3.5


def test_the_last_try_is_at_the_end_of_the_patience_and_then_it_is_unreachable() -> None:
    core = begun("a")
    tries: list[float] = []
    now = 0.0
    while not core.is_over:
        assert asked(core, now) == ["a"]
        tries.append(now)
        core.lost("a", GONE, now)
        now = core.next_deadline() or now

    assert tries == [0.0, 0.5, 1.5, 3.5, 5.5, 7.5, 9.5, 10.0]
    assert node(core, "a").state == "unreachable"
    assert node(core, "a").message == "dialling"


def test_a_node_that_restarts_in_the_middle_has_the_whole_patience_again() -> None:
    core = begun("a")
    asked(core)
    core.told("a", progress(), 9.0)

    core.lost("a", GONE, 12.0)

    assert node(core, "a").state == "trying"
    assert core.next_deadline() == 12.5
    assert asked(core, 12.5) == ["a"]
    core.told("a", progress(), 13.0)
    assert node(core, "a").error is None
    core.done("a", pulled(), 14.0)
    assert core.is_over


def test_a_node_that_crashes_each_time_is_given_up() -> None:
    core = begun("a", limits=WarmLimits(asks_per_node_max=3))
    now = 0.0
    while not core.is_over:
        assert asked(core, now) == ["a"]
        core.told("a", progress(), now)
        core.lost("a", GONE, now)
        now = core.next_deadline() or now

    assert node(core, "a").state == "unreachable"


def test_no_more_are_asked_at_a_time_than_allowed_and_the_dead_take_no_place() -> None:
    core = begun("a", "b", "c", limits=WarmLimits(asks_max=2))
    first = asked(core)
    deadline = core.next_deadline()

    core.lost("a", GONE, 0.0)
    second = asked(core, 0.0)
    core.done("b", pulled(), 0.1)

    assert (first, deadline, second) == (["a", "b"], None, ["c"])
    assert asked(core, 0.2) == ["a"]


def test_outcomes_are_final() -> None:
    core = begun("a")
    asked(core)
    core.done("a", pulled(), 1.0)
    version = core.version

    core.lost("a", GONE, 2.0)
    core.failed("a", DENIED)
    core.told("a", progress(), 3.0)
    core.withdrawn("a")
    core.told("nobody", progress(), 3.0)

    assert node(core, "a").state == "done"
    assert core.version == version


def test_a_pull_that_somebody_cancelled_there_is_cancelled_and_not_failed() -> None:
    core = begun("a")
    asked(core)

    core.failed("a", Fault("CancelledError", "the pull was cancelled"))

    assert node(core, "a").state == "cancelled"


def test_what_is_withdrawn_is_not_asked_any_more() -> None:
    core = begun("a", "b")
    core.withdrawn("a")

    assert asked(core) == ["b"]
    assert (node(core, "a").state, node(core, "a").error) == ("cancelled", "CancelledError")


def test_nodes_that_hold_different_artifacts_have_none_in_common() -> None:
    core = begun("a", "b")
    asked(core)
    core.done("a", pulled("blake3:aa"), 1.0)
    core.done("b", pulled("blake3:bb"), 1.0)

    assert core.artifact is None


@given(st.integers(1, 5))
def test_a_warm_up_of_more_nodes_than_allowed_is_a_bug(more: int) -> None:
    agents = {str(number): "" for number in range(2 + more)}

    with pytest.raises(AssertionError):
        Warmup(agents, 0.0, WarmLimits(nodes_max=2))


class Nodes(RuleBasedStateMachine):
    """Whatever nodes do, a warm-up goes on until each has its outcome, within its limits."""

    agents = st.sampled_from(["a", "b", "c", "d", "e"])

    def __init__(self) -> None:
        super().__init__()
        self.limits = WarmLimits(patience_s=10.0, asks_max=2, asks_per_node_max=6)
        self.core = begun("a", "b", "c", "d", "e", limits=self.limits)
        self.now = 0.0
        self.asked: set[str] = set()
        self.outcomes: dict[str, str] = {}

    @rule(seconds=st.floats(0.0, 8.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def commands_are_carried_out(self) -> None:
        while (action := self.core.next_action(self.now)) is not None:
            assert action.agent not in self.asked
            self.asked.add(action.agent)

    @rule(agent=agents, done=st.integers(0, 10))
    def a_node_tells(self, agent: str, done: int) -> None:
        if agent in self.asked:
            self.core.told(agent, progress(done), self.now)

    @rule(agent=agents)
    def a_node_is_done(self, agent: str) -> None:
        if agent in self.asked:
            self.asked.discard(agent)
            self.core.done(agent, pulled(), self.now)

    @rule(agent=agents)
    def a_node_is_lost(self, agent: str) -> None:
        if agent in self.asked:
            self.asked.discard(agent)
            self.core.lost(agent, GONE, self.now)

    @rule(agent=agents)
    def a_node_is_withdrawn(self, agent: str) -> None:
        self.asked.discard(agent)
        self.core.withdrawn(agent)

    @invariant()
    def limits_hold(self) -> None:
        assert len(self.asked) <= self.limits.asks_max

    @invariant()
    def outcomes_never_change(self) -> None:
        for shown in self.core.nodes():
            if shown.agent in self.outcomes:
                assert self.outcomes[shown.agent] == shown.state
            elif shown.state in OUTCOMES:
                self.outcomes[shown.agent] = shown.state

    @invariant()
    def it_never_waits_for_nothing(self) -> None:
        if not self.core.is_over and not self.asked:
            assert self.core.next_deadline() is not None

    def teardown(self) -> None:
        for _ in range(100):
            if self.core.is_over:
                return
            self.commands_are_carried_out()
            for agent in sorted(self.asked):
                self.a_node_is_lost(agent)
            self.now = max(self.now, self.core.next_deadline() or self.now)
        raise AssertionError("it does not end")


TestNodes = Nodes.TestCase
