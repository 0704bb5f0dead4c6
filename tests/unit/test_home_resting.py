"""Claims that rest: the origin makes their holders wait, and that is not silence."""

from damselfly.p2p.home import Home, HomeLimits
from damselfly.p2p.messages import AgentID, OpenClaim, Reply, Report, Run, State, SwarmID

CHUNK = Run(0, 1)


class Swarm:
    """A home, `a` that has a claim for the only chunk, and `b` that would like to have it."""

    def __init__(self, limits: HomeLimits | None = None) -> None:
        self.now = 100.0
        self.serial = 0
        self.home = Home(SwarmID("s"), "b", chunk_count=1, limits=limits, now=self.now)
        assert self.report("a", room=1).grants == (CHUNK,)
        self.report("b")

    def report(self, name: str, *, room: int = 0, claims: tuple[OpenClaim, ...] = ()) -> Reply:
        self.serial += 1
        state = State(have=0, wanted=1) if self.serial <= 2 else None
        agent = AgentID(f"{name}:1")
        report = Report(agent, "b", 1, self.serial, state=state, open=claims, room=room)
        return self.home.reported(Report.parse(report.to_json()), self.now)

    def seconds_until_b_is_granted(self, seconds: int, *, is_resting: bool) -> int | None:
        for second in range(seconds):
            if self.report("b", room=1).grants:
                return second
            self.report("a", claims=(OpenClaim(CHUNK, 0, is_resting),))
            self.now += 1.0
            self.home.handle_timer(self.now)
        return None


def test_a_claim_that_rests_is_kept_and_nobody_else_gets_its_chunk() -> None:
    assert Swarm().seconds_until_b_is_granted(120, is_resting=True) is None


def test_a_claim_that_is_silent_goes_to_somebody_else() -> None:
    assert Swarm().seconds_until_b_is_granted(120, is_resting=False) in range(5, 9)


def test_nobody_rests_for_ever() -> None:
    swarm = Swarm(HomeLimits(rest_patience_s=20.0))

    assert swarm.seconds_until_b_is_granted(120, is_resting=True) in range(20, 30)


def test_a_resting_claim_is_written_and_read() -> None:
    claims = (OpenClaim(Run(3, 2), 17, is_resting=True), OpenClaim(Run(9, 1), 4))
    report = Report(AgentID("a:1"), "b", 64, 1, open=claims)

    assert Report.parse(report.to_json()).open == claims
