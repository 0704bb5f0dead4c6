"""A digest that led to a wrong file binds nobody, once nobody stands for it any more."""

from dataclasses import replace

from damselfly.model.digest import Digest
from damselfly.p2p.home import Home
from damselfly.p2p.messages import AgentID, LiveLine, Report, State, SwarmID

A, B = AgentID("10.0.0.1:1"), AgentID("10.0.0.2:1")
WRONG, RIGHT = Digest.of(b"wrong"), Digest.of(b"right")


class Talk:
    """Reports to one home, in order."""

    def __init__(self) -> None:
        self.home = Home(SwarmID("s"), "home", chunk_count=4, now=0.0)
        self._serials = {A: 0, B: 0}
        self._now = 1.0

    def join(self, agent: AgentID, have: int = 0, digest: Digest | None = None) -> None:
        digests = {} if digest is None else {0: digest}
        state = State(have, 0b1111, digests, is_sealed=False)
        self.say(agent, state=state)
        self.home.subscribed(agent, self._now)

    def say(self, agent: AgentID, **more: object) -> None:
        self._serials[agent] += 1
        bare = Report(agent, "boot", 4, self._serials[agent], next_s=60.0)
        self.home.reported(replace(bare, **more), self._now)  # type: ignore[arg-type]

    def lines(self, agent: AgentID) -> list[LiveLine]:
        self._now += 1.0
        self.home.handle_timer(self._now)
        found: list[LiveLine] = []
        while (tell := self.home.next_action()) is not None:
            if tell.agent == agent:
                found.append(tell.line)
        return found


def test_a_refuted_digest_that_nobody_stands_for_is_forgotten_and_told() -> None:
    talk = Talk()
    talk.join(A, 0b1, WRONG)
    talk.join(B)
    talk.lines(B)
    assert talk.home.digests == {0: WRONG}

    talk.say(A, refuted=(0,))

    assert talk.home.digests == {}
    assert talk.home.held == 0
    assert (0,) in [line.forgotten for line in talk.lines(B)]


def test_one_that_somebody_else_holds_stays_until_it_is_refuted_there_too() -> None:
    talk = Talk()
    talk.join(A, 0b1, WRONG)
    talk.join(B, 0b1, WRONG)

    talk.say(A, refuted=(0,))
    stays = dict(talk.home.digests)
    talk.say(B, refuted=(0,), is_leaving=True)

    assert stays == {0: WRONG}
    assert talk.home.digests == {}


def test_a_goodbye_refutes_too_and_the_next_reading_is_believed() -> None:
    talk = Talk()
    talk.join(A, 0b1, WRONG)

    talk.say(A, refuted=(0,), is_leaving=True)
    talk.join(A)
    talk.say(A, done=((0, RIGHT),))

    assert talk.home.digests == {0: RIGHT}


def test_a_liar_cannot_have_forgotten_what_others_hold() -> None:
    talk = Talk()
    talk.join(A, 0b1, RIGHT)
    talk.join(B)

    talk.say(B, refuted=(0, 1, 2, 3))

    assert talk.home.digests == {0: RIGHT}
    assert talk.home.held == 0b1


def test_messages_carry_it() -> None:
    report = Report(A, "boot", 4, 1, refuted=(1, 3))
    line = LiveLine(forgotten=(2,))

    assert Report.parse(report.to_json()).refuted == (1, 3)
    assert LiveLine.parse(line.to_json(4), 4) == line
