"""What a planner does when a chunk turns out to be other bytes, and when somebody waits for one."""

from damselfly.model.digest import Digest
from damselfly.p2p.actions import Action, Ask, CancelAsk, SendReport
from damselfly.p2p.messages import AgentID, HaveLine, LiveLine, Member, Reply, SwarmID
from damselfly.p2p.planner import Planner, PlannerLimits

ME, PEER = AgentID("10.0.0.1:1"), AgentID("10.0.0.2:1")
COUNT = 8
OLD, NEW = Digest.of(b"old"), Digest.of(b"new")


def drained(planner: Planner) -> list[Action]:
    actions: list[Action] = []
    while (action := planner.next_action()) is not None:
        actions.append(action)
    return actions


def planner_with_a_holder(digests: dict[int, Digest], limits: PlannerLimits) -> Planner:
    """A planner that knows one peer, which holds everything."""
    planner = Planner(
        SwarmID("blake3:" + "0" * 64),
        ME,
        "boot-me",
        chunk_count=COUNT,
        have=0,
        wanted=(1 << COUNT) - 1,
        digests=digests,
        is_sealed=False,
        limits=limits,
        now=0.0,
    )
    planner.view_changed([ME, PEER], 0.0)
    (report,) = [each for each in drained(planner) if isinstance(each, SendReport)]
    reply = Reply("boot-home", members=(Member(PEER, ""),))
    planner.reply_received(report.report.serial, reply, 0.1)
    drained(planner)
    planner.peer_told(PEER, HaveLine(have=(1 << COUNT) - 1), 0.2)
    return planner


def test_what_is_asked_by_a_digest_that_is_not_right_is_asked_anew() -> None:
    planner = planner_with_a_holder({0: OLD}, PlannerLimits())
    (asked,) = [each for each in drained(planner) if isinstance(each, Ask)]

    planner.live_received(planner.home, LiveLine(digests={0: NEW}), 0.3)
    actions = drained(planner)
    is_held = planner.chunk_arrived(asked.ask_id, 0.4)

    assert asked.digest == OLD
    assert CancelAsk(asked.ask_id, PEER, 0) in actions
    assert [each.digest for each in actions if isinstance(each, Ask)] == [NEW]
    assert not is_held
    assert not planner.have


def test_an_urgent_chunk_is_asked_for_beyond_the_slots() -> None:
    digests = {index: Digest.of(bytes([index])) for index in range(COUNT)}
    planner = planner_with_a_holder(digests, PlannerLimits(asks_max=1))
    first = [each for each in drained(planner) if isinstance(each, Ask)]
    waiting = next(index for index in range(COUNT) if index != first[0].index)

    planner.urgent(waiting, 0.3)
    then = [each for each in drained(planner) if isinstance(each, Ask)]

    assert len(first) == 1
    assert [(each.index, each.is_urgent) for each in then] == [(waiting, True)]
