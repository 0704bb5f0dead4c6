"""How near does a swarm come to the bound of its network, and how often does it read the origin?

N agents and an origin, each in a network namespace of its own behind a rate-limited port, pull a
model that none of them has ever seen. Nobody can have it sooner than it fits through the slowest
port: bound = F / (0.956 min(O, B)), with F the model's bytes, O the origin's rate, B the agents'.

    python -m bench.swarm --nodes 8 --rate 400mbit --size 2GiB --origin-rate 400mbit

Every pass has new agents with empty stores; the first pass is thrown away (it touches memory for
the first time), figures are medians. The makespan runs from the moment at which the pulls are asked
for to the moment at which the last agent that was not killed has its view. Trees are then compared
with the origin's byte for byte, outside the timed part. Stores are in memory where it suffices: on
real nodes each has a disk of its own, here they would all share one.

`idle_share` is what was left of all cores, `others_cpu_s` what went to processes that are none of
ours and to the kernel's interrupts: where nothing is idle, the figures are the machine's limit and
not the swarm's.

    --late 4@3s      4 of the agents pull 3 s after the others
    --kill 1@50%     1 agent is killed when half of all bytes are there; it does not come back
    --kill-home      the killed one is the swarm's home (its tracker)
"""

import argparse
import asyncio
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import machine
from bench.agents import Agent, BenchError, Fleet, OriginServer, end_on_sigterm, same_tree
from bench.model import Model, cached_model
from bench.network import PAYLOAD_SHARE, Network, Port, parse_rate, why_not
from damselfly.agent.quantities import parse_bytes
from damselfly.client.answers import Progress, Pulled
from damselfly.errors import DamselflyError, explain
from damselfly.model.ref import Ref
from damselfly.origin.registry import Origins
from damselfly.p2p.messages import AgentID
from damselfly.p2p.rendezvous import home_of

_AGENT_PORT = 7070
_ORIGIN_PORT = 80
_MEMORY_FOLDER = Path("/dev/shm")
_SPARE_BYTES = 3 << 30  # for the agents themselves, and what else runs here


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A swarm to measure."""

    nodes: int
    rate_bits_s: int
    origin_rate_bits_s: int
    size_bytes: int
    rate_per_connection_bits_s: int | None = None
    late_count: int = 0
    late_s: float = 0.0
    kill_count: int = 0
    kill_at: float = 0.5
    kills_home: bool = False
    agent_options: tuple[str, ...] = ()

    @property
    def agents(self) -> list[str]:
        """The agents' names, in order; the last of them are late, those before them are killed."""
        return [f"agent{number}" for number in range(self.nodes)]

    def bound_s(self, model_bytes: int) -> float:
        """The least time in which anybody can have the model."""
        rate = min(self.rate_bits_s, self.origin_rate_bits_s)
        return model_bytes / (PAYLOAD_SHARE * rate / 8)


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What one pass took."""

    makespan_s: float
    finished_s: tuple[float, ...]
    origin_bytes: int
    origin_cpu_s: float
    peer_bytes: int
    agents_cpu_s: float
    others_cpu_s: float
    idle_share: float
    rss_anon_peak_bytes: int
    completed: int
    verified: bool


@dataclass
class _Pull:
    """One agent's pull, followed by a thread of ours."""

    agent: Agent
    delay_s: float
    bytes_done: int = 0
    bytes_total: int = 0
    finished_s: float = 0.0
    answer: Pulled | None = None
    error: str = ""
    thread: threading.Thread = field(init=False)

    def follow(self, ref: str, start_s: float) -> None:
        """Ask for the pull at its time, and see it through."""
        time.sleep(max(0.0, start_s + self.delay_s - time.monotonic()))
        try:
            self.answer = self.agent.pull(ref, self._on_progress)
        except (DamselflyError, BenchError) as exc:
            self.error = explain(exc)
        self.finished_s = time.monotonic() - start_s

    def _on_progress(self, progress: Progress) -> None:
        self.bytes_done = progress.bytes_done
        self.bytes_total = progress.bytes_total


def run_pass(scenario: Scenario, model: Model, folder: Path) -> Pass:
    """Build the network, let the swarm pull, look at what came of it, take everything down.

    Raises:
        BenchError: somebody did not do their part.
    """
    ports = {name: Port(rate_bits_s=scenario.rate_bits_s) for name in scenario.agents}
    ports["origin"] = Port(rate_bits_s=scenario.origin_rate_bits_s)
    with Network(ports) as network, Fleet(folder) as fleet:
        node = network.nodes["origin"]
        options: list[str] = []
        if scenario.rate_per_connection_bits_s is not None:
            options = [
                "--rate-per-connection",
                f"{scenario.rate_per_connection_bits_s // 1000}kbit",
            ]
        origin = fleet.start_origin(
            model.path, f"{node.address}:{_ORIGIN_PORT}", *options, prefix=node.prefix
        )
        addresses = [f"{network.nodes[name].address}:{_AGENT_PORT}" for name in scenario.agents]
        for name, address in zip(scenario.agents, addresses, strict=True):
            fleet.start_agent(
                name,
                address,
                addresses,
                *("--store-keep-free", "0B"),
                *scenario.agent_options,
                prefix=network.nodes[name].prefix,
            )
        fleet.wait_until_met()
        victims = fleet.agents[: scenario.kill_count]
        if scenario.kills_home:
            home = _home(origin.url, addresses, node.prefix)
            victims = [agent for agent in fleet.agents if agent.address == home]
        try:
            return _pull_on_all(scenario, model, origin, fleet.agents, victims)
        except BenchError as exc:
            raise BenchError(f"{exc}\n{fleet.explain()}") from exc


def _pull_on_all(
    scenario: Scenario,
    model: Model,
    origin: OriginServer,
    agents: Sequence[Agent],
    victims: Sequence[Agent],
) -> Pass:
    punctual = scenario.nodes - scenario.late_count
    pulls = [
        _Pull(agent, delay_s=0.0 if number < punctual else scenario.late_s)
        for number, agent in enumerate(agents)
    ]
    cpu_before_s = sum(agent.process.usage().cpu_s for agent in agents)
    origin_cpu_before_s = origin.process.usage().cpu_s
    sent_before = origin.bytes_sent()
    busy_before_s, idle_before_s = machine.busy_and_idle_s()
    start_s = time.monotonic() + 0.05
    for pull in pulls:
        pull.thread = threading.Thread(target=pull.follow, args=(origin.url, start_s), daemon=True)
        pull.thread.start()
    _kill_in_time(pulls, victims, scenario.kill_at)
    for pull in pulls:
        pull.thread.join()
    busy_s, idle_s = machine.busy_and_idle_s()
    alive = [pull for pull in pulls if pull.agent not in victims]
    if errors := [f"{pull.agent.name}: {pull.error}" for pull in alive if pull.answer is None]:
        raise BenchError("pulls failed: " + "; ".join(errors))
    answers = [pull.answer for pull in alive if pull.answer is not None]
    usages = [agent.process.usage() for agent in agents]
    agents_cpu_s = sum(usage.cpu_s for usage in usages) - cpu_before_s
    origin_cpu_s = origin.process.usage().cpu_s - origin_cpu_before_s
    busy_s -= busy_before_s
    idle_s -= idle_before_s
    return Pass(
        makespan_s=round(max(pull.finished_s for pull in alive), 3),
        finished_s=tuple(round(pull.finished_s, 2) for pull in alive),
        origin_bytes=origin.bytes_sent() - sent_before,
        origin_cpu_s=round(origin_cpu_s, 2),
        peer_bytes=sum(answer.bytes_from_peers for answer in answers),
        agents_cpu_s=round(agents_cpu_s, 2),
        others_cpu_s=round(busy_s - agents_cpu_s - origin_cpu_s, 2),
        idle_share=round(idle_s / (busy_s + idle_s), 3),
        rss_anon_peak_bytes=max(usage.rss_anon_peak_bytes for usage in usages),
        completed=len(answers),
        verified=all(same_tree(Path(answer.path), model.path) for answer in answers),
    )


def _kill_in_time(pulls: Sequence[_Pull], victims: Sequence[Agent], share: float) -> None:
    """Kill the victims once the swarm holds `share` of all the bytes it wants."""
    if not victims:
        return
    while any(pull.thread.is_alive() for pull in pulls):
        done = sum(pull.bytes_done for pull in pulls)
        total = sum(pull.bytes_total for pull in pulls)
        if total and done >= share * total:
            for agent in victims:
                agent.process.kill()
            return
        time.sleep(0.02)
    raise BenchError("the swarm was done before anybody could be killed")


def _home(url: str, addresses: Sequence[str], prefix: Sequence[str]) -> str:
    """The address of the agent that is home for the swarm of first contact with `url`."""
    command = [*prefix, sys.executable, "-m", "bench.swarm", "--home-of", url]
    command += ["--among", ",".join(addresses)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"finding the swarm's home: {done.stderr.strip()}")
    return done.stdout.strip()


async def _print_home(url: str, addresses: Sequence[str]) -> None:
    origins = Origins()
    try:
        ref = Ref.parse(url)
        resolved = await origins.for_ref(ref).resolve(ref)
        print(home_of(str(resolved.plan.id), [AgentID(address) for address in addresses]))
    finally:
        await origins.close()


def summarize(scenario: Scenario, model: Model, passes: Sequence[Pass]) -> dict[str, Any]:
    """Medians over passes, as multiples of what is possible."""
    bound_s = scenario.bound_s(model.bytes)
    makespan_s = statistics.median(each.makespan_s for each in passes)
    stored_gb = statistics.median(each.completed for each in passes) * model.bytes / 1e9
    options = {name: value for name, value in asdict(scenario).items() if value}
    if not (scenario.kill_count or scenario.kills_home):
        del options["kill_at"]
    return {
        "bench": "swarm",
        **options,
        "model_bytes": model.bytes,
        "bound_s": round(bound_s, 3),
        "makespan_s": round(makespan_s, 3),
        "makespan_of_bound": round(makespan_s / bound_s, 3),
        "origin_of_model": round(
            statistics.median(each.origin_bytes for each in passes) / model.bytes, 4
        ),
        "agents_cpu_s_per_gb": round(
            statistics.median(each.agents_cpu_s for each in passes) / stored_gb, 3
        ),
        "origin_cpu_s_per_gb": round(
            statistics.median(each.origin_cpu_s / each.origin_bytes * 1e9 for each in passes), 3
        ),
        "idle_share": statistics.median(each.idle_share for each in passes),
        "rss_anon_peak_mib": round(max(each.rss_anon_peak_bytes for each in passes) / 2**20, 1),
        "verified": all(each.verified for each in passes),
        "passes": [asdict(each) for each in passes],
        "machine": machine.describe(),
    }


def run(scenario: Scenario, *, pass_count: int, warm: bool, folder: Path | None) -> dict[str, Any]:
    """Measure a scenario; where is decided here if `folder` is None."""
    model = cached_model(scenario.size_bytes)
    room = scenario.nodes * model.bytes + _SPARE_BYTES
    if folder is None and _MEMORY_FOLDER.is_dir():
        free = min(machine.free_memory_bytes(), shutil.disk_usage(_MEMORY_FOLDER).free)
        folder = _MEMORY_FOLDER if free >= room else None
    passes: list[Pass] = []
    for number in range(pass_count + warm):
        with tempfile.TemporaryDirectory(prefix="damselfly-swarm-", dir=folder) as place:
            done = run_pass(scenario, model, Path(place))
        counts = number >= warm
        _say(
            f"{'pass' if counts else 'warm-up'}: {done.makespan_s:.2f} s,"
            f" {done.makespan_s / scenario.bound_s(model.bytes):.3f} of the bound,"
            f" origin {done.origin_bytes / model.bytes:.4f}, idle {done.idle_share:.0%},"
            f" verified {done.verified}"
        )
        if counts:
            passes.append(done)
    figures = summarize(scenario, model, passes)
    figures["stores"] = "memory" if folder == _MEMORY_FOLDER else "disk"
    return figures


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _late(text: str) -> tuple[int, float]:
    match = re.fullmatch(r"(\d+)@(\d+(?:\.\d+)?)s", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 4@3s")
    return int(match[1]), float(match[2])


def _kill(text: str) -> tuple[int, float]:
    match = re.fullmatch(r"(\d+)@(\d+)%", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 1@50%")
    return int(match[1]), int(match[2]) / 100


def main() -> int:
    """Measure what the command line describes, and print one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.swarm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--rate", type=parse_rate, default=parse_rate("400mbit"))
    parser.add_argument("--origin-rate", type=parse_rate, help="without it as --rate")
    parser.add_argument("--origin-rate-per-connection", type=parse_rate)
    parser.add_argument("--size", type=parse_bytes, default=2 << 30)
    parser.add_argument("--late", type=_late, default=(0, 0.0), metavar="N@SECONDS")
    parser.add_argument("--kill", type=_kill, default=(0, 0.5), metavar="N@PERCENT")
    parser.add_argument("--kill-home", action="store_true")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--no-warm-up", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the stores go")
    parser.add_argument("--agent-option", action="append", default=[], metavar="WORD")
    parser.add_argument("--home-of", help=argparse.SUPPRESS)
    parser.add_argument("--among", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.home_of:
        asyncio.run(_print_home(given.home_of, given.among.split(",")))
        return 0
    if (reason := why_not()) is not None:
        _say(f"cannot measure a swarm: {reason}")
        return 1
    end_on_sigterm()
    scenario = Scenario(
        nodes=given.nodes,
        rate_bits_s=given.rate,
        origin_rate_bits_s=given.origin_rate or given.rate,
        size_bytes=given.size,
        rate_per_connection_bits_s=given.origin_rate_per_connection,
        late_count=given.late[0],
        late_s=given.late[1],
        kill_count=given.kill[0],
        kill_at=given.kill[1],
        kills_home=given.kill_home,
        agent_options=tuple(given.agent_option),
    )
    try:
        figures = run(
            scenario, pass_count=given.passes, warm=not given.no_warm_up, folder=given.folder
        )
    except BenchError as exc:
        _say(str(exc))
        return 1
    print(json.dumps(figures))
    return 0 if figures["verified"] else 1


if __name__ == "__main__":
    sys.exit(main())
