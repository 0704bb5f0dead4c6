"""What do the cores say to each other? Whole conversations of small worlds, word by word.

`pytest tests/trace --rewrite` writes down what is said now. Read the difference before you commit
it: each line that changed is something that agents of two versions will say to each other.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.sim.told import ToldWorld
from tests.sim.world import Scenario

TESTDATA = Path(__file__).parent / "testdata"

PLAIN = Scenario(nodes=2, chunks=3, delay_s=(0.002, 0.002), start_spread_s=0.0)
CONVERSATIONS = {
    "one-alone": replace(PLAIN, nodes=1),
    "two-at-first-contact": PLAIN,
    "two-who-know-the-digests": replace(PLAIN, is_sealed=True),
    "one-comes-late": replace(PLAIN, chunks=4, late=1),
    "one-may-not-read-the-origin": replace(PLAIN, denied=0.5),
    "nobody-may-read-the-origin": replace(PLAIN, denied=1.0),
    "one-of-three-lies": replace(PLAIN, nodes=3, liars=0.34),
    "the-home-of-three-dies": replace(PLAIN, nodes=3, chunks=6, home_dies=True),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_conversation_is_as_written_down(name: str, request: pytest.FixtureRequest) -> None:
    path = TESTDATA / f"{name}.txt"
    lines: list[str] = []

    ToldWorld(CONVERSATIONS[name], 1, lines.append).run()

    told = "\n".join(lines) + "\n"
    if request.config.getoption("--rewrite"):
        path.write_text(told)
    assert told == path.read_text()
