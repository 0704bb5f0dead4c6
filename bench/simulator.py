"""What do the cores do in swarms larger than this machine?

The simulator runs the planner, home and reporter that agents run, under a virtual clock: messages
take their time, links are shared max-min fairly, machines are slow, lie, die (`tests/sim/`). Nobody
can have F bytes sooner than bound = F / min(O, B); a swarm of N that reads each byte once cannot be
much better than 1 + W/K of it, with K chunks and W of them on their way from the origin at a time.

    python -m bench.simulator                        every world of the README
    python -m bench.simulator --world hostile        one of them
    python -m bench.simulator --world hostile --rng-seed 7 --tell

One `rng_seed` is one world: the same number replays it, message by message. `--tell` prints
every word that is said, with its virtual time; `tests/trace/testdata` has such conversations.

Where links are worked out approximately (`tolerance` in the output) it is because exact rates of
hundreds of members take hours; 64 members end within 0.002 of the exact figure.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench import machine
from tests.sim.told import ToldWorld
from tests.sim.world import Scenario, World

_RATE = 50e6


@dataclass(frozen=True)
class Case:
    """A world, and what it has to reach: multiples of the bound, and of the artifact's bytes."""

    question: str
    scenario: Scenario
    makespan_max: float | None
    origin_max: float
    is_in_readme: bool = False


WORLDS: Mapping[str, Case] = {
    "eight": Case("N=8 K=256", Scenario(nodes=8, chunks=256), 1.06, 1.0, True),
    "sixty-four": Case("N=64 K=1024", Scenario(nodes=64, chunks=1024), 1.12, 1.0, True),
    "two-hundred-fifty-six": Case(
        "N=256 K=2048",
        Scenario(nodes=256, chunks=2048, tolerance=0.1, visits_max=16),
        1.30,
        1.0,
        True,
    ),
    "hostile": Case(
        "N=64 K=1024, 1 % of messages late or lost, 5 % slow, 2 % lying, one death",
        Scenario(nodes=64, chunks=1024, loss=0.01, slow=0.05, liars=0.02, deaths=1),
        None,
        1.05,
        True,
    ),
    "few-chunks": Case("N=8 K=64", Scenario(nodes=8, chunks=64), 1.25, 1.0),
    "sealed": Case(
        "N=8 K=256, digests known before", Scenario(nodes=8, chunks=256, is_sealed=True), 1.06, 1.0
    ),
    "fast-origin": Case(
        "N=8 K=256, origin 8 times a link",
        Scenario(nodes=8, chunks=256, origin_rate=8 * _RATE),
        1.10,
        1.0,
    ),
    "alone": Case(
        "N=1, origin connections at a tenth of the link",
        Scenario(nodes=1, chunks=256, origin_connection_rate=_RATE / 10),
        1.10,
        1.0,
    ),
    "two": Case(
        "N=2, origin connections at a tenth of the link",
        Scenario(nodes=2, chunks=256, origin_connection_rate=_RATE / 10),
        1.10,
        1.0,
    ),
    "late": Case(
        "N=8 K=256, four join at half-time (1.5 is their bound)",
        Scenario(nodes=8, chunks=256, late=4),
        1.55,
        1.0,
    ),
    "home-dies": Case(
        "N=8 K=256, the home dies at half-time",
        Scenario(nodes=8, chunks=256, home_dies=True),
        1.30,
        1.05,
    ),
    "denied": Case(
        "N=8 K=256, the origin refuses half of the members",
        Scenario(nodes=8, chunks=256, denied=0.5),
        1.25,
        1.0,
    ),
}


def figures(
    name: str, case: Case, rng_seed: int, tell: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Let a world happen, and say how it went."""
    began_s = time.monotonic()
    world = (
        ToldWorld(case.scenario, rng_seed, tell) if tell else World(case.scenario, rng_seed)
    ).run()
    nodes = list(world.nodes.values())
    honest = world.honest
    return {
        "bench": "simulator",
        "world": name,
        "question": case.question,
        "rng_seed": rng_seed,
        "nodes": case.scenario.nodes,
        "chunks": case.scenario.chunks,
        "bound_s": round(case.scenario.bound_s, 3),
        "makespan_of_bound": round(world.makespan, 4),
        "makespan_max": case.makespan_max,
        "origin_of_model": round(world.origin_share, 4),
        "origin_max": case.origin_max,
        "completed": sum(node.finished_s is not None for node in honest),
        "honest": len(honest),
        "asks_per_chunk": round(
            sum(node.ask_count for node in nodes) / case.scenario.chunks / len(nodes), 3
        ),
        "busy_share": round(
            sum(node.busy_count for node in nodes) / max(1, sum(node.ask_count for node in nodes)),
            4,
        ),
        "reports_per_member": round(sum(node.reports for node in nodes) / len(nodes), 1),
        "tolerance": case.scenario.tolerance if case.scenario.tolerance > 1e-6 else 0,
        "took_s": round(time.monotonic() - began_s, 1),
        "machine": machine.describe(),
    }


def holds(figure: Mapping[str, Any]) -> bool:
    """Whether everybody honest has everything, and the targets are reached."""
    makespan_max = figure["makespan_max"]
    return bool(
        figure["completed"] == figure["honest"]
        and figure["origin_of_model"] <= figure["origin_max"]
        and (makespan_max is None or figure["makespan_of_bound"] <= makespan_max)
    )


def _say(figure: Mapping[str, Any]) -> None:
    makespan_max = figure["makespan_max"]
    target = f"(at most {makespan_max})" if makespan_max is not None else ""
    print(
        f"{figure['world']:>22}  {figure['makespan_of_bound']:.3f} of the bound {target:16}"
        f" origin {figure['origin_of_model']:.3f} (at most {figure['origin_max']})"
        f"  {figure['completed']}/{figure['honest']} complete"
        f"  rng_seed {figure['rng_seed']}  {'' if holds(figure) else 'MISSED: '}"
        f"{figure['question']}",
        file=sys.stderr,
        flush=True,
    )


def main(words: Sequence[str] | None = None) -> int:
    """Simulate what the command line names; exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.simulator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--world", action="append", choices=list(WORLDS), metavar="NAME")
    parser.add_argument("--rng-seed", type=int, default=1)
    parser.add_argument("--tell", action="store_true", help="print every word that is said")
    parser.add_argument("--list", action="store_true", help="print the worlds there are")
    given = parser.parse_args(words)
    if given.list:
        for name, case in WORLDS.items():
            print(f"{name:>22}  {case.question}")
        return 0
    chosen = given.world or [name for name, case in WORLDS.items() if case.is_in_readme]
    tell = partial(print, file=sys.stderr)
    all_hold = True
    for name in chosen:
        figure = figures(name, WORLDS[name], given.rng_seed, tell if given.tell else None)
        _say(figure)
        print(json.dumps(figure), flush=True)
        all_hold &= holds(figure)
    return 0 if all_hold else 1


if __name__ == "__main__":
    sys.exit(main())
