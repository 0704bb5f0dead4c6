"""What the members of a former home tell a young one is settled by majority."""

from damselfly.model.digest import Digest
from damselfly.p2p.home import Home
from damselfly.p2p.messages import AgentID, Report, State, SwarmID

TRUE, FALSE = Digest.of(b"true"), Digest.of(b"false")


def telling(name: str, digest: Digest, serial: int) -> Report:
    state = State(zone="", can_claim=True, is_sealed=False, wanted=3, have=1, digests={0: digest})
    return Report(
        agent=AgentID(f"{name}:1"), boot=f"boot-{name}", chunk_count=2, serial=serial, state=state
    )


def test_an_agent_that_repeats_itself_is_no_majority() -> None:
    home = Home(SwarmID("blake3:" + "0" * 64), "home", chunk_count=2, is_open=False, now=0.0)
    for serial in range(10):
        home.reported(telling("liar", FALSE, serial), 0.1)
    for name in ("a", "b"):
        home.reported(telling(name, TRUE, 0), 0.2)

    home.opened(0.3)
    home.handle_timer(30.0)

    assert home.digests == {0: TRUE}
