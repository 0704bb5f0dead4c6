"""Web servers for the origin tests: real ones, and one that does exactly as it is told."""

import asyncio
import contextlib
import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from aiohttp import web
from safetensors.numpy import save

NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def weights(rng_seed: int, *sizes: int) -> bytes:
    """A safetensors file with tensors of these sizes."""
    rng = np.random.default_rng(rng_seed)
    arrays = {
        f"t{number}": rng.integers(0, 255, size, dtype=np.uint8, endpoint=True)
        for number, size in enumerate(sizes)
    }
    return save(arrays)


def write_model(directory: Path) -> dict[str, bytes]:
    """A small model with awkward names, a zero-byte file, and directories."""
    files = {
        ".gitattributes": b"*.safetensors filter=lfs\n",
        "README.md": b"",
        "a b & <c>%41.txt": b"awkward",
        "config.json": b"{}",
        "model-00001-of-00002.safetensors": weights(1, 300, 3 << 20, 40, (5 << 20) - 1),
        "model-00002-of-00002.safetensors": weights(2, 1 << 20),
        "model.safetensors.index.json": b'{"weight_map": {"t0":'
        b' "model-00001-of-00002.safetensors", "t1": "model-00002-of-00002.safetensors"}}',
        "original/deep/größe.bin": bytes(range(256)) * 20_000,
        "original/x": b"x",
    }
    for path, data in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    return files


@contextlib.asynccontextmanager
async def aiohttp_server(directory: Path, *, listing: bool = True) -> AsyncGenerator[str]:
    """Static files by aiohttp: ranges, ETags, and its own listing."""
    app = web.Application()
    app.router.add_static("/m", directory, show_index=listing)
    async with served(app) as address:
        yield f"{address}/m/"


@contextlib.asynccontextmanager
async def served(app: web.Application) -> AsyncGenerator[str]:
    """Any aiohttp application."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  The base names it.
        pass

    def handle(self) -> None:
        # A client may hang up when it has what it wants.
        with contextlib.suppress(ConnectionError):
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().finish()


class _Listening(http.server.ThreadingHTTPServer):
    # Five, as it comes, loses connections that come at once for a second.
    request_queue_size = 64
    daemon_threads = True


@contextlib.contextmanager
def python_server(directory: Path, counted: list[str] | None = None) -> Generator[str]:
    """What `python -m http.server` runs: a listing, no ranges, no ETags."""

    class Handler(_Quiet):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            if counted is not None:
                counted.append(self.requestline)

    handler = partial(Handler, directory=str(directory))
    with _Listening(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def nginx_server(directory: Path, scratch: Path) -> Generator[str]:
    """Files by nginx, with autoindex below /m/ and without it below /plain/."""
    assert NGINX is not None
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    paths = "".join(
        f"{name}_temp_path {scratch}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # The workers must be able to read what a test wrote into a directory of its own.
    user = f"user {_own_name()};" if os.geteuid() == 0 else ""
    configuration = scratch / "nginx.conf"
    configuration.write_text(
        f"""{user} daemon off; worker_processes 1; pid {scratch}/pid; error_log stderr warn;
        events {{}} http {{ access_log off; {paths} sendfile on; default_type text/plain;
        types {{ text/html html; }}
        server {{ listen 127.0.0.1:{port};
        location /m/ {{ alias {directory}/; autoindex on; }}
        location /plain/ {{ alias {directory}/; }} }} }}"""
    )
    process = subprocess.Popen(
        [NGINX, "-e", "stderr", "-c", str(configuration), "-p", str(scratch)]
    )
    try:
        _wait_for(port, process)
        yield f"http://127.0.0.1:{port}/m/"
    finally:
        process.terminate()
        process.wait()


def _own_name() -> str:
    import pwd  # noqa: PLC0415  Only where there are users.

    return pwd.getpwuid(os.geteuid()).pw_name


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    while process.poll() is None:
        with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)):
            return
    sys.exit(f"nginx ended with {process.returncode}")


@dataclass
class Asked:
    """One request as it came, and where the answer goes."""

    head: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def method(self) -> str:
        return self.head.split(" ", 1)[0]

    @property
    def target(self) -> str:
        return self.head.split(" ", 2)[1]

    def header(self, name: str) -> str:
        for line in self.head.split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name.lower():
                return value.strip()
        return ""


@contextlib.asynccontextmanager
async def scripted(
    answer: Callable[[Asked], Awaitable[bytes | None]],
) -> AsyncGenerator[tuple[str, list[str]]]:
    """A server that answers with the very bytes it is given, one request per connection.

    Yields its address, and the request lines as they come. None hangs up without an answer.
    """
    lines: list[str] = []
    tasks: set[asyncio.Task[None] | None] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines.append(head.partition("\r\n")[0])
            data = await answer(Asked(head, reader, writer))
            if data is not None:
                writer.write(data)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            tasks.discard(asyncio.current_task())
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", lines
    finally:
        server.close()
        for task in list(tasks):
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)
        await server.wait_closed()


def reply(status: str, body: bytes = b"", **headers: str) -> bytes:
    """An answer, with a Content-Length unless one is given."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    fields.setdefault("Content-Length", str(len(body)))
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{lines}Connection: close\r\n\r\n".encode() + body
