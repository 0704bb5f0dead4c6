"""How much of the kernel's speed is left when a chunk goes from one agent's file to another's?

One transfer between two processes over loopback, against the bound measured in the same run:
sendfile into a socket, recv into a buffer, BLAKE3 in a thread, pwrite in a thread, no protocol.
Ours is `PeerServer` answering with `FileBody`, and `PeerPool.fetch_into` with eight chunks in
flight, plainly and with TLS. All sides store with the same code and as many threads.

Back of the envelope: each byte is copied three times (page cache to socket is a reference, socket
to buffer, buffer to page cache) and hashed once: at about 8 GB/s each that is 0.4 CPU seconds per
GB, so two cores that do nothing else cannot beat some 2.5 GB/s with sender and receiver on the same
machine.

    python -m bench.transfer --size 1GiB --passes 5

The first pass of each side is thrown away (it touches memory for the first time), then the sides
take turns; figures are medians.
"""

import argparse
import asyncio
import json
import os
import queue
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import uvloop
from blake3 import blake3

from bench import machine
from damselfly.p2p.transport import (
    BufferPool,
    CertificateFiles,
    Certificates,
    FileBody,
    PeerPool,
    PeerServer,
    Request,
    Response,
)

MIB = 1 << 20
CHUNK_BYTES = 4 * MIB
IN_FLIGHT = 8
BUFFERS = 16
THREADS = 2
_UNITS = {"MiB": MIB, "GiB": 1 << 30}


@dataclass(frozen=True)
class Sink:
    """Where a receiver stores: a preallocated file, and the digest that each chunk must have."""

    fd: int
    digests: tuple[bytes, ...]

    def store(self, index: int, data: memoryview) -> None:
        """Verify one chunk, then write it in place. Runs in a thread; releases the GIL twice."""
        if blake3(data).digest() != self.digests[index]:
            raise ValueError(f"chunk {index} is not what was sent")
        written = os.pwrite(self.fd, data, index * CHUNK_BYTES)
        if written != len(data):
            raise OSError(f"chunk {index}: only {written} bytes written")


def digests_of(path: Path) -> tuple[bytes, ...]:
    """Hash a file chunk by chunk."""
    with path.open("rb") as file:
        return tuple(blake3(data).digest() for data in iter(lambda: file.read(CHUNK_BYTES), b""))


def chunk_server(fd: int, certificates: Certificates | None = None) -> PeerServer:
    """Make a server for the chunks of an open file: `/v1/chunks/{index}`."""

    async def handle(request: Request) -> Response:
        index = int(request.path.rpartition("/")[2])
        return Response(200, (), FileBody(fd, index * CHUNK_BYTES, CHUNK_BYTES, _keep_open))

    return PeerServer(handle, certificates=certificates)


async def fetch_all(
    pool: PeerPool, address: str, buffers: BufferPool, threads: ThreadPoolExecutor, sink: Sink
) -> None:
    """Fetch every chunk into pooled buffers, eight at a time, and store each in a thread."""
    loop = asyncio.get_running_loop()
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def fetch(index: int) -> None:
        async with buffers.buffer(CHUNK_BYTES) as view:
            try:
                reply = await pool.fetch_into(address, f"/v1/chunks/{index}", view, stall_s=10.0)
            finally:
                slots.release()
            if reply.length != CHUNK_BYTES:
                raise ValueError(f"chunk {index}: {reply}")
            await loop.run_in_executor(threads, sink.store, index, view)

    async with asyncio.TaskGroup() as group:
        for index in range(len(sink.digests)):
            await slots.acquire()
            group.create_task(fetch(index))


def fetch_plainly(
    address: str,
    buffers: "queue.SimpleQueue[memoryview]",
    threads: ThreadPoolExecutor,
    sink: Sink,
) -> None:
    """Do the same with nothing but a socket: the bound."""
    stored: list[Future[None]] = []

    def store(index: int, view: memoryview) -> None:
        try:
            sink.store(index, view)
        finally:
            buffers.put(view)

    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as sock:
        for index in range(len(sink.digests)):
            view = buffers.get()
            rest = view
            while rest:
                rest = rest[sock.recv_into(rest, 0, socket.MSG_WAITALL) :]
            stored.append(threads.submit(store, index, view))
        for future in stored:
            future.result()


# --- the four processes ---------------------------------------------------------------------------


def serve_ours(path: Path, tls: Path | None) -> None:
    """The sender of our side."""
    certificates = _certificates(tls)

    async def main() -> None:
        with path.open("rb") as file:
            server = chunk_server(file.fileno(), certificates)
            await server.start("127.0.0.1", 0)
            _say({"port": server.port})
            loop = asyncio.get_running_loop()
            while await loop.run_in_executor(None, sys.stdin.readline):
                _say({"cpu_s": _cpu_s(), "anon_mib": _anon_mib()})
            await server.close()

    uvloop.run(main())


def serve_bound(path: Path, tls: Path | None) -> None:
    """The sender of the bound, which has no TLS."""
    assert tls is None, "the bound is of plain sockets"
    with path.open("rb") as file, socket.create_server(("127.0.0.1", 0)) as listener:
        _say({"port": listener.getsockname()[1]})
        while sys.stdin.readline():
            connection, _ = listener.accept()
            with connection:
                at = 0
                while sent := os.sendfile(connection.fileno(), file.fileno(), at, CHUNK_BYTES):
                    at += sent
                connection.recv(1)
            _say({"cpu_s": _cpu_s(), "anon_mib": _anon_mib()})


def receive_ours(path: Path, address: str, digests: tuple[bytes, ...], tls: Path | None) -> None:
    """The receiver of our side: a pass per line on stdin."""
    certificates = _certificates(tls)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        pool = PeerPool(None, certificates)
        buffers = BufferPool(BUFFERS, CHUNK_BYTES)
        with path.open("r+b") as file, ThreadPoolExecutor(THREADS) as threads:
            sink = Sink(file.fileno(), digests)
            while await loop.run_in_executor(None, sys.stdin.readline):
                started_s, cpu_s = time.perf_counter(), _cpu_s()
                await fetch_all(pool, address, buffers, threads, sink)
                _say_pass(started_s, cpu_s)
            await pool.close()

    uvloop.run(main())


def receive_bound(path: Path, address: str, digests: tuple[bytes, ...], tls: Path | None) -> None:
    """The receiver of the bound, which has no TLS."""
    assert tls is None, "the bound is of plain sockets"
    buffers: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
    for _ in range(BUFFERS):
        buffers.put(memoryview(bytearray(CHUNK_BYTES)))
    with path.open("r+b") as file, ThreadPoolExecutor(THREADS) as threads:
        sink = Sink(file.fileno(), digests)
        while sys.stdin.readline():
            started_s, cpu_s = time.perf_counter(), _cpu_s()
            fetch_plainly(address, buffers, threads, sink)
            _say_pass(started_s, cpu_s)


_ROLES: dict[str, Callable[[Path, Path | None], None]] = {
    "serve-ours": serve_ours,
    "serve-bound": serve_bound,
}
_RECEIVERS: dict[str, Callable[[Path, str, tuple[bytes, ...], Path | None], None]] = {
    "receive-ours": receive_ours,
    "receive-bound": receive_bound,
}


def _certificates(folder: Path | None) -> Certificates | None:
    if folder is None:
        return None
    certificate = folder / "tls.crt"
    return Certificates(CertificateFiles(certificate, folder / "tls.key", certificate))


def _make_certificate(folder: Path) -> None:
    """Make one that is its own authority: both sides have it."""
    folder.mkdir()
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "1", "-subj", "/CN=bench", "-addext", "subjectAltName=DNS:bench"]
    command += ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
    subprocess.run(command, check=True, capture_output=True)


def _say(value: dict[str, float]) -> None:
    print(json.dumps(value), flush=True)


def _say_pass(started_s: float, cpu_s: float) -> None:
    seconds = time.perf_counter() - started_s
    _say({"seconds": seconds, "cpu_s": _cpu_s() - cpu_s, "anon_mib": _anon_mib()})


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _anon_mib() -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _keep_open() -> None:
    pass


# --- the parent -----------------------------------------------------------------------------------


class Worker:
    """One of the four processes: a line in, a JSON line out."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.transfer", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def go(self) -> None:
        """Start a pass."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, float]:
        """Read what it has to say."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r} died")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=30)


class Side:
    """A sender and a receiver, and what their passes cost."""

    def __init__(
        self, name: str, source: Path, target: Path, stack: ExitStack, tls: Path | None = None
    ) -> None:
        secured = () if tls is None else ("--tls", str(tls))
        self.sender = Worker("--role", f"serve-{name}", "--source", str(source), *secured)
        stack.callback(self.sender.close)
        port = int(self.sender.answer()["port"])
        self.receiver = Worker(
            *("--role", f"receive-{name}", "--source", str(source), "--target", str(target)),
            *("--address", f"127.0.0.1:{port}"),
            *secured,
        )
        stack.callback(self.receiver.close)
        self.passes: list[dict[str, float]] = []
        self._sender_cpu_s = 0.0

    def run(self) -> None:
        """Make one pass."""
        waits_for_go = "serve-bound" in self.sender.process.args  # type: ignore[operator]
        if waits_for_go:
            self.sender.go()
        self.receiver.go()
        received = self.receiver.answer()
        if not waits_for_go:
            self.sender.go()
        sent = self.sender.answer()
        received["sender_cpu_s"] = sent["cpu_s"] - self._sender_cpu_s
        received["sender_anon_mib"] = sent["anon_mib"]
        self._sender_cpu_s = sent["cpu_s"]
        self.passes.append(received)

    def median(self, key: str) -> float:
        """Give the median of all passes but the first."""
        return statistics.median(one[key] for one in self.passes[1:])

    def figures(self, size: int) -> dict[str, float]:
        """Tell them per GB (10^9 bytes)."""
        gigabytes = size / 1e9
        return {
            "gb_per_s": round(gigabytes / self.median("seconds"), 3),
            "receiver_cpu_s_per_gb": round(self.median("cpu_s") / gigabytes, 3),
            "sender_cpu_s_per_gb": round(self.median("sender_cpu_s") / gigabytes, 3),
            "receiver_rss_anon_mib": round(self.median("anon_mib"), 1),
            "sender_rss_anon_mib": round(self.median("sender_anon_mib"), 1),
        }


def measure(size: int, passes: int, folder: Path | None = None) -> dict[str, object]:
    """Run all sides in turn and compare them."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        source, target = scratch / "source", scratch / "target"
        with source.open("wb") as file:
            for _ in range(size // CHUNK_BYTES):
                file.write(os.urandom(CHUNK_BYTES))
        with target.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        bound = Side("bound", source, target, stack)
        ours = Side("ours", source, target, stack)
        _make_certificate(scratch / "tls")
        secure = Side("ours", source, target, stack, scratch / "tls")
        for _ in range(passes + 1):
            bound.run()
            ours.run()
            secure.run()
        return {
            "bench": "transfer",
            "machine": machine.describe(),
            "bytes": size,
            "passes": passes,
            "bound": bound.figures(size),
            "ours": ours.figures(size),
            "tls": secure.figures(size),
            "ratio": round(bound.median("seconds") / ours.median("seconds"), 3),
            "tls_ratio": round(ours.median("seconds") / secure.median("seconds"), 3),
        }


def parse_size(text: str) -> int:
    """Read `512MiB` or `1GiB` as bytes, a whole number of chunks."""
    for unit, factor in _UNITS.items():
        if text.endswith(unit):
            size = int(float(text.removesuffix(unit)) * factor)
            return max(1, size // CHUNK_BYTES) * CHUNK_BYTES
    raise argparse.ArgumentTypeError(f"{text!r} is no size like 1GiB")


def main() -> None:
    """Run as a command, or as one of its four processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=parse_size, default="1GiB")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where the two files go")
    parser.add_argument("--role", choices=[*_ROLES, *_RECEIVERS], help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--tls", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role in _ROLES:
        _ROLES[arguments.role](arguments.source, arguments.tls)
    elif arguments.role is not None:
        digests = digests_of(arguments.source)
        receive = _RECEIVERS[arguments.role]
        receive(arguments.target, arguments.address, digests, arguments.tls)
    else:
        print(json.dumps(measure(arguments.size, arguments.passes, arguments.dir)))


if __name__ == "__main__":
    main()
