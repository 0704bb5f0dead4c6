"""A home in an agent that has just started: it listens, and grants nothing before it is opened."""

from damselfly.p2p.home import Home
from damselfly.p2p.messages import AgentID, OpenClaim, Report, Run, State, SwarmID

SWARM = SwarmID("blake3:" + "0" * 64)
COUNT = 8
ALL = (1 << COUNT) - 1


def joining(name: str, *, claims: tuple[OpenClaim, ...] = (), room: int = 4) -> Report:
    return Report(
        agent=AgentID(f"{name}:1"),
        boot=f"boot-{name}",
        chunk_count=COUNT,
        serial=1,
        room=room,
        open=claims,
        next_s=1.0,
        state=State(zone="", can_claim=True, is_sealed=False, wanted=ALL, have=0),
    )


def test_a_closed_home_grants_nothing_and_says_when_to_ask_again() -> None:
    home = Home(SWARM, "home", chunk_count=COUNT, is_open=False, now=0.0)

    reply = home.reported(joining("a"), 0.0)
    home.handle_timer(10.0)

    assert reply.grants == ()
    assert reply.retry_after_s is not None
    assert home.claims == ()


def test_what_was_claimed_from_another_home_is_granted_to_nobody_else() -> None:
    home = Home(SWARM, "home", chunk_count=COUNT, is_open=False, now=0.0)
    home.reported(joining("young"), 0.0)
    home.reported(joining("busy", claims=(OpenClaim(Run(0, 1), 0),), room=0), 0.1)

    home.opened(0.2)
    after = home.reported(_again(joining("young")), 0.3)

    assert after.grants
    assert all(run.start > 0 for run in after.grants)
    assert (AgentID("busy:1"), 1) in home.claims


def test_members_that_wait_are_told_of_claims_when_it_opens() -> None:
    home = Home(SWARM, "home", chunk_count=COUNT, is_open=False, now=0.0)
    home.reported(joining("a"), 0.0)
    home.subscribed(AgentID("a:1"), 0.1)
    while home.next_action() is not None:
        pass

    home.opened(0.5)

    tell = home.next_action()
    assert tell is not None
    assert tell.line.has_claims


def test_a_home_is_open_unless_it_is_said_otherwise() -> None:
    home = Home(SWARM, "home", chunk_count=COUNT, now=0.0)

    assert home.reported(joining("a"), 0.0).grants


def _again(report: Report) -> Report:
    return Report(
        agent=report.agent,
        boot=report.boot,
        chunk_count=report.chunk_count,
        serial=report.serial + 1,
        room=report.room,
        next_s=report.next_s,
    )
