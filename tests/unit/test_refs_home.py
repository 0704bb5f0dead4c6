"""The home of a ref: one resolver at a time, and what plans became."""

import pytest

from damselfly.errors import RemoteProtocolError
from damselfly.model.digest import Digest
from damselfly.p2p.messages import AgentID
from damselfly.p2p.refs import RefHome, RefLimits, RefNews, RefReply, RefReport

PLAN = Digest.of(b"plan")
ARTIFACT = Digest.of(b"artifact")


def said(
    news: RefNews, agent: str, plan: Digest | None = None, artifact: Digest | None = None
) -> RefReport:
    return RefReport(news, "ref", AgentID(f"{agent}:1"), f"boot-{agent}", plan, artifact)


def test_the_first_resolves_and_the_others_wait() -> None:
    home = RefHome()

    first = home.reported(said(RefNews.ASK, "a"), 0.0)
    second = home.reported(said(RefNews.ASK, "b"), 0.1)

    assert first.must_resolve
    assert not second.must_resolve
    assert second.retry_after_s is not None


def test_the_outcome_is_told_to_those_who_waited() -> None:
    home = RefHome()
    home.reported(said(RefNews.ASK, "a"), 0.0)

    home.reported(said(RefNews.PLANNED, "a", PLAN), 1.0)
    reply = home.reported(said(RefNews.ASK, "b"), 1.1)

    assert reply == RefReply(plan=PLAN, holders=(AgentID("a:1"),))


def test_a_resolver_that_fails_makes_way() -> None:
    home = RefHome()
    home.reported(said(RefNews.ASK, "a"), 0.0)

    home.reported(said(RefNews.FAILED, "a"), 1.0)

    assert home.reported(said(RefNews.ASK, "b"), 1.1).must_resolve


def test_an_outcome_that_is_refuted_is_found_out_anew_and_another_is_not() -> None:
    home = RefHome()
    home.reported(said(RefNews.ASK, "a"), 0.0)
    home.reported(said(RefNews.PLANNED, "a", PLAN), 1.0)

    home.reported(said(RefNews.REFUTED, "b", ARTIFACT), 1.1)
    stays = home.reported(said(RefNews.ASK, "b"), 1.2)
    home.reported(said(RefNews.REFUTED, "b", PLAN), 1.3)

    assert stays.plan == PLAN
    assert home.reported(said(RefNews.ASK, "b"), 1.4).must_resolve


def test_a_resolver_that_falls_silent_makes_way_in_time() -> None:
    home = RefHome(RefLimits(resolving_s=30.0))
    home.reported(said(RefNews.ASK, "a"), 0.0)

    assert not home.reported(said(RefNews.ASK, "b"), 29.0).must_resolve
    assert home.reported(said(RefNews.ASK, "b"), 31.0).must_resolve


def test_an_outcome_grows_old_but_what_the_plan_became_does_not() -> None:
    home = RefHome(RefLimits(fresh_s=10.0))
    home.reported(said(RefNews.ASK, "a"), 0.0)
    home.reported(said(RefNews.PLANNED, "a", PLAN), 1.0)
    home.reported(said(RefNews.SEALED, "a", PLAN, ARTIFACT), 5.0)

    fresh = home.reported(said(RefNews.ASK, "b"), 6.0)
    old = home.reported(said(RefNews.ASK, "b"), 60.0)
    again = home.reported(said(RefNews.PLANNED, "b", PLAN), 61.0)

    assert fresh.artifact == ARTIFACT
    assert old.must_resolve
    assert again.artifact == ARTIFACT
    assert AgentID("a:1") in again.holders


def test_somebody_who_was_not_asked_cannot_change_what_is_told() -> None:
    home = RefHome()
    home.reported(said(RefNews.ASK, "a"), 0.0)

    home.reported(said(RefNews.PLANNED, "liar", Digest.of(b"other")), 0.5)

    assert home.reported(said(RefNews.ASK, "b"), 0.6).plan is None


def test_what_a_plan_became_is_not_changed_by_who_comes_later() -> None:
    home = RefHome()
    home.reported(said(RefNews.ASK, "a"), 0.0)
    home.reported(said(RefNews.PLANNED, "a", PLAN), 0.1)
    home.reported(said(RefNews.SEALED, "a", PLAN, ARTIFACT), 0.2)

    home.reported(said(RefNews.SEALED, "liar", PLAN, Digest.of(b"other")), 0.3)

    assert home.reported(said(RefNews.ASK, "b"), 0.4).artifact == ARTIFACT
    assert home.reported(said(RefNews.PLANNED, "c", PLAN), 60.0).artifact == ARTIFACT


def test_who_can_hand_out_the_plan_is_told_beside_who_has_the_artifact() -> None:
    home = RefHome()
    home.reported(said(RefNews.SEALED, "old", PLAN, ARTIFACT), 0.0)
    home.reported(said(RefNews.ASK, "a"), 1.0)
    home.reported(said(RefNews.PLANNED, "a", PLAN), 1.1)

    reply = home.reported(said(RefNews.ASK, "b"), 1.2)

    assert reply.artifact == ARTIFACT
    assert set(reply.holders) == {AgentID("old:1"), AgentID("a:1")}


def test_a_resolver_that_leaves_the_view_makes_way_at_once() -> None:
    home = RefHome()
    a, b = (AgentID("a:1"), "boot-a"), (AgentID("b:1"), "boot-b")
    home.view_changed([a, b])
    home.reported(said(RefNews.ASK, "a"), 0.0)

    home.view_changed([(AgentID("a:1"), "boot-anew"), b])

    assert home.reported(said(RefNews.ASK, "b"), 0.1).must_resolve


def test_a_resolver_that_was_not_seen_yet_is_waited_for() -> None:
    home = RefHome()
    home.view_changed([])
    home.reported(said(RefNews.ASK, "a"), 0.0)

    home.view_changed([(AgentID("b:1"), "boot-b")])

    assert not home.reported(said(RefNews.ASK, "b"), 0.1).must_resolve


def test_a_closed_home_tells_nobody_to_resolve_until_it_is_opened() -> None:
    home = RefHome(is_open=False)

    early = home.reported(said(RefNews.ASK, "a"), 0.0)
    home.opened()

    assert early == RefReply(retry_after_s=RefLimits().retry_after_s)
    assert home.reported(said(RefNews.ASK, "b"), 0.5).must_resolve
    assert not home.reported(said(RefNews.ASK, "a"), 0.6).must_resolve


def test_a_closed_home_learns_who_is_at_it_and_waits_for_that_one() -> None:
    home = RefHome(is_open=False)
    home.reported(said(RefNews.RESOLVING, "a"), 0.0)

    home.opened()
    meanwhile = home.reported(said(RefNews.ASK, "b"), 0.5)
    home.reported(said(RefNews.PLANNED, "a", PLAN), 1.0)

    assert not meanwhile.must_resolve
    assert home.reported(said(RefNews.ASK, "b"), 1.1).plan == PLAN


def test_resolving_keeps_a_resolver_from_being_given_up() -> None:
    home = RefHome(RefLimits(resolving_s=30.0))
    home.reported(said(RefNews.ASK, "a"), 0.0)

    home.reported(said(RefNews.RESOLVING, "a"), 25.0)

    assert not home.reported(said(RefNews.ASK, "b"), 50.0).must_resolve


def test_a_second_resolver_does_not_replace_the_first() -> None:
    home = RefHome()
    home.reported(said(RefNews.ASK, "a"), 0.0)

    home.reported(said(RefNews.RESOLVING, "b"), 1.0)
    home.reported(said(RefNews.PLANNED, "b", Digest.of(b"other")), 2.0)

    assert home.reported(said(RefNews.ASK, "c"), 3.0).plan is None


@pytest.mark.parametrize("news", list(RefNews))
def test_reports_survive_the_wire(news: RefNews) -> None:
    report = said(news, "a", PLAN, ARTIFACT)

    assert RefReport.parse(report.to_json()) == report


def test_replies_survive_the_wire() -> None:
    reply = RefReply(True, 0.5, PLAN, ARTIFACT, (AgentID("a:1"), AgentID("b:2")))

    assert RefReply.parse(reply.to_json()) == reply


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"news":"ask"}',
        b'{"news":"shout","ref":"r","agent":"a:1","boot":"b"}',
        b'{"news":"planned","ref":"r","agent":"a:1","boot":"b"}',
        b'{"news":"sealed","ref":"r","agent":"a:1","boot":"b"}',
        b'{"news":"ask","ref":"r s","agent":"a:1","boot":"b"}',
        b'{"news":"ask","ref":"r","agent":"nobody","boot":"b"}',
    ],
)
def test_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        RefReport.parse(data)


def test_how_old_an_outcome_may_be_is_for_who_asks_to_say() -> None:
    home = RefHome(RefLimits(fresh_s=60.0))
    home.reported(said(RefNews.ASK, "a"), 0.0)
    home.reported(said(RefNews.PLANNED, "a", PLAN), 0.0)

    def asked(age_s_max: float | None, now: float) -> RefReply:
        agent = AgentID("b:1")
        reply = home.reported(
            RefReport(RefNews.ASK, "ref", agent, "boot-b", age_s_max=age_s_max), now
        )
        home.reported(RefReport(RefNews.FAILED, "ref", agent, "boot-b"), now)
        return reply

    assert asked(None, 59.0).plan == PLAN
    assert asked(None, 61.0).must_resolve
    assert asked(10.0, 11.0).must_resolve
    assert asked(1e9, 1e6).plan == PLAN


@pytest.mark.parametrize("age", ["-1", "1e10", "NaN", '"1"', "true"])
def test_an_age_that_cannot_be_is_refused(age: str) -> None:
    data = f'{{"news":"ask","ref":"r","agent":"a:1","boot":"b","age_s_max":{age}}}'

    with pytest.raises(RemoteProtocolError):
        RefReport.parse(data.encode())


OTHER = Digest.of(b"other")


def became(home: RefHome) -> Digest | None:
    return home.reported(said(RefNews.PLANNED, "z", PLAN), 9.0).artifact


def test_what_a_liar_said_first_is_dropped_when_it_is_refuted() -> None:
    home = RefHome()
    home.reported(said(RefNews.ASK, "a"), 0.0)
    home.reported(said(RefNews.SEALED, "a", PLAN, OTHER), 1.0)
    home.reported(said(RefNews.SEALED, "b", PLAN, ARTIFACT), 1.1)
    assert home.reported(said(RefNews.ASK, "b"), 1.2).artifact == OTHER

    home.reported(said(RefNews.REFUTED, "b", PLAN, OTHER), 1.3)

    assert home.reported(said(RefNews.ASK, "b"), 1.4) == RefReply(
        plan=PLAN, holders=(AgentID("a:1"), AgentID("b:1"))
    )
    home.reported(said(RefNews.SEALED, "b", PLAN, ARTIFACT), 1.5)
    assert home.reported(said(RefNews.ASK, "b"), 1.6).artifact == ARTIFACT


def test_one_agent_does_not_refute_what_several_say() -> None:
    home = RefHome()
    for agent in "abc":
        home.reported(said(RefNews.SEALED, agent, PLAN, ARTIFACT), 0.0)

    for _ in range(5):
        home.reported(said(RefNews.REFUTED, "liar", PLAN, ARTIFACT), 1.0)
    home.reported(said(RefNews.SEALED, "liar", PLAN, OTHER), 2.0)

    assert became(home) == ARTIFACT


def test_a_liar_flaps_a_plan_twice_at_most() -> None:
    home = RefHome()
    lies = [Digest.of(b"%d" % number) for number in range(9)]
    believed = 0
    for number, lie in enumerate(lies):
        home.reported(said(RefNews.SEALED, "liar", PLAN, lie), 0.0)
        believed += became(home) == lie
        home.reported(said(RefNews.REFUTED, f"honest{number}", PLAN, lie), 1.0)

    home.reported(said(RefNews.SEALED, "a", PLAN, ARTIFACT), 2.0)
    home.reported(said(RefNews.REFUTED, "liar", PLAN, ARTIFACT), 3.0)
    home.reported(said(RefNews.SEALED, "liar", PLAN, lies[0]), 3.0)
    home.reported(said(RefNews.SEALED, "b", PLAN, ARTIFACT), 4.0)
    home.reported(said(RefNews.REFUTED, "liar", PLAN, ARTIFACT), 5.0)

    assert believed == 2
    assert became(home) == ARTIFACT
