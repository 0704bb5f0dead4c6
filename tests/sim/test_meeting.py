"""Agents that start together and are asked at once, in worlds that can be replayed.

Each number is a world: who starts when, and how long every message takes, which is long: the nodes
are busy starting.
"""

import pytest

from damselfly.p2p.membership import MembershipLimits
from tests.sim.meeting import Meeting, MeetingWorld
from tests.sim.world import Scenario

WORLDS = range(10)
TOGETHER = Meeting()
UNMET = Meeting(membership=MembershipLimits(youth_s=0.0), opening_s=0.0, are_homes_closed=False)
"""Everybody acts on what it sees in its first moment."""


def world(number: int, meeting: Meeting, spread_s: float) -> MeetingWorld:
    scenario = Scenario(
        nodes=8, chunks=64, chunk_bytes=1 << 20, start_spread_s=spread_s, delay_s=(0.001, 0.1)
    )
    found = MeetingWorld(scenario, meeting, number).run()
    assert found.is_done(), "everybody has everything in the end"
    return found


@pytest.mark.parametrize("spread_s", [0.0, 0.3, 1.0, 2.0, 2.9])
def test_agents_that_start_within_their_youth_resolve_and_read_once(spread_s: float) -> None:
    for number in WORLDS:
        found = world(number, TOGETHER, spread_s)

        assert found.resolutions == 1, number
        assert found.origin_share <= 1.01, number


@pytest.mark.parametrize("spread_s", [3.1, 4.0, 8.0, 12.0])
def test_agents_that_come_later_read_nothing_again(spread_s: float) -> None:
    for number in WORLDS:
        found = world(number, TOGETHER, spread_s)

        assert found.origin_share <= 1.01, number


def test_in_the_same_worlds_agents_that_do_not_meet_read_it_again() -> None:
    found = [world(number, UNMET, 0.3) for number in WORLDS]

    assert min(each.resolutions for each in found) > 1
    assert min(each.origin_share for each in found) > 1.01


def test_homes_that_open_at_once_resolve_what_others_are_at() -> None:
    hasty = Meeting(are_homes_closed=False)

    found = [world(number, hasty, 4.0).resolutions for number in WORLDS]
    patient = [world(number, TOGETHER, 4.0).resolutions for number in WORLDS]

    assert max(found) > 1
    assert max(patient) == 1
