"""A swarm on this machine: a real model, an HTTP origin, and agents that pull it all at once.

    make demo
    python -m bench.demo --size 1GiB --nodes 4

Every agent is a process of its own, with a store and a socket of its own; they meet over loopback.
Each starts empty, so nobody knows a digest of the model beforehand. When all have it, every file of
every agent is compared with the origin's, byte for byte. The model is kept in `.demo` for the next
time; everything else is removed, also after Ctrl-C.
"""

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.agents import (
    Agent,
    BenchError,
    Fleet,
    OriginServer,
    end_on_sigterm,
    free_addresses,
    same_tree,
)
from bench.model import CACHE, Model, cached_model
from damselfly.agent.quantities import parse_bytes
from damselfly.client.answers import Progress, Pulled
from damselfly.errors import DamselflyError, explain

_REDRAW_S = 0.1
_PLAIN_REDRAW_S = 2.0
_BAR_CELLS = 24


@dataclass
class Follower:
    """Follows one agent's pull on a thread: the newest progress, then an answer or an error."""

    agent: Agent
    progress: Progress = field(default_factory=lambda: Progress(ref=""))
    answer: Pulled | None = None
    error: str = ""

    def follow(self, ref: str) -> None:
        """See the pull through."""
        try:
            self.answer = self.agent.pull(ref, self._see)
        except (DamselflyError, BenchError) as exc:
            self.error = explain(exc)

    def _see(self, progress: Progress) -> None:
        self.progress = progress

    def line(self, now_s: float) -> str:
        """How far it is, in one line."""
        name = self.agent.name
        if self.error:
            return f"  {name}  failed: {self.error}"
        if self.answer is not None:
            done = self.answer.bytes
            total, seconds, phase = done, self.answer.seconds, "complete"
            origin, peers = self.answer.bytes_from_origin, self.answer.bytes_from_peers
        else:
            done, total = self.progress.bytes_done, self.progress.bytes_total
            seconds, phase = now_s, self.progress.waiting_for or self.progress.phase
            origin, peers = self.progress.bytes_from_origin, self.progress.bytes_from_peers
        share = done / total if total else 0.0
        rate = done / seconds if seconds else 0.0
        return (
            f"  {name}  {_bar(share)} {share:4.0%}  origin {_mb(origin)}  peers {_mb(peers)}"
            f"  {_mb(rate)}/s  {phase}"
        )


def _bar(share: float) -> str:
    full, empty = ("█", "░") if (sys.stdout.encoding or "").lower().startswith("utf") else "#."
    cells = round(share * _BAR_CELLS)
    return full * cells + empty * (_BAR_CELLS - cells)


def _mb(count: float) -> str:
    return f"{count / 1e6:6,.0f} MB"


class Screen:
    """A line per agent: in place on a terminal, again every two seconds elsewhere."""

    def __init__(self) -> None:
        self._in_place = sys.stdout.isatty()
        self._drawn = 0
        self._drawn_s = 0.0

    def draw(self, lines: Sequence[str], *, last: bool = False) -> None:
        """Show the lines, if it is time to."""
        now_s = time.monotonic()
        due_s = self._drawn_s + (_REDRAW_S if self._in_place else _PLAIN_REDRAW_S)
        if now_s < due_s and not last:
            return
        self._drawn_s = now_s
        if self._in_place:
            columns = shutil.get_terminal_size().columns - 1
            up = f"\x1b[{self._drawn}A" if self._drawn else ""
            print(up + "".join(f"\x1b[2K{line[:columns]}\n" for line in lines), end="", flush=True)
            self._drawn = len(lines)
        else:
            print("\n".join(lines), flush=True)


def pull_on_all(agents: Sequence[Agent], ref: str) -> list[Follower]:
    """Pull `ref` on every agent at once, showing how it goes.

    Raises:
        BenchError: a pull failed.
    """
    followers = [Follower(agent) for agent in agents]
    threads = [
        threading.Thread(target=follower.follow, args=(ref,), daemon=True) for follower in followers
    ]
    screen = Screen()
    start_s = time.monotonic()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        screen.draw([follower.line(time.monotonic() - start_s) for follower in followers])
        time.sleep(_REDRAW_S / 2)
    screen.draw([follower.line(time.monotonic() - start_s) for follower in followers], last=True)
    if failed := [follower for follower in followers if follower.answer is None]:
        raise BenchError(f"{failed[0].agent.name}: {failed[0].error}")
    return followers


def stop_all(agents: Sequence[Agent]) -> None:
    """Stop every agent as an operator does.

    Raises:
        BenchError: one did not end as it should.
    """
    for agent in agents:
        if code := agent.process.stop():
            raise BenchError(f"{agent.name} ended with {code}")


@contextmanager
def _run_folder(cache: Path, *, keep: bool) -> Generator[Path]:
    """A folder for stores and logs; it is removed unless it is to be kept."""
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=cache))
    try:
        yield folder
    finally:
        if keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, onerror=_make_writable)


def _make_writable(remove: object, path: str, _: object) -> None:
    """Views of a store are read-only directories: let ourselves in, and try again."""
    Path(path).parent.chmod(0o700)
    if Path(path).is_dir() and not Path(path).is_symlink():
        Path(path).chmod(0o700)
        shutil.rmtree(path)
    else:
        Path(path).unlink()


def _table(
    followers: Sequence[Follower], cpu_s: Sequence[float], verified: Sequence[bool]
) -> Iterator[str]:
    yield ""
    yield "            seconds  from origin   from peers   CPU s/GB  every byte the same"
    for follower, cpu, is_same in zip(followers, cpu_s, verified, strict=True):
        answer = follower.answer
        assert answer is not None
        yield (
            f"  {follower.agent.name:<9} {answer.seconds:6.1f}    {_mb(answer.bytes_from_origin)}"
            f"    {_mb(answer.bytes_from_peers)}   {cpu / answer.bytes * 1e9:8.2f}"
            f"  {'yes' if is_same else 'NO'}"
        )


def show(model: Model, origin: OriginServer, fleet: Fleet) -> bool:
    """Let the agents pull, compare, and print the table; tells whether every byte is the same.

    Raises:
        BenchError: a pull failed.
    """
    agents = fleet.agents
    print(f"\n{len(agents)} agents pull {origin.url} at once:\n", flush=True)
    cpu_before_s = [agent.process.usage().cpu_s for agent in agents]
    sent_before = origin.bytes_sent()
    start_s = time.monotonic()
    followers = pull_on_all(agents, origin.url)
    seconds = time.monotonic() - start_s
    sent = origin.bytes_sent() - sent_before
    cpu_s = [
        agent.process.usage().cpu_s - before
        for agent, before in zip(agents, cpu_before_s, strict=True)
    ]
    print("\ncomparing every file with the origin's, byte for byte ...", flush=True)
    verified = [
        follower.answer is not None and same_tree(Path(follower.answer.path), model.path)
        for follower in followers
    ]
    for line in _table(followers, cpu_s, verified):
        print(line)
    peers = sum(each.answer.bytes_from_peers for each in followers if each.answer)
    print(
        f"\n  all {len(agents)} in {seconds:.1f} s; the origin sent {sent / model.bytes:.3f} x the"
        f" model ({sent / 1e6:,.0f} MB), peers {peers / 1e6:,.0f} MB;"
        f" {sum(cpu_s) / (model.bytes * len(agents)) * 1e9:.2f} CPU s/GB"
    )
    return all(verified)


def run(*, size_bytes: int, nodes: int, keep: bool, cache: Path) -> int:
    """Run the demo; returns the exit code."""
    room = (nodes + 1) * size_bytes + (1 << 30)
    cache.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(cache).free < room:
        print(f"the demo needs {room / 1e9:.1f} GB of disk in {cache}", file=sys.stderr)
        return 1
    print(f"model of {size_bytes / 2**30:.2f} GiB in {cache} ...", end=" ", flush=True)
    start_s = time.monotonic()
    model = cached_model(size_bytes, cache)
    shards = sum(name.endswith(".safetensors") for name in model.sizes)
    print(f"{len(model.sizes)} files, {shards} shards ({time.monotonic() - start_s:.1f} s)")
    with _run_folder(cache, keep=keep) as folder, Fleet(folder) as fleet:
        listen, *addresses = free_addresses(nodes + 1)
        origin = fleet.start_origin(model.path, listen)
        for number, address in enumerate(addresses, start=1):
            fleet.start_agent(f"agent{number}", address, addresses)
        try:
            fleet.wait_until_met()
            is_same = show(model, origin, fleet)
            stop_all(fleet.agents)
        except BenchError as exc:
            print(f"\nfailed: {exc}\n{fleet.explain()}", file=sys.stderr)
            return 1
    here = Path.cwd()
    kept = model.path.relative_to(here) if model.path.is_relative_to(here) else model.path
    print(f"  the model stays in {kept}; everything else is removed")
    return 0 if is_same else 1


def main() -> int:
    """Run the demo that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", type=parse_bytes, default=1 << 30, help="such as 1GiB")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the model is kept")
    parser.add_argument("--keep", action="store_true", help="keep stores and logs")
    given = parser.parse_args()
    end_on_sigterm()
    try:
        return run(
            size_bytes=given.size, nodes=given.nodes, keep=given.keep, cache=given.cache.absolute()
        )
    except KeyboardInterrupt:
        print("\ninterrupted; everything but the model is removed", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
