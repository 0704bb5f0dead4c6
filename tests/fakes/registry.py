"""A registry that speaks the distribution protocol, both ways, and misbehaves when it is told to.

Three servers on loopback: the registry, its token service on another port, and a host that blobs
may be sent on to. A stock client (`oras`) pushes to it and pulls from it: `test_oci_clients.py`.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlencode

from aiohttp import web

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"

_PATH = re.compile(r"/v2/(?P<repository>.+?)/(?P<kind>blobs|manifests)/(?P<rest>.+)?")

Hook = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


def sha256(data: bytes | bytearray) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass
class Asked:
    """One request as a server saw it."""

    method: str
    path: str
    query: str
    authorization: str
    range: str
    status: int = 0

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class FakeRegistry:
    """What it holds, how it behaves, and what it was asked."""

    wants: str = "nothing"
    """`nothing`, `bearer` or `basic`."""
    users: dict[str, str] = field(default_factory=dict[str, str])
    opens_to_anybody: bool = True
    """Whether one without a password may pull."""
    redirects_blobs: bool = False
    signature: str = "SIGNED-FOR-A-WHILE"
    """By what addresses are signed that blobs are sent on to; no other one is taken."""
    has_ranges: bool = True
    token_lives_s: int | None = 300
    part_bytes_min: int | None = None
    """What it wants parts of blobs to have at least."""
    hook: Hook | None = None
    """Asked before anything else; answers in the registry's place."""

    blobs: dict[str, bytes] = field(default_factory=dict[str, bytes])
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(
        default_factory=dict[tuple[str, str], tuple[str, bytes]]
    )
    sessions: dict[str, bytearray] = field(default_factory=dict[str, bytearray])
    sessions_begun: int = 0
    tokens: dict[str, str] = field(default_factory=dict[str, str])
    """What each token is for: a scope."""
    asked: list[Asked] = field(default_factory=list[Asked])
    asked_for_tokens: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """The user, or nothing, and the scope."""
    asked_elsewhere: list[Asked] = field(default_factory=list[Asked])
    """What the host was asked that blobs are sent on to."""
    address: str = ""
    token_address: str = ""
    blob_address: str = ""

    @property
    def host(self) -> str:
        return self.address.partition("://")[2]

    def lines(self, method: str) -> list[str]:
        """The paths that were asked for by a method."""
        return [each.path for each in self.asked if each.method == method]

    # --- what it holds ---------------------------------------------------------------------------

    def add_blob(self, data: bytes) -> dict[str, object]:
        """Take a blob; returns its descriptor, without a type."""
        self.blobs[sha256(data)] = data
        return {"digest": sha256(data), "size": len(data)}

    def add_manifest(
        self, repository: str, tag: str, value: object, media_type: str = MANIFEST
    ) -> str:
        """Take a manifest as JSON or as bytes; returns its digest."""
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.manifests[repository, tag] = media_type, data
        self.manifests[repository, sha256(data)] = media_type, data
        return sha256(data)

    def add_model(self, repository: str, tag: str, files: dict[str, bytes]) -> str:
        """Take files as a ModelPack artifact; returns its digest."""
        layers = [
            self.add_blob(data)
            | {
                "mediaType": "application/vnd.cncf.model.weight.v1.raw",
                "annotations": {"org.cncf.model.filepath": path},
            }
            for path, data in files.items()
        ]
        return self.add_manifest(repository, tag, self.manifest_of(layers))

    def manifest_of(self, layers: list[dict[str, object]]) -> dict[str, object]:
        config = self.add_blob(b"{}")
        return {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": "application/vnd.cncf.model.manifest.v1+json",
            "config": config | {"mediaType": "application/vnd.cncf.model.config.v1+json"},
            "layers": layers,
        }

    # --- serving ---------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncGenerator["FakeRegistry"]:
        async with contextlib.AsyncExitStack() as stack:
            for name, handler in (
                ("address", self._registry),
                ("token_address", self._token_service),
                ("blob_address", self._elsewhere),
            ):
                app = web.Application(client_max_size=1 << 30)
                app.router.add_route("*", "/{path:.*}", handler)
                runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
                await runner.setup()
                stack.push_async_callback(runner.cleanup)
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                setattr(self, name, f"http://127.0.0.1:{runner.addresses[0][1]}")
            yield self

    @contextlib.contextmanager
    def in_a_thread(self) -> Generator["FakeRegistry"]:
        """For tests that have no event loop of their own."""
        ready = threading.Event()
        loop = asyncio.new_event_loop()
        stop = asyncio.Event()

        async def serve() -> None:
            async with self.serving():
                ready.set()
                await stop.wait()

        thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
        thread.start()
        try:
            assert ready.wait(10)
            yield self
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            loop.close()

    async def _registry(self, request: web.Request) -> web.StreamResponse:
        asked = _noted(request)
        self.asked.append(asked)
        answer = await self.hook(request) if self.hook is not None else None
        if answer is None:
            answer = await self._answer(request)
        asked.status = answer.status
        return answer

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.path.rstrip("/") == "/v2":
            return self._refusal(request, "", "pull") or web.Response()
        match = _PATH.fullmatch(request.path)
        if match is None:
            return web.Response(status=404)
        repository, kind, rest = match["repository"], match["kind"], match["rest"] or ""
        is_read = request.method in {"GET", "HEAD"} and not rest.startswith("uploads/")
        refusal = self._refusal(request, repository, "pull" if is_read else "push")
        if refusal is not None:
            return refusal
        if kind == "manifests":
            return await self._manifest(request, repository, rest)
        if rest.startswith("uploads/"):
            return await self._session(request, repository, rest.removeprefix("uploads/"))
        data = self.blobs.get(rest)
        if data is None:
            return web.Response(status=404)
        if self.redirects_blobs and request.method == "GET":
            target = f"{self.blob_address}/{rest}?{urlencode({'signature': self.signature})}"
            return web.Response(status=307, headers={"Location": target})
        return self._blob(request, rest, data)

    def _blob(self, request: web.Request, digest: str, data: bytes) -> web.Response:
        headers = {"Docker-Content-Digest": digest, "ETag": f'"{digest}"'}
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if match is None or not self.has_ranges:
            return web.Response(body=data, headers=headers)
        first, last = int(match[1]), min(int(match[2]), len(data) - 1)
        if first > last:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return web.Response(status=206, body=data[first : last + 1], headers=headers)

    async def _elsewhere(self, request: web.Request) -> web.StreamResponse:
        asked = _noted(request)
        self.asked_elsewhere.append(asked)
        answer = self._signed_for(request)
        asked.status = answer.status
        return answer

    def _signed_for(self, request: web.Request) -> web.Response:
        digest = request.path.lstrip("/")
        if request.query.get("signature") != self.signature or digest not in self.blobs:
            return web.Response(status=403)
        if request.method == "HEAD":
            return web.Response(status=403)  # Signed for GET, as buckets do it.
        return self._blob(request, digest, self.blobs[digest])

    async def _manifest(
        self, request: web.Request, repository: str, reference: str
    ) -> web.StreamResponse:
        if request.method == "PUT":
            data = await request.read()
            fields = json.loads(data)
            parts = [*fields.get("layers", ()), fields["config"]]
            if any(part["digest"] not in self.blobs for part in parts):
                return web.json_response(_problem("MANIFEST_BLOB_UNKNOWN"), status=400)
            media_type = request.headers["Content-Type"]
            digest = self.add_manifest(repository, reference, data, media_type)
            return web.Response(status=201, headers={"Docker-Content-Digest": digest})
        found = self.manifests.get((repository, reference))
        if found is None:
            return web.json_response(_problem("MANIFEST_UNKNOWN"), status=404)
        media_type, data = found
        headers = {"Content-Type": media_type, "Docker-Content-Digest": sha256(data)}
        return web.Response(body=data, headers=headers)

    async def _session(
        self, request: web.Request, repository: str, number: str
    ) -> web.StreamResponse:
        if request.method == "POST":
            number = f"s{self.sessions_begun}"
            self.sessions_begun += 1
            self.sessions[number] = bytearray()
            return self._session_state(repository, number, 202)
        session = self.sessions.get(number)
        if session is None or request.query.get("state") != f"of {number}":
            return web.json_response(_problem("BLOB_UPLOAD_UNKNOWN"), status=404)
        if request.method == "GET":
            return self._session_state(repository, number, 204)
        said = request.headers.get("Content-Range")
        if said is not None and not said.startswith(f"{len(session)}-"):
            return self._session_state(repository, number, 416)
        async for data in request.content.iter_any():
            session += data
        if request.method == "PATCH":
            return self._session_state(repository, number, 202)
        digest = request.query["digest"]
        if sha256(session) != digest:
            return web.json_response(_problem("DIGEST_INVALID"), status=400)
        self.blobs[digest] = bytes(session)
        del self.sessions[number]
        return web.Response(status=201, headers={"Docker-Content-Digest": digest})

    def _session_state(self, repository: str, number: str, status: int) -> web.Response:
        query = urlencode({"state": f"of {number}"})
        stop = len(self.sessions[number])
        headers = {
            "Location": f"/v2/{repository}/blobs/uploads/{number}?{query}",
            "Range": f"0-{max(stop - 1, 0)}",
        }
        if self.part_bytes_min is not None:
            headers["OCI-Chunk-Min-Length"] = str(self.part_bytes_min)
        return web.Response(status=status, headers=headers)

    # --- whom it lets in -------------------------------------------------------------------------

    def _refusal(
        self, request: web.Request, repository: str, action: str
    ) -> web.StreamResponse | None:
        shown = request.headers.get("Authorization", "")
        if self.wants == "bearer":
            scope = self.tokens.get(shown.removeprefix("Bearer "), "none::")
            _, of, actions = scope.split(":")
            if of == repository and action in actions.split(","):
                return None
            scope = f"repository:{repository}:{'pull' if action == 'pull' else 'pull,push'}"
            wants = (
                f'Bearer realm="{self.token_address}/token",service="registry.test",scope="{scope}"'
            )
        elif self.wants == "basic":
            if self._user_of(shown):
                return None
            wants = 'Basic realm="registry.test"'
        else:
            return None
        headers = {"WWW-Authenticate": wants}
        return web.json_response(_problem("UNAUTHORIZED"), status=401, headers=headers)

    async def _token_service(self, request: web.Request) -> web.StreamResponse:
        shown = request.headers.get("Authorization", "")
        user = self._user_of(shown)
        scope = request.query.get("scope", "")
        self.asked_for_tokens.append((user, scope))
        if shown and not user:
            return web.Response(status=401)
        kind, _, rest = scope.partition(":")
        repository, _, actions = rest.rpartition(":")
        allowed = set(actions.split(","))
        if not user:
            allowed &= {"pull"} if self.opens_to_anybody else set()
        token = f"token-{len(self.asked_for_tokens)}"
        self.tokens[token] = f"{kind}:{repository}:{','.join(sorted(allowed))}"
        life = {} if self.token_lives_s is None else {"expires_in": self.token_lives_s}
        return web.json_response({"token": token, **life})

    def _user_of(self, shown: str) -> str:
        if not shown.startswith("Basic "):
            return ""
        user, _, password = base64.b64decode(shown[6:]).decode().partition(":")
        return user if self.users.get(user) == password else ""


def _noted(request: web.Request) -> Asked:
    return Asked(
        request.method,
        request.path,
        str(parse_qs(request.query_string)),
        request.headers.get("Authorization", ""),
        request.headers.get("Range", ""),
    )


def _problem(code: str) -> dict[str, object]:
    return {"errors": [{"code": code, "message": code.lower()}]}
