"""What a planner does when reading from the origin breaks."""

import pytest

from damselfly.p2p.actions import Action, FetchOrigin, OriginFailure, SendReport
from damselfly.p2p.messages import AgentID, HandBack, Reply, Run, SwarmID
from damselfly.p2p.planner import Planner, PlannerLimits

ME = AgentID("10.0.0.1:1")
COUNT = 16
LIMITS = PlannerLimits(origin_connections_max=8)


def drained(planner: Planner) -> list[Action]:
    actions: list[Action] = []
    while (action := planner.next_action()) is not None:
        actions.append(action)
    return actions


def runs_of(actions: list[Action]) -> list[int]:
    return [each.run_id for each in actions if isinstance(each, FetchOrigin)]


def reader(*, is_eager: bool) -> tuple[Planner, list[int]]:
    """A planner all alone that reads eight runs from the origin."""
    planner = Planner(
        SwarmID("blake3:" + "0" * 64),
        ME,
        "boot-me",
        chunk_count=COUNT,
        have=0,
        wanted=(1 << COUNT) - 1,
        digests={},
        is_sealed=False,
        is_eager=is_eager,
        limits=LIMITS,
        now=0.0,
    )
    planner.view_changed([ME], 0.0)
    actions = drained(planner)
    (report,) = [each for each in actions if isinstance(each, SendReport)]
    grants = () if is_eager else tuple(Run(index, 1) for index in range(8))
    planner.reply_received(report.report.serial, Reply("boot-home", grants=grants), 0.1)
    return planner, runs_of(actions + drained(planner))


def test_runs_that_break_together_rest_the_origin_once() -> None:
    planner, runs = reader(is_eager=True)
    assert len(runs) == 8

    for number, run_id in enumerate(runs):
        planner.origin_failed(run_id, OriginFailure.FAILED, 1.0 + number / 100)
    drained(planner)
    planner.handle_timer(1.0 + LIMITS.origin_rest_s + 0.1)

    assert runs_of(drained(planner))


@pytest.mark.parametrize(("is_eager", "returned"), [(True, 0), (False, 1)])
def test_only_what_was_granted_is_handed_back_when_the_origin_refuses(
    is_eager: bool, returned: int
) -> None:
    planner, runs = reader(is_eager=is_eager)

    planner.origin_failed(runs[0], OriginFailure.DENIED, 1.0)
    planner.handle_timer(3.0)

    reports = [each.report for each in drained(planner) if isinstance(each, SendReport)]
    told = [
        back for report in reports for back in report.returned if back.reason is HandBack.DENIED
    ]
    assert len(told) == returned


def test_who_is_alone_waits_for_a_grant_and_not_for_peers() -> None:
    planner, runs = reader(is_eager=False)
    for run_id in runs:
        planner.origin_failed(run_id, OriginFailure.FAILED, 1.0)

    planner.handle_timer(1.0 + LIMITS.origin_rest_s)

    assert planner.waiting_for == f"home {ME} (to grant what to read)"
