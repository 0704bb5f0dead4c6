"""An agent that opens volumes and does nothing else: HTTP on a unix socket, over a real store.

It speaks `/v1/volumes` and `/v1/capacity` as `agent/api.py` does; `test_csi_fake_agent.py` holds it
to what the agent's own conformance suite says of volumes. Models are given to it whole, and a pull
takes until it `may_go_on`.
"""

import hashlib
import json
import os
import socketserver
import threading
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from damselfly.client.answers import (
    Capacity,
    CapacityRequest,
    Opened,
    Progress,
    VolumeRequest,
)
from damselfly.errors import (
    AgentUnavailableError,
    DamselflyError,
    OriginDeniedError,
    OriginNotFoundError,
    UsageError,
    class_name,
)
from damselfly.model.digest import Digest
from damselfly.model.lease import check_lease_id, encode, lease_path
from damselfly.model.ref import Ref
from damselfly.model.selection import selects

PROGRESS_INTERVAL_S = 0.05


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 256
    agent: "VolumeAgent"


class VolumeAgent:
    """See the module. A context; it may be ended and begun again with the same store.

    `models` are files by ref; `tokens` what a ref wants to see; `failures` what a ref ends with;
    `asked` and `answered` count requests that came, and that are over however they ended. One that
    `is_old` knows no volumes.
    """

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "agent.sock"
        self.store = folder / "store"
        self.models: dict[str, Mapping[str, bytes]] = {}
        self.tokens: dict[str, str] = {}
        self.failures: dict[str, DamselflyError] = {}
        self.progress: dict[str, Progress] = {}
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.available_bytes = 10 << 30
        self.is_old = False
        self._lock = threading.Lock()
        self._is_ending = threading.Event()
        self._server: _Server | None = None
        for name in ("leases", "views"):
            (self.store / name).mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen."""
        self.socket.unlink(missing_ok=True)
        self._is_ending.clear()
        self._server = _Server(str(self.socket), _Handler)
        self._server.agent = self
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Be gone, as a process that was killed: streams break off, the socket file stays."""
        self._is_ending.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def leases(self) -> set[str]:
        """The ids of all leases."""
        return {path.name for path in self.store.glob("leases/*/*")}

    # --- in the threads of requests -----------------------------------------------------------

    def open_volume(self, request: VolumeRequest, say: Any) -> None:
        """Answer one request."""
        with self._lock:
            self.asked[request.ref] += 1
        try:
            self._open_volume(request, say)
        finally:
            with self._lock:
                self.answered[request.ref] += 1

    def _open_volume(self, request: VolumeRequest, say: Any) -> None:
        check_lease_id(request.lease)
        Ref.parse(request.ref)
        if request.layout not in {"plain", "hf-cache"}:
            raise UsageError(f"{request.layout} is no layout")
        said = self.progress.get(request.ref, Progress(ref=request.ref))
        say(said)
        while not self.may_go_on.wait(PROGRESS_INTERVAL_S):
            if self._is_ending.is_set():
                raise ConnectionAbortedError
            say(said)
        if error := self.failures.get(request.ref):
            raise error
        if request.ref not in self.models:
            raise OriginNotFoundError(f"{request.ref} is not there")
        if (token := self.tokens.get(request.ref)) is not None and (
            request.credentials is None or request.credentials.token != token
        ):
            raise OriginDeniedError(f"asking the origin for {request.ref}: it answers 401")
        opened = self._open(request)
        try:
            say(opened)
        except OSError:  # Nobody listens any more: nobody would give the lease back.
            lease = lease_path(Digest.parse(opened.artifact), request.lease)
            (self.store / lease).unlink(missing_ok=True)
            raise

    def _open(self, request: VolumeRequest) -> Opened:
        files = {
            path: data
            for path, data in self.models[request.ref].items()
            if selects(path, request.include, request.exclude)
        }
        text = json.dumps({path: data.hex() for path, data in files.items()}, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()
        with self._lock:
            folder = self.store / "leases" / name
            folder.mkdir(exist_ok=True)
            lease = folder / f".{request.lease}"
            lease.write_bytes(encode(None, 1))
            lease.rename(folder / request.lease)
            view = self.store / "views" / name / request.layout
            for path, data in files.items():
                place = view / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
        return Opened(
            ref=request.ref,
            artifact=f"blake3:{name}",
            path=str(view),
            store=str(self.store),
            bytes=sum(map(len, files.values())),
            files=len(files),
        )

    def capacity(self, request: CapacityRequest) -> Capacity:
        """Answer one request."""
        if request.ref is None:
            return Capacity(available_bytes=self.available_bytes)
        if request.ref not in self.models:
            raise OriginNotFoundError(f"{request.ref} is not there")
        size = sum(map(len, self.models[request.ref].values()))
        return Capacity(available_bytes=self.available_bytes, ref_bytes=size)


class _Handler(BaseHTTPRequestHandler):
    client_address = ("", 0)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        pass

    def do_POST(self) -> None:
        assert isinstance(self.server, _Server)
        agent = self.server.agent
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))) or b"{}")
        try:
            if agent.is_old:
                text = f"POST {self.path}: not found"
                self._begin(404)
                self.wfile.write(json.dumps({"error": "UsageError", "message": text}).encode())
            elif self.path == "/v1/capacity":
                answer = agent.capacity(CapacityRequest.parse(body, unknown_is_error=True))
                self._begin(200)
                self.wfile.write(json.dumps(answer.to_json()).encode())
            else:
                self._begin(200)
                request = VolumeRequest.parse(body, unknown_is_error=True)
                agent.open_volume(request, self._say)
        except DamselflyError as exc:
            told = {"error": class_name(exc), "message": str(exc)}
            if self.path == "/v1/capacity":
                self._begin(503 if isinstance(exc, AgentUnavailableError) else 404)
                self.wfile.write(json.dumps(told).encode())
            else:
                self.wfile.write(json.dumps({"event": "failed", **told}).encode() + b"\n")
        except OSError:
            pass  # Whoever asked has hung up, or we are told to be dead.

    def _begin(self, status: int) -> None:
        self.send_response(status)
        self.end_headers()

    def _say(self, item: Progress | Opened) -> None:
        self.wfile.write(json.dumps({"event": item.event, **item.to_json()}).encode() + b"\n")
        self.wfile.flush()


def model(size: int = 100_000) -> dict[str, bytes]:
    """A small model."""
    return {
        "model.safetensors": os.urandom(size),
        "config.json": b'{"a": 1}\n',
        "sub/tokenizer.json": b"{}",
    }
