"""An HTTP origin to pull from: ranges, listings, keep-alive, and an honest count of what it sent.

It shares two cores with the agents that it feeds, so it is a thread per connection in a blocking
`sendfile`: the kernel does the work. It counts every byte of every body that it hands to a socket,
also what a peer that died never read; `GET /__stats` tells, on the unix socket too.

A slow or broken origin is made by options: a rate per connection (by the kernel's TCP pacing), a
latency before each answer, and `--fail MODE`:

    429         the first COUNT reads of a file are refused with 429 and Retry-After
    503         the first COUNT reads of a file are answered with a bare 503
    truncated   the first COUNT bodies end half-way, and so do their connections
    stalled     the first COUNT bodies stop half-way, and nothing more comes until the client goes
    changed     a file has another ETag as soon as half of its bytes are sent
    denied      every read of a file gets 403

Any folder is a bucket of S3 too, asked by path (`?list-type=2`): so the same server, as fast, is
behind `http://` and `s3://`. Signatures are taken as they come.

With `--throttle N` every Nth request is answered with 429 and Retry-After: 1, and the statistics
tell how long after an earlier 429 each request came that came before its rest was over.

With `--token TOKEN` it answers only who shows that token (`Authorization: Bearer TOKEN`), else 401.

    python -m bench.origin DIR --listen 127.0.0.1:8080
"""

import argparse
import contextlib
import html
import json
import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from bench.network import parse_rate

STATS_PATH = "/__stats"
FAILURES = ("429", "503", "truncated", "stalled", "changed", "denied")
_SO_MAX_PACING_RATE = 47  # not in the socket module; asm-generic/socket.h
_HEAD_BYTES_MAX = 32 * 1024
_SEND_BYTES = 1 << 20
_REST_S = 1
_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the origin serves, and how badly."""

    root: Path
    rate_per_connection_bits_s: int | None = None
    latency_s: float = 0.0
    fail: str | None = None
    fail_count: int = 3
    token: str | None = field(default=None, repr=False)
    throttle: int = 0


@dataclass
class Stats:
    """What was sent, counted as it is handed to a socket. Shared by all connections' threads."""

    bytes_sent: int = 0
    requests: int = 0
    connections: int = 0
    bytes_by_path: Counter[str] = field(default_factory=Counter[str])
    requests_by_path: Counter[str] = field(default_factory=Counter[str])
    reads_begun: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    """Where bodies of files began; of an origin that fails now and then, for it has few."""
    failures_left: int = 0
    busy: int = 0
    """Answers with 429 that `throttle` made."""
    rests: list[float] = field(default_factory=list[float])
    """When those left that may still count."""
    early_s: list[float] = field(default_factory=list[float])
    """Of every request that came during a rest: how long after the 429 that began it."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def sent(self, path: str, count: int) -> None:
        """Count bytes of a body."""
        with self.lock:
            self.bytes_sent += count
            self.bytes_by_path[path] += count

    def asked(self, path: str) -> None:
        """Count a request."""
        with self.lock:
            self.requests += 1
            self.requests_by_path[path] += 1

    def take_failure(self) -> bool:
        """Tell whether one more answer has to fail."""
        with self.lock:
            self.failures_left -= 1
            return self.failures_left >= 0

    def began(self, path: str, start: int) -> None:
        """Note where a body begins."""
        with self.lock:
            self.reads_begun.append((path, start))

    def take_throttle(self, every: int) -> bool:
        """Note how a request keeps to the rests; tell whether it is one that begins another."""
        with self.lock:
            now = time.monotonic()
            self.rests = [sent_s for sent_s in self.rests if now < sent_s + _REST_S]
            if self.rests:
                self.early_s.append(round(now - self.rests[0], 4))
            if self.requests % every:
                return False
            self.busy += 1
            self.rests.append(now)
            return True

    def to_json(self) -> bytes:
        """The counts as a JSON object."""
        with self.lock:
            return json.dumps(
                {
                    "bytes": self.bytes_sent,
                    "requests": self.requests,
                    "connections": self.connections,
                    "busy": self.busy,
                    "early_s": self.early_s,
                    "reads_begun": self.reads_begun,
                    "bytes_by_path": self.bytes_by_path,
                    "requests_by_path": self.requests_by_path,
                }
            ).encode()


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    headers: dict[str, str]
    query: str = ""


class _GoneError(Exception):
    """The client is gone, or talks nonsense: no answer helps."""


class _Connection:
    """One client's connection, served by one thread from its first byte to its last."""

    def __init__(self, link: socket.socket, options: Options, stats: Stats) -> None:
        self._link = link
        self._options = options
        self._stats = stats
        self._rest = b""

    def serve(self) -> None:
        """Answer until the client hangs up."""
        with self._link, contextlib.suppress(_GoneError, OSError):
            if self._link.family != socket.AF_UNIX:
                self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if (rate := self._options.rate_per_connection_bits_s) is not None:
                    self._link.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, rate // 8)
            while (request := self._next()) is not None:
                self._answer(request)
                if request.headers.get("connection", "").lower() == "close":
                    return

    def _next(self) -> _Request | None:
        while (end := self._rest.find(b"\r\n\r\n")) < 0:
            if len(self._rest) > _HEAD_BYTES_MAX:
                raise _GoneError
            block = self._link.recv(_HEAD_BYTES_MAX)
            if not block:
                return None
            self._rest += block
        lines = self._rest[:end].decode("latin-1").split("\r\n")
        self._rest = self._rest[end + 4 :]
        words = lines[0].split(" ")
        if len(words) != 3:
            raise _GoneError
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        parts = urlsplit(words[1])
        return _Request(words[0], unquote(parts.path), headers, parts.query)

    def _answer(self, request: _Request) -> None:
        if request.path == STATS_PATH:
            self._send(request, HTTPStatus.OK, self._stats.to_json(), counted=False)
            return
        self._stats.asked(request.path)
        throttle = self._options.throttle
        if throttle and self._stats.take_throttle(throttle):
            self._send(request, HTTPStatus.TOO_MANY_REQUESTS, b"later\n", f"Retry-After: {_REST_S}")
            return
        if self._options.latency_s:
            time.sleep(self._options.latency_s)
        token = self._options.token
        if token is not None and request.headers.get("authorization") != f"Bearer {token}":
            self._send(request, HTTPStatus.UNAUTHORIZED, b"who are you?\n")
            return
        if request.method not in {"GET", "HEAD"}:
            self._send(request, HTTPStatus.METHOD_NOT_ALLOWED, b"")
            return
        names = request.path.split("/")
        place = self._options.root.joinpath(*(name for name in names if name))
        if ".." in names or not place.exists():
            self._send(request, HTTPStatus.NOT_FOUND, b"there is no such file\n")
        elif place.is_dir() and "list-type=2" in request.query:
            prefix = parse_qs(request.query).get("prefix", [""])[0]
            self._send(request, HTTPStatus.OK, _objects(place, prefix), kind="application/xml")
        elif place.is_dir():
            self._send(request, HTTPStatus.OK, _listing(place, request.path), kind="text/html")
        else:
            self._send_file(request, place)

    def _send_file(self, request: _Request, place: Path) -> None:
        fail = self._options.fail
        if fail == "denied":
            self._send(request, HTTPStatus.FORBIDDEN, b"not for you\n")
            return
        is_read = request.method == "GET"
        if fail == "429" and is_read and self._stats.take_failure():
            self._send(request, HTTPStatus.TOO_MANY_REQUESTS, b"later\n", "Retry-After: 1")
            return
        if fail == "503" and is_read and self._stats.take_failure():
            self._send(request, HTTPStatus.SERVICE_UNAVAILABLE, b"", counted=False)
            return
        with place.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            tag = f'"{status.st_mtime_ns:x}-{size:x}"'
            if fail == "changed" and self._stats.bytes_by_path[request.path] * 2 >= size > 0:
                tag = '"changed"'
            if request.headers.get("if-match", tag) not in {tag, "*"}:
                self._send(request, HTTPStatus.PRECONDITION_FAILED, b"")
                return
            span = _span(request, size, tag)
            common = (
                f"ETag: {tag}",
                f"Last-Modified: {formatdate(status.st_mtime, usegmt=True)}",
                "Accept-Ranges: bytes",
            )
            if span is None:
                whole = f"Content-Range: bytes */{size}"
                self._send(request, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", whole)
                return
            start, stop, partial = span
            self._send_head(
                request,
                HTTPStatus.PARTIAL_CONTENT if partial else HTTPStatus.OK,
                stop - start,
                "application/octet-stream",
                *common,
                *([f"Content-Range: bytes {start}-{stop - 1}/{size}"] if partial else []),
            )
            if not is_read:
                return
            if fail is not None:
                self._stats.began(request.path, start)
            breaks = fail in {"truncated", "stalled"} and stop - start > 1
            if breaks and self._stats.take_failure():
                self._send_body(request.path, file.fileno(), start, (start + stop) // 2)
                if fail == "stalled":
                    self._link.recv(1)  # Until it goes away.
                raise _GoneError
            self._send_body(request.path, file.fileno(), start, stop)

    def _send_body(self, path: str, descriptor: int, start: int, stop: int) -> None:
        link = self._link.fileno()
        while start < stop:
            wanted = min(_SEND_BYTES, stop - start)
            self._stats.sent(path, wanted)  # Before: who has received a byte finds it counted.
            sent = 0
            try:
                sent = os.sendfile(link, descriptor, start, wanted)
            finally:
                self._stats.sent(path, sent - wanted)
            if sent == 0:
                raise _GoneError  # The file became shorter than we said.
            start += sent

    def _send(
        self,
        request: _Request,
        status: HTTPStatus,
        body: bytes,
        *headers: str,
        kind: str = "text/plain",
        counted: bool = True,
    ) -> None:
        self._send_head(request, status, len(body), kind, *headers)
        if request.method != "HEAD":
            if counted:
                self._stats.sent(request.path, len(body))
            self._link.sendall(body)

    def _send_head(
        self, request: _Request, status: HTTPStatus, length: int, kind: str, *headers: str
    ) -> None:
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {kind}",
            f"Content-Length: {length}",
            *headers,
            "",
            "",
        )
        # So that the first bytes travel with the head; where none follow, the kernel would wait
        # 0.2 s for them.
        more = socket.MSG_MORE if length and request.method != "HEAD" else 0
        self._link.sendall("\r\n".join(head).encode("latin-1"), more)


def _span(request: _Request, size: int, tag: str) -> tuple[int, int, bool] | None:
    """The bytes [start, stop) to answer with, and whether they are a range; None if out of it."""
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or request.headers.get("if-range", tag) != tag:
        return 0, size, False
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last or 0))
    stop = min(int(last) + 1, size) if first and last else size
    return (start, stop, True) if start < stop else None


def _listing(place: Path, path: str) -> bytes:
    """A page like nginx': a title, the parent, a line per entry."""
    title = f"Index of {html.escape(path)}"
    base = path if path.endswith("/") else path + "/"
    lines = [f"<html><head><title>{title}</title></head><body><h1>{title}</h1><pre>"]
    lines.append('<a href="../">../</a>')
    for entry in sorted(place.iterdir()):
        name = entry.name + "/" * entry.is_dir()
        lines.append(f'<a href="{quote(base + name)}">{html.escape(name)}</a>')
    return "\n".join([*lines, "</pre></body></html>", ""]).encode()


def _objects(bucket: Path, prefix: str) -> bytes:
    """All of a bucket in one page, which is more than S3 would give."""
    found = sorted(path for path in bucket.rglob("*") if path.is_file())
    listed = "".join(
        f"<Contents><Key>{html.escape(key)}</Key><Size>{path.stat().st_size}</Size></Contents>"
        for path in found
        if (key := path.relative_to(bucket).as_posix()).startswith(prefix)
    )
    return f"<ListBucketResult>{listed}</ListBucketResult>".encode()


def serve(listeners: list[socket.socket], options: Options) -> None:
    """Serve on every listener, for ever."""
    stats = Stats(failures_left=options.fail_count)

    def accept(listener: socket.socket) -> None:
        while True:
            link, _ = listener.accept()
            with stats.lock:
                stats.connections += listener.family != socket.AF_UNIX
            connection = _Connection(link, options, stats)
            threading.Thread(target=connection.serve, daemon=True).start()

    threads = [threading.Thread(target=accept, args=(each,), daemon=True) for each in listeners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _end(_number: int, _frame: object) -> None:
    os._exit(0)  # Nothing is to be saved, and a hundred threads sit in blocking calls.


def main() -> None:
    """Serve a directory until SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.origin",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--listen", default="127.0.0.1:0", help="HOST:PORT; port 0 takes any")
    parser.add_argument("--socket", type=Path, help="a unix socket to listen on as well")
    parser.add_argument("--rate-per-connection", type=parse_rate, help="such as 40mbit")
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--fail", choices=FAILURES)
    parser.add_argument("--fail-count", type=int, default=3)
    parser.add_argument("--throttle", type=int, default=0, metavar="N")
    parser.add_argument("--token", help="what one has to show to be answered")
    given = parser.parse_args()
    options = Options(
        root=given.directory.resolve(strict=True),
        rate_per_connection_bits_s=given.rate_per_connection,
        latency_s=given.latency_ms / 1000,
        fail=given.fail,
        fail_count=given.fail_count,
        token=given.token,
        throttle=given.throttle,
    )
    host, _, port = given.listen.rpartition(":")
    listener = socket.create_server((host, int(port)), backlog=512)
    listeners = [listener]
    if given.socket is not None:
        local = socket.socket(socket.AF_UNIX)
        local.bind(str(given.socket))
        local.listen()
        listeners.append(local)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    print(json.dumps({"listening": f"http://{host}:{listener.getsockname()[1]}/"}), flush=True)
    serve(listeners, options)


if __name__ == "__main__":
    main()
