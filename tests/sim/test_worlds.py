"""Whole swarms of the real cores under a virtual clock: everybody honest ends with everything.

`World` asserts safety at every step (one live claim for a chunk, no more claims than W, every chunk
verified against its digest); what is asserted here is how it ends. A world that fails is replayed
by its scenario and rng_seed: `python -m bench.simulator` shows how.
"""

import random
from dataclasses import replace

import pytest

from bench.simulator import WORLDS, figures, holds
from damselfly.p2p.messages import AgentID
from tests.sim.world import Scenario, World

SMALL = Scenario(nodes=8, chunks=64)


def outcome(world: World) -> tuple[dict[AgentID, float | None], float, int]:
    finished = {agent: node.finished_s for agent, node in world.nodes.items()}
    return finished, world.origin_bytes, world.events.count


def test_one_rng_seed_is_one_world() -> None:
    scenario = replace(SMALL, loss=0.02, deaths=1, slow=0.125)

    first, again = (outcome(World(scenario, 7).run()) for _ in range(2))
    other = outcome(World(scenario, 8).run())

    assert first == again
    assert other != first


@pytest.mark.parametrize(
    "name",
    ["eight", "few-chunks", "sealed", "fast-origin", "alone", "two", "late", "home-dies", "denied"],
)
def test_the_targets_of_small_worlds_are_reached(name: str) -> None:
    figure = figures(name, WORLDS[name], 1)

    assert holds(figure), figure


@pytest.mark.parametrize("rng_seed", range(6))
@pytest.mark.parametrize(
    ("name", "scenario", "origin_max"),
    [
        ("lossy", replace(SMALL, loss=0.1), 1.3),
        ("one dies in silence", replace(SMALL, deaths=1), 1.2),
        ("three die with a word", replace(SMALL, deaths=3, is_death_silent=False), 1.3),
        ("the home dies", replace(SMALL, home_dies=True), 1.2),
        ("a quarter lies", replace(SMALL, liars=0.25), 1.3),
        ("most are denied", replace(SMALL, denied=0.75), 1.0),
        ("some cannot read the origin", replace(SMALL, unable=0.5), 1.0),
        ("half want half of it", replace(SMALL, partial=0.5), 1.0),
        ("they come one by one", replace(SMALL, stagger_s=10.0), 1.0),
    ],
)
def test_everybody_honest_ends_with_everything(
    name: str, scenario: Scenario, origin_max: float, rng_seed: int
) -> None:
    world = World(scenario, rng_seed).run()

    assert world.is_done(), f"{name}: {[repr(node.planner) for node in world.honest]}"
    assert not world.gave_up
    assert world.origin_share <= origin_max, name


@pytest.mark.parametrize("rng_seed", range(24))
def test_a_world_of_which_nobody_knows_what_is_in_store(rng_seed: int) -> None:
    """Whole classes of faults are off or rampant, as the number has it.

    Who is denied may lack what nobody else wants, and then says so.
    """
    draw = random.Random(rng_seed)

    def sometimes(share: float) -> float:
        return share if draw.random() < 0.5 else 0.0

    scenario = Scenario(
        nodes=draw.choice([2, 5, 8, 16]),
        chunks=draw.choice([9, 40, 96]),
        is_sealed=draw.random() < 0.5,
        loss=sometimes(draw.choice([0.01, 0.1, 0.3])),
        slow=sometimes(0.2),
        liars=sometimes(0.2),
        deaths=draw.choice([0, 0, 1, 2]),
        is_death_silent=draw.random() < 0.5,
        late=draw.choice([0, 0, 1]),
        denied=sometimes(0.3),
        partial=sometimes(0.3),
        origin_connection_rate=draw.choice([50e6, 5e6]),
        origin_first_byte_s=draw.choice([0.01, 0.3]),
    )

    world = World(scenario, rng_seed).run()

    fetched = 0
    for node in world.honest:
        if node.planner is not None and not node.is_denied:
            fetched |= node.planner.wanted
    for node in world.honest:
        assert node.planner is not None
        lacking = node.planner.wanted & ~node.planner.have
        assert node.finished_s is not None or (
            node.agent in world.gave_up and not lacking & fetched
        ), f"{scenario}: {node.planner!r}"
