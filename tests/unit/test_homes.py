"""The homes an agent keeps for others: nobody takes them all, and our own always has room."""

import pytest

from damselfly.clock import SystemClock
from damselfly.errors import RemoteProtocolError
from damselfly.model.digest import Digest
from damselfly.p2p.actions import ReportFailure, SendReport
from damselfly.p2p.hashing import HashReport
from damselfly.p2p.homes import Homes, HomesLimits
from damselfly.p2p.messages import AgentID, Report, State, SwarmID
from damselfly.p2p.rendezvous import ranked
from damselfly.p2p.reporter import Reporter, Standing

STANDING = Standing((), 0, (), None, None, None, is_idle=False)


def swarm_of(number: int) -> SwarmID:
    return SwarmID(str(Digest.of(b"%d" % number)))


def hashes(agent: str) -> HashReport:
    return HashReport(AgentID(f"{agent}:1"), "boot", 1, 1)


def report(agent: str, swarm: SwarmID) -> Report:
    reporter = Reporter(swarm, AgentID(f"{agent}:1"), "boot", chunk_count=8, now=0.0)
    return reporter.next_report(STANDING, lambda: State(have=0, wanted=0xFF), 0.0).report


def fill(homes: Homes, agent: str, count: int, first: int = 0) -> int:
    """Open homes that nobody needs; returns how many were let be."""
    for number in range(first, first + count):
        try:
            homes.hashed(swarm_of(number), 1, hashes(agent))
        except RemoteProtocolError:
            return number - first
    return count


def test_one_agent_does_not_take_every_home() -> None:
    homes = Homes("boot", SystemClock(), HomesLimits(homes_max=16, homes_per_agent_max=4))

    assert fill(homes, "liar", 100) == 4

    assert homes.report(swarm_of(500), report("honest", swarm_of(500))).boot == "boot"


def test_a_home_without_members_makes_way_and_one_with_members_stays() -> None:
    homes = Homes("boot", SystemClock(), HomesLimits(homes_max=8, homes_per_agent_max=4))
    homes.report(swarm_of(500), report("first", swarm_of(500)))
    fill(homes, "liar", 4)
    fill(homes, "other", 3, first=10)

    for number in range(600, 607):
        swarm = swarm_of(number)
        assert homes.report(swarm, report(f"honest{number}", swarm)).boot == "boot"

    assert repr(homes) == "<Homes 8>"
    leaving = report("first", swarm_of(500))
    assert homes.report(swarm_of(500), leaving).need_state is False
    with pytest.raises(RemoteProtocolError, match="8 swarms have their home here"):
        homes.report(swarm_of(700), report("late", swarm_of(700)))


def test_our_own_membership_has_a_home_here_though_all_are_in_use() -> None:
    homes = Homes("boot", SystemClock(), HomesLimits(homes_max=2, homes_per_agent_max=4))
    for number in range(2):
        homes.report(swarm_of(number), report("member", swarm_of(number)))

    reply = homes.report(swarm_of(9), report("me", swarm_of(9)), is_ours=True)

    assert reply.boot == "boot"


def test_a_home_that_refuses_twice_is_passed_over_for_the_next_in_rank() -> None:
    swarm, me = swarm_of(1), AgentID("me:1")
    agents = [AgentID(f"{name}:1") for name in "abcdef"]
    reporter = Reporter(swarm, me, "boot", chunk_count=8, now=0.0)
    reporter.view_changed(agents, 0.0)
    asked: list[AgentID] = []
    now = 0.0
    while reporter.home != me:
        assert len(asked) < 50
        action = reporter.next_report(STANDING, lambda: State(have=0, wanted=0xFF), now)
        assert isinstance(action, SendReport)
        asked.append(action.home)
        reporter.failed(action.report.serial, ReportFailure.REFUSED, now)
        now += 0.5

    before_us = ranked(swarm, [*agents, me])
    before_us = before_us[: before_us.index(me)]
    assert asked == [home for home in before_us for _ in range(2)]
    assert before_us


def test_who_counts_other_files_is_alone_with_it() -> None:
    homes = Homes("boot", SystemClock())
    swarm = swarm_of(1)
    for count in range(2, 40):  # A liar has one number of files at a time.
        homes.hashed(swarm, 8, HashReport(AgentID("liar:1"), "boot", count, 3))

    reply = homes.hashed(swarm, 8, HashReport(AgentID("a:1"), "boot", 1, 1))
    homes.hashed(swarm, 8, HashReport(AgentID("liar:1"), "boot", 7, 3))

    assert reply.yours == (0,)
    again = HashReport(AgentID("a:1"), "boot", 1, 1)
    assert homes.hashed(swarm, 8, again).yours == (0,)
