"""Who is there: greetings, silence, and a list that may name ourselves."""

from damselfly.p2p.membership import Greet, Hello, Membership
from damselfly.p2p.messages import AgentID

ME = Hello(AgentID("10.0.0.1:1"), "boot-me", "")
OTHER = Hello(AgentID("10.0.0.2:1"), "boot-2", "")


def greeted(core: Membership, now: float) -> set[str]:
    found: set[str] = set()
    while (action := core.next_action(now)) is not None:
        assert isinstance(action, Greet)
        found.add(action.address)
    return found


def test_alone_is_a_view_of_one() -> None:
    core = Membership(ME, now=0.0)

    core.listed([], 0.0)

    assert set(core.view) == {ME.agent}
    assert core.has_met


def test_everybody_listed_is_greeted_once_at_a_time() -> None:
    core = Membership(ME, now=0.0)

    core.listed(["a:1", "b:1"], 0.0)

    assert greeted(core, 0.0) == {"a:1", "b:1"}
    assert greeted(core, 100.0) == set()


def test_the_list_may_name_ourselves_by_another_address() -> None:
    core = Membership(ME, now=0.0)
    core.listed(["localhost:1"], 0.0)
    greeted(core, 0.0)

    core.answered("localhost:1", ME, 0.1, knows_us=True)

    assert set(core.view) == {ME.agent}
    assert core.has_met


def test_two_silences_are_forgiven_and_three_are_not() -> None:
    core = Membership(ME, now=0.0)
    core.listed(["b:1"], 0.0)
    greeted(core, 0.0)
    core.answered("b:1", OTHER, 0.1, knows_us=True)

    core.failed("b:1", 3.0)
    core.failed("b:1", 6.0)
    after_two = set(core.view)
    core.failed("b:1", 9.0)

    assert after_two == {ME.agent, OTHER.agent}
    assert set(core.view) == {ME.agent}


def test_a_refused_connection_is_believed_at_once_and_greeted_again() -> None:
    core = Membership(ME, now=0.0)
    core.listed(["b:1"], 0.0)
    greeted(core, 0.0)
    core.answered("b:1", OTHER, 0.1, knows_us=True)

    core.failed("b:1", 3.0, is_refused=True)

    assert set(core.view) == {ME.agent}
    deadline = core.next_deadline()
    assert deadline is not None
    assert greeted(core, deadline) == {"b:1"}


def test_an_address_that_leaves_the_list_leaves_the_view() -> None:
    core = Membership(ME, now=0.0)
    core.listed(["b:1"], 0.0)
    greeted(core, 0.0)
    core.answered("b:1", OTHER, 0.1, knows_us=True)
    before = core.version

    core.listed(["c:1"], 1.0)

    assert set(core.view) == {ME.agent}
    assert core.version > before
    core.answered("b:1", OTHER, 2.0, knows_us=True)
    assert set(core.view) == {ME.agent}


def test_a_suspect_is_greeted_at_once() -> None:
    core = Membership(ME, now=0.0)
    core.listed(["b:1"], 0.0)
    greeted(core, 0.0)
    core.answered("b:1", OTHER, 0.1, knows_us=True)
    assert greeted(core, 0.2) == set()

    core.suspected(OTHER.agent, 0.3)

    assert greeted(core, 0.3) == {"b:1"}


def test_a_restarted_agent_changes_the_view() -> None:
    core = Membership(ME, now=0.0)
    core.listed(["b:1"], 0.0)
    greeted(core, 0.0)
    core.answered("b:1", OTHER, 0.1, knows_us=True)
    before = core.version

    core.answered("b:1", Hello(OTHER.agent, "boot-3", ""), 5.0, knows_us=True)

    assert core.version > before
    assert core.view[OTHER.agent].boot == "boot-3"


def test_an_agent_that_greets_us_is_greeted_back_at_once() -> None:
    core = Membership(ME, now=0.0)
    core.listed([OTHER.agent], 0.0)
    greeted(core, 0.0)
    core.failed(OTHER.agent, 0.1, is_refused=True)
    assert greeted(core, 0.11) == set()

    core.greeted_by(OTHER.agent, OTHER.boot, 0.12)

    assert greeted(core, 0.12) == {OTHER.agent}
