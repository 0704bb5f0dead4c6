"""Who is there: greetings, silence, and a list that may name ourselves."""

import pytest

from damselfly.p2p.membership import Greet, Hello, Membership, MembershipLimits
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
    core.listing_ended(0.0)

    assert set(core.view) == {ME.agent}
    assert core.has_met


def test_an_empty_list_that_may_change_has_told_us_of_nobody_yet() -> None:
    core = Membership(ME, MembershipLimits(youth_s=3.0), now=0.0)

    core.listed([], 0.0)
    early = core.has_met
    core.next_action(3.0)

    assert not early
    assert core.has_met


def test_a_list_without_an_agent_that_greets_us_is_not_whole() -> None:
    core = Membership(ME, MembershipLimits(youth_s=3.0), now=0.0)
    core.greeted_by(OTHER.agent, OTHER.boot, 0.0)
    core.listed([ME.agent], 0.1)
    greeted(core, 0.1)
    core.answered(ME.agent, ME, 0.2, knows_us=True)
    early = core.has_met

    core.listed([ME.agent, OTHER.agent], 1.0)
    greeted(core, 1.0)
    core.answered(OTHER.agent, OTHER, 1.1, knows_us=True)

    assert not early
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


def met(core: Membership, address: str, hello: Hello, now: float) -> None:
    greeted(core, now)
    core.answered(address, hello, now, knows_us=True)


class TestMeeting:
    def test_we_have_met_whoever_answers_and_knows_us(self) -> None:
        core = Membership(ME, now=0.0)
        core.listed(["a:1", "b:1"], 0.0)
        met(core, "a:1", ME, 0.1)
        core.answered("b:1", OTHER, 0.1, knows_us=False)
        before = core.has_met

        core.answered("b:1", OTHER, 0.2, knows_us=True)

        assert not before
        assert core.has_met

    def test_before_the_first_list_nobody_has_been_met(self) -> None:
        core = Membership(ME, now=0.0)
        greeted(core, 2.9)

        assert not core.has_met

    def test_whoever_does_not_answer_is_waited_for_until_youth_ends(self) -> None:
        core = Membership(ME, MembershipLimits(youth_s=3.0), now=10.0)
        core.listed(["b:1"], 10.0)
        waits: list[float] = []
        while (deadline := core.next_deadline()) is not None and not core.has_met:
            for address in greeted(core, deadline):
                core.failed(address, deadline, is_refused=True)
            waits.append(deadline)

        assert waits[-1] == 13.0
        assert len(waits) >= 29, "it is greeted again ten times a second"

    def test_afterwards_absent_agents_are_greeted_less_and_less(self) -> None:
        core = Membership(ME, now=0.0)
        core.listed(["b:1"], 0.0)
        greeted(core, 3.0)
        assert core.has_met
        times: list[float] = []
        for _ in range(12):
            core.failed("b:1", 3.0 if not times else times[-1], is_refused=True)
            deadline = core.next_deadline()
            assert deadline is not None
            assert greeted(core, deadline) == {"b:1"}
            times.append(deadline)

        assert times[1] - times[0] < times[4] - times[3] < times[8] - times[7]
        assert times[-1] - times[-2] == pytest.approx(15.0)

    def test_a_thousand_absent_agents_are_not_greeted_ten_times_a_second(self) -> None:
        core = Membership(ME, now=0.0)
        core.listed([f"10.0.{n // 250}.{n % 250}:1" for n in range(1000)], 0.0)

        for address in greeted(core, 0.0):
            core.failed(address, 0.01, is_refused=True)

        assert greeted(core, 0.5) == set()
        assert len(greeted(core, 1.02)) == 1000

    def test_having_met_is_for_ever(self) -> None:
        core = Membership(ME, now=0.0)
        core.listed([], 0.0)
        core.listing_ended(0.0)
        assert core.has_met

        core.listed(["b:1"], 1.0)
        greeted(core, 1.0)

        assert core.has_met

    def test_whoever_greets_us_is_told_whether_we_know_it(self) -> None:
        core = Membership(ME, now=0.0)
        core.listed([OTHER.agent], 0.0)
        before = core.greeted_by(OTHER.agent, OTHER.boot, 0.0)
        met(core, OTHER.agent, OTHER, 0.1)

        assert not before
        assert core.greeted_by(OTHER.agent, OTHER.boot, 0.2)
        assert not core.greeted_by(AgentID("stranger:1"), "b", 0.2)

    def test_a_restarted_agent_is_not_known_before_it_is_greeted_back(self) -> None:
        core = Membership(ME, now=0.0)
        core.listed([OTHER.agent], 0.0)
        met(core, OTHER.agent, OTHER, 0.1)

        is_known = core.greeted_by(OTHER.agent, "boot-new", 1.0)

        assert not is_known
        assert greeted(core, 1.0) == {OTHER.agent}

    def test_one_that_is_listed_by_another_name_is_looked_for_among_the_absent(self) -> None:
        core = Membership(ME, now=0.0)
        core.listed(["node-2:1", "node-3:1"], 0.0)
        met(core, "node-3:1", Hello(AgentID("10.0.0.3:1"), "boot-3", ""), 0.0)
        core.failed("node-2:1", 0.0, is_refused=True)

        assert not core.greeted_by(OTHER.agent, OTHER.boot, 0.05)
        assert greeted(core, 0.05) == {"node-2:1"}
        core.answered("node-2:1", OTHER, 0.06, knows_us=True)
        assert core.greeted_by(OTHER.agent, OTHER.boot, 0.07)

    def test_greetings_cannot_make_us_greet_without_end(self) -> None:
        core = Membership(ME, MembershipLimits(hurry_s=0.02), now=0.0)
        core.listed([OTHER.agent], 0.0)
        count = 0
        for step in range(1000):
            now = step / 1000
            core.greeted_by(OTHER.agent, f"boot-{step}", now)
            for address in greeted(core, now):
                count += 1
                core.failed(address, now)

        assert count <= 51
