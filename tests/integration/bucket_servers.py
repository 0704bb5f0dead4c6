"""Buckets for the tests: a real S3 server as a process, and a front that does as it is told."""

import asyncio
import contextlib
import importlib
import io
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

PATIENCE_S = 60.0
KEY_ID = "AKIAPLANTEDKEYID0001"
SECRET = "planted-secret-access-key-0001"


@contextlib.contextmanager
def s3_server(log: Path) -> Generator[str]:
    """An S3 server of its own process; yields its address. It checks no signatures at first."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environ = {name: text for name, text in os.environ.items() if not name.startswith("AWS_")}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                with urllib.request.urlopen(f"{address}/moto-api/", timeout=5):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise RuntimeError(f"no S3 server: {log.read_text()[-2000:]}") from None
                time.sleep(0.05)
        yield address
    finally:
        process.kill()
        process.wait()


def stranger(address: str, key_id: str = KEY_ID, secret: str = SECRET) -> Any:
    """The stock client of S3, which shares nothing with ours."""
    session: Any = importlib.import_module("botocore.session").Session()  # It has no types.
    config: Any = importlib.import_module("botocore.config").Config
    return session.create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=address,
        aws_access_key_id=key_id,
        aws_secret_access_key=secret,
        config=config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
    )


class Bucket:
    """A fresh bucket, and a stock client that looks after it."""

    def __init__(
        self, address: str, *, is_versioned: bool = False, is_public: bool = False
    ) -> None:
        self.address = address
        self._more: dict[str, object] = {"ACL": "public-read"} if is_public else {}
        self.name = f"models-{uuid.uuid4().hex[:12]}"
        self.client = stranger(address)
        self.client.create_bucket(Bucket=self.name, **self._more)
        if is_versioned:
            self.client.put_bucket_versioning(
                Bucket=self.name, VersioningConfiguration={"Status": "Enabled"}
            )

    def put(self, key: str, data: bytes, **more: object) -> Any:
        return self.client.put_object(Bucket=self.name, Key=key, Body=data, **self._more, **more)

    def put_files(self, prefix: str, files: dict[str, bytes]) -> None:
        for path, data in files.items():
            self.put(prefix + path, data)

    def get(self, key: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return data

    def head(self, key: str) -> Any:
        return self.client.head_object(Bucket=self.name, Key=key)

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.name, Prefix=prefix
        )
        return [each["Key"] for page in pages for each in page.get("Contents", ())]

    def sessions(self) -> list[Any]:
        """What is half sent."""
        found = self.client.list_multipart_uploads(Bucket=self.name)
        return list(found.get("Uploads", ()))

    def close(self) -> None:
        self.client.close()


class Front:
    """Stands before a server: sees every request, and may answer or change it first.

    `act` is asked of every request: an answer is given at once, None passes it on.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.address = ""
        self.asked: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.bytes_taken = 0
        self.act: Callable[[web.Request], Awaitable[web.StreamResponse | None]] | None = None
        self._session: aiohttp.ClientSession | None = None

    def count(self, method: str, part: str = "") -> int:
        """How many requests there were with this method and this in their target."""
        return sum(verb == method and part in target for verb, target in self.asked)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.raw_path))
        self.headers.append({name.lower(): text for name, text in request.headers.items()})
        if self.act is not None:
            answer = await self.act(request)
            if answer is not None:
                return answer
        return await self.passed_on(request)

    async def passed_on(
        self, request: web.Request, cut_at: int | None = None, target: str = ""
    ) -> web.StreamResponse:
        """What the server answers, to another target or cut short if so wished."""
        assert self._session is not None
        body = await request.read()
        self.bytes_taken += len(body)
        headers = {k: v for k, v in request.headers.items() if k.lower() != "transfer-encoding"}
        async with self._session.request(
            request.method,
            URL(self.backend + (target or request.raw_path), encoded=True),
            headers=headers,
            data=io.BytesIO(body) if body else None,
            allow_redirects=False,
        ) as came:
            data = await came.read()
            kept = {
                name: text
                for name, text in came.headers.items()
                if name.lower() not in {"transfer-encoding", "connection", "server", "date"}
            }
            kept.setdefault("Content-Length", str(len(data)))
            answer = web.StreamResponse(status=came.status, headers=kept)
            await answer.prepare(request)
            if request.method != "HEAD":
                await answer.write(data[:cut_at])
            if cut_at is not None and request.transport is not None:
                request.transport.abort()
            return answer

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncGenerator["Front"]:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{tail:.*}", self.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
            self._session = session
            await runner.setup()
            try:
                site = web.TCPSite(runner, "127.0.0.1", 0)
                await site.start()
                self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
                yield self
            finally:
                await runner.cleanup()


@contextlib.contextmanager
def front_in_a_thread(front: Front) -> Generator[Front]:
    """A front for tests whose processes need it while they block."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    done = asyncio.Event()

    async def serve() -> None:
        async with front.listening():
            ready.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield front
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()


def s3_error(
    status: int, code: str, headers: dict[str, str] | None = None, more: str = ""
) -> web.Response:
    """An error as S3 words it, with what it likes to repeat."""
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code>'
        f"<Message>{KEY_ID} is not welcome</Message><AWSAccessKeyId>{KEY_ID}</AWSAccessKeyId>"
        f"{more}</Error>"
    )
    return web.Response(status=status, text=body, headers=headers, content_type="application/xml")
