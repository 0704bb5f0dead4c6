"""Agents and an origin as processes of their own: started, watched, pulled on, and always ended.

`Fleet` is a context: whatever happens inside, no process that it started outlives it. A process
whose starter dies without a word (`kill -9`) is ended by the kernel (`setpriv --pdeathsig`).
"""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from bench.origin import STATS_PATH
from damselfly.client.agent import AgentClient
from damselfly.client.answers import Progress, Pulled, PullRequest
from damselfly.errors import AgentUnavailableError

DAMSELFLY = (sys.executable, "-m", "damselfly")
SAMPLE_INTERVAL_S = 0.1
READY_PATIENCE_S = 30.0
STOP_PATIENCE_S = 10.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_RSS_ANON = re.compile(rb"^RssAnon:\s+(\d+) kB$", re.MULTILINE)


class BenchError(Exception):
    """A process of the benchmark did not do its part; the message has its last words."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a process has used: CPU seconds of all its threads, and its most anonymous memory."""

    cpu_s: float
    rss_anon_peak_bytes: int


class Process:
    """One process of ours, its log, and what it uses. Belongs to the fleet that started it."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        guard = ("setpriv", "--pdeathsig", "KILL", "--") if shutil.which("setpriv") else ()
        environ = {key: text for key, text in os.environ.items() if "DAMSELFLY_" not in key}
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [*guard, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environ,
                start_new_session=True,  # Ctrl-C is for us, and we end them in order.
            )
        self._cpu_s = 0.0
        self._rss_anon_peak_bytes = 0

    @property
    def pid(self) -> int:
        """Its process id: of the program itself, since all that precedes it is replaced by it."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """It has not ended."""
        return self._process.poll() is None

    def usage(self) -> Usage:
        """What it has used until now, or until its last sample if it has ended."""
        self.sample()
        return Usage(cpu_s=self._cpu_s, rss_anon_peak_bytes=self._rss_anon_peak_bytes)

    def sample(self) -> None:
        """Look at what it uses; about every 100 ms somebody should."""
        if not self.is_alive:
            return  # Its number may be another's by now.
        try:
            status = Path(f"/proc/{self.pid}/status").read_bytes()
            stat = Path(f"/proc/{self.pid}/stat").read_bytes()
        except OSError:
            return
        if match := _RSS_ANON.search(status):  # An ended process has none.
            self._rss_anon_peak_bytes = max(self._rss_anon_peak_bytes, int(match[1]) * 1024)
        fields = stat[stat.rindex(b")") + 2 :].split()
        self._cpu_s = max(self._cpu_s, (int(fields[11]) + int(fields[12])) / _TICKS_PER_S)

    def forget_peak(self) -> None:
        """Begin anew to look for the peak of its memory."""
        self._rss_anon_peak_bytes = 0

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """End it as an operator does, and return its exit code; kill it if it does not listen."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def last_words(self, lines: int = 15) -> str:
        """The end of its log, and how it ended."""
        text = self.log.read_text(errors="replace").splitlines()[-lines:]
        code = self._process.poll()
        state = "is running" if code is None else f"ended with {code}"
        return "\n".join([f"{self.name} {state}; its log ends:", *(f"    {each}" for each in text)])


class OriginServer:
    """`python -m bench.origin` as a process, asked for its counts over a unix socket."""

    def __init__(self, process: Process, url: str, socket_path: Path) -> None:
        self.process = process
        self.url = url
        self._socket_path = socket_path

    def stats(self) -> dict[str, Any]:
        """What it has sent so far."""
        return _object(_get(self._socket_path, STATS_PATH))

    def bytes_sent(self) -> int:
        """Every byte of every body that it sent so far."""
        return int(self.stats()["bytes"])


class Agent:
    """`damselfly agent` as a process, with a client for its socket."""

    def __init__(self, process: Process, address: str, socket_path: Path) -> None:
        self.process = process
        self.address = address
        self.client = AgentClient(str(socket_path))

    @property
    def name(self) -> str:
        """What the fleet calls it."""
        return self.process.name

    def wait_until_ready(self, patience_s: float = READY_PATIENCE_S) -> None:
        """Wait until it answers on its socket that it is ready.

        Raises:
            BenchError: it ended instead, or takes too long.
        """
        deadline_s = time.monotonic() + patience_s
        while True:
            try:
                if self.client.status().state == "ready":
                    return
            except AgentUnavailableError:
                pass
            if not self.process.is_alive:
                raise BenchError(self.process.last_words())
            if time.monotonic() > deadline_s:
                raise BenchError(f"{self.name} is not ready in time; {self.process.last_words()}")
            time.sleep(0.02)

    def peer_count(self) -> int:
        """How many other agents it is connected to."""
        return sum(peer.state == "connected" for peer in self.client.status().peers)

    def pull(self, ref: str, on_progress: Callable[[Progress], None] | None = None) -> Pulled:
        """Pull `ref` through the agent's socket, and say how it went on.

        Raises:
            DamselflyError: the pull failed, or the agent is gone.
        """
        for item in self.client.pull(PullRequest(ref=ref)):
            if isinstance(item, Pulled):
                return item
            if on_progress is not None:
                on_progress(item)
        raise BenchError(f"{self.name} ended the pull of {ref} without an answer")

    def pull_by_command(self, ref: str, *words: str) -> dict[str, Any]:
        """Pull `ref` with `damselfly pull --json`, as a person does.

        Raises:
            BenchError: the command failed.
        """
        command = (*DAMSELFLY, "pull", ref, *words)
        done = subprocess.run(
            [*command, "--socket", self.client.socket_path, "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise BenchError(f"damselfly pull ended with {done.returncode}: {done.stderr.strip()}")
        return _object(done.stdout)


class Fleet:
    """Processes that live no longer than this context, and a thread that samples what they use.

    Stores and logs go into `folder`. Sockets do not: the path of one may have 107 bytes at most.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sockets = tempfile.TemporaryDirectory(prefix="damselfly-")
        self.agents: list[Agent] = []
        self._processes: list[Process] = []
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="sampler", daemon=True)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sampler.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._sampler.join()
        for process in self._processes:
            if process.is_alive:
                process.kill()
        self._sockets.cleanup()

    def _socket_of(self, name: str) -> Path:
        return Path(self._sockets.name) / f"{name}.sock"

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_INTERVAL_S):
            for process in tuple(self._processes):
                process.sample()

    def start(self, name: str, command: Sequence[str]) -> Process:
        """Start any process that shall end with the fleet."""
        process = Process(name, command, self.folder / f"{name}.log")
        self._processes.append(process)
        return process

    def start_origin(
        self, root: Path, listen: str, *options: str, prefix: Sequence[str] = ()
    ) -> OriginServer:
        """Serve `root` on the address `listen`, and wait until it answers."""
        path = self._socket_of("origin")
        command = (sys.executable, "-m", "bench.origin", str(root), "--listen", listen)
        process = self.start("origin", [*prefix, *command, "--socket", str(path), *options])
        origin = OriginServer(process, f"http://{listen}/", path)
        deadline_s = time.monotonic() + READY_PATIENCE_S
        while True:
            try:
                origin.stats()
            except OSError:
                if not process.is_alive or time.monotonic() > deadline_s:
                    raise BenchError(process.last_words()) from None
                time.sleep(0.02)
            else:
                return origin

    def start_agent(
        self,
        name: str,
        listen: str,
        peers: Sequence[str],
        *options: str,
        prefix: Sequence[str] = (),
    ) -> Agent:
        """Start an agent; its store is in a folder of its own, which it makes."""
        command = [
            *prefix,
            *(*DAMSELFLY, "agent"),
            *("--store", str(self.folder / name)),
            *("--listen", listen),
            *("--socket", str(self._socket_of(name))),
            *("--peers", ",".join(peers)),
            *options,
        ]
        agent = Agent(self.start(name, command), listen, self._socket_of(name))
        self.agents.append(agent)
        return agent

    def wait_until_met(self, patience_s: float = READY_PATIENCE_S) -> None:
        """Wait until every agent is ready and sees every other one.

        Raises:
            BenchError: one ended instead, or they take too long.
        """
        for agent in self.agents:
            agent.wait_until_ready(patience_s)
        deadline_s = time.monotonic() + patience_s
        waiting = list(self.agents)
        while waiting:
            waiting = [agent for agent in waiting if agent.peer_count() < len(self.agents) - 1]
            if waiting and time.monotonic() > deadline_s:
                raise BenchError(f"{waiting[0].name} does not find the others; {self.explain()}")
            time.sleep(0.02)

    def explain(self) -> str:
        """The last words of everybody, for when something went wrong."""
        return "\n".join(process.last_words() for process in self._processes)


def free_addresses(count: int, host: str = "127.0.0.1") -> list[str]:
    """Addresses on which nobody listens; they are only likely to stay free."""
    sockets = [socket.create_server((host, 0)) for _ in range(count)]
    try:
        return [f"{host}:{each.getsockname()[1]}" for each in sockets]
    finally:
        for each in sockets:
            each.close()


def end_on_sigterm() -> None:
    """Make SIGTERM unwind the stack, so that every context cleans up."""

    def end(_number: int, _frame: object) -> None:
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP to a path instead of a host."""

    def __init__(self, path: Path) -> None:
        super().__init__("origin", timeout=10)
        self._path = path

    def connect(self) -> None:
        """Connect to the path."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _object(text: str | bytes) -> dict[str, Any]:
    value = json.loads(text)
    assert isinstance(value, dict)
    return cast("dict[str, Any]", value)


def _get(path: Path, target: str) -> bytes:
    connection = _UnixConnection(path)
    try:
        connection.request("GET", target)
        return connection.getresponse().read()
    finally:
        connection.close()


def same_tree(left: Path, right: Path) -> bool:
    """Compare two directories: the same files, and every file byte for byte."""
    names = [
        sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())
        for root in (left, right)
    ]
    if names[0] != names[1]:
        return False
    return all(_same_file(left / name, right / name) for name in names[0])


def _same_file(left: Path, right: Path) -> bool:
    blocks = bytearray(1 << 20), bytearray(1 << 20)
    with left.open("rb", buffering=0) as one, right.open("rb", buffering=0) as other:
        if os.fstat(one.fileno()).st_size != os.fstat(other.fileno()).st_size:
            return False
        while True:
            count = one.readinto(blocks[0])
            if count != other.readinto(blocks[1]) or blocks[0] != blocks[1]:
                return False
            if not count:
                return True
