"""An API server of Kubernetes, small and real: HTTP, lists and watches, rights, and bad days.

It has what the real one has: a version that grows with every write, lists that tell theirs, watches
that go on from one, bookmarks, a history that is forgotten (410), label selectors that turn a
change into ADDED or DELETED, bearer tokens, and rights by verb and resource. It is as unpleasant
when told to: slow, overloaded, cut amid an event, gone for long.
"""

import asyncio
import copy
import json
import ssl
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from aiohttp import web

SLICES = "endpointslices"
NODES = "nodes"
SERVICE_LABEL = "kubernetes.io/service-name"


@dataclass(frozen=True)
class Asked:
    """A request that the server answered."""

    verb: str
    resource: str
    query: Mapping[str, str]
    status: int


@dataclass(frozen=True)
class Written:
    """One write: what was there before it, and after."""

    version: int
    resource: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


@dataclass(eq=False)
class OpenWatch:
    """A watch that somebody reads."""

    request: web.Request
    sent: int
    """The version up to which it has been told everything."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    bookmark: int | None = None
    is_closing: bool = False
    is_cut: bool = False
    is_expired: bool = False


def endpoint(
    address: str, node: str = "", *, pod: str = "", conditions: Mapping[str, bool] | None = None
) -> dict[str, Any]:
    """One entry of a slice's `endpoints`, as the real server writes it."""
    found: dict[str, Any] = {
        "addresses": [address],
        "conditions": {"ready": True, "serving": True, "terminating": False, **(conditions or {})},
    }
    if node:
        found["nodeName"] = node
    if pod:
        found["targetRef"] = {"kind": "Pod", "namespace": "models", "name": pod, "uid": pod}
    return found


class KubernetesAPI:
    """The server. Use it as a context, within one event loop."""

    def __init__(self, *, token: str = "t0", tls: ssl.SSLContext | None = None) -> None:
        self.token = token
        self.version = 1000
        self.asked: list[Asked] = []
        self.rights = {("list", SLICES), ("watch", SLICES), ("get", NODES), ("list", NODES)}
        self.failing: int | None = None
        """A status that every request is answered with."""
        self.answers = asyncio.Event()
        """Requests wait for it: clear it, and the server is slow without end."""
        self.answers.set()
        self.expires_by_event = False
        """410 comes as an ERROR event in a stream of status 200, not as a status."""
        self._objects: dict[str, dict[str, dict[str, Any]]] = {SLICES: {}, NODES: {}}
        self._history: list[Written] = []
        self._forgotten = 0
        self._watches: set[OpenWatch] = set()
        self._tls = tls
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.come_back()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.go_away()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        """The port it listens on; the same after it came back."""
        return self._port

    def kubeconfig(self, folder: Path) -> Path:
        """Write a configuration for clients, and its token into a file of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "token").write_text(self.token)
        path = folder / "kubeconfig"
        value = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"tokenFile": str(folder / "token")}}],
        }
        path.write_text(json.dumps(value))
        return path

    # --- what operators and controllers do ---------------------------------------------------

    def put_slice(
        self,
        name: str,
        endpoints: Iterable[Mapping[str, Any]],
        *,
        service: str = "agents",
        ports: Iterable[Mapping[str, Any]] = ({"name": "peers", "port": 7460, "protocol": "TCP"},),
        family: str = "IPv4",
    ) -> None:
        """Create or change an EndpointSlice in the namespace `models`."""
        self._write(
            SLICES,
            name,
            {
                "metadata": {
                    "name": name,
                    "namespace": "models",
                    "labels": {SERVICE_LABEL: service},
                },
                "addressType": family,
                "endpoints": list(endpoints) or None,
                "ports": list(ports) or None,
            },
        )

    def put_node(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        """Create or change a node."""
        metadata: dict[str, Any] = {"name": name}
        if labels is not None:
            metadata["labels"] = dict(labels)
        self._write(NODES, name, {"metadata": metadata})

    def delete_slice(self, name: str) -> None:
        """Delete an EndpointSlice."""
        self._write(SLICES, name, None)

    def pass_versions(self, count: int) -> None:
        """Other objects are written: the version grows, and our watches hear nothing."""
        self.version += count

    def _write(self, resource: str, name: str, value: dict[str, Any] | None) -> None:
        self.version += 1
        before = self._objects[resource].get(name)
        if value is not None:
            value = copy.deepcopy(value)
            value["metadata"]["resourceVersion"] = str(self.version)
            self._objects[resource][name] = value
        else:
            del self._objects[resource][name]
        self._history.append(Written(self.version, resource, before, value))
        self._wake()

    # --- what goes wrong ---------------------------------------------------------------------

    def bookmark(self) -> None:
        """Tell every watch how far the server is."""
        for watch in self._watches:
            watch.bookmark = self.version
        self._wake()

    def forget(self) -> None:
        """Forget all history: who asks for an earlier version than now gets 410."""
        self._forgotten = self.version
        self._history.clear()

    def expire_watches(self) -> None:
        """Tell open watches that what they would be told has been forgotten."""
        for watch in self._watches:
            watch.is_expired = True
        self._wake()

    def close_watches(self) -> None:
        """End every watch in good order, as servers do after some minutes."""
        for watch in self._watches:
            watch.is_closing = True
        self._wake()

    def cut_watches(self) -> None:
        """End every watch amid an event, without a word."""
        for watch in self._watches:
            watch.is_cut = True
        self._wake()

    async def go_away(self) -> None:
        """Stop listening, and drop every connection."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        self.cut_watches()
        for watch in self._watches:
            if watch.request.transport is not None:
                watch.request.transport.abort()
        await runner.cleanup()

    async def come_back(self) -> None:
        """Listen, on the same port as before; nothing to do if it never went away."""
        if self._runner is not None:
            return
        app = web.Application()
        slices = "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        app.router.add_get(slices, self._slices)
        app.router.add_get("/api/v1/nodes", self._nodes)
        app.router.add_get("/api/v1/nodes/{name}", self._node)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(
            self._runner, "127.0.0.1", self._port, ssl_context=self._tls, reuse_address=True
        )
        await site.start()
        self._port = self._runner.addresses[0][1]

    @property
    def watch_count(self) -> int:
        """How many watches are open."""
        return len(self._watches)

    def verbs(self) -> list[str]:
        """What was asked, in order."""
        return [each.verb for each in self.asked]

    def _wake(self) -> None:
        for watch in self._watches:
            watch.wake.set()

    # --- what clients see --------------------------------------------------------------------

    async def _slices(self, request: web.Request) -> web.StreamResponse:
        verb = "watch" if request.query.get("watch") == "true" else "list"
        if refusal := await self._refusal(request, verb, SLICES):
            return refusal
        if request.match_info["namespace"] != "models":
            return self._listed(request, SLICES, [])
        if verb == "watch":
            return await self._watched(request, SLICES)
        return self._listed(request, SLICES, self._selected(request, SLICES))

    async def _nodes(self, request: web.Request) -> web.StreamResponse:
        if refusal := await self._refusal(request, "list", NODES):
            return refusal
        return self._listed(request, NODES, self._selected(request, NODES))

    async def _node(self, request: web.Request) -> web.StreamResponse:
        if refusal := await self._refusal(request, "get", NODES):
            return refusal
        name = request.match_info["name"]
        found = self._objects[NODES].get(name)
        if found is None:
            return self._status(request, "get", NODES, 404, f'nodes "{name}" not found')
        self.asked.append(Asked("get", NODES, request.query, 200))
        return web.json_response({"kind": "Node", "apiVersion": "v1", **found})

    async def _refusal(
        self, request: web.Request, verb: str, resource: str
    ) -> web.StreamResponse | None:
        await self.answers.wait()
        if self.failing is not None:
            return self._status(request, verb, resource, self.failing, "the server is overloaded")
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return self._status(request, verb, resource, 401, "Unauthorized")
        if (verb, resource) not in self.rights:
            return self._status(
                request, verb, resource, 403, f"{resource} is forbidden: cannot {verb} resource"
            )
        return None

    def _status(
        self, request: web.Request, verb: str, resource: str, code: int, message: str
    ) -> web.StreamResponse:
        self.asked.append(Asked(verb, resource, request.query, code))
        return web.json_response(_status(code, message), status=code)

    def _selected(self, request: web.Request, resource: str) -> list[dict[str, Any]]:
        return [each for each in self._objects[resource].values() if _is_selected(request, each)]

    def _listed(
        self, request: web.Request, resource: str, items: list[dict[str, Any]]
    ) -> web.StreamResponse:
        self.asked.append(Asked("list", resource, request.query, 200))
        metadata = {"resourceVersion": str(self.version)}
        return web.json_response({"kind": "List", "metadata": metadata, "items": items or None})

    async def _watched(self, request: web.Request, resource: str) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])
        is_expired = since < self._forgotten
        if is_expired and not self.expires_by_event:
            return self._status(request, "watch", resource, 410, "too old resource version")
        self.asked.append(Asked("watch", resource, request.query, 200))
        response = web.StreamResponse(headers={"content-type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        watch = OpenWatch(request, since, is_expired=is_expired)
        self._watches.add(watch)
        try:
            with suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(int(request.query.get("timeoutSeconds", "1800"))):
                    await self._stream(watch, resource, response)
        finally:
            self._watches.discard(watch)
        return response

    async def _stream(self, watch: OpenWatch, resource: str, response: web.StreamResponse) -> None:
        while True:
            watch.wake.clear()
            if watch.is_expired:
                gone = {"type": "ERROR", "object": _status(410, "too old resource version")}
                await response.write(json.dumps(gone).encode() + b"\n")
                return
            for written in self._history[:]:
                if written.version <= watch.sent or written.resource != resource:
                    continue
                watch.sent = written.version
                event = _event(watch.request, written)
                if event is not None:
                    await response.write(json.dumps(event).encode() + b"\n")
            if watch.bookmark is not None and "allowWatchBookmarks" in watch.request.query:
                metadata = {"resourceVersion": str(watch.bookmark), "creationTimestamp": None}
                mark = {"type": "BOOKMARK", "object": {"metadata": metadata}}
                watch.bookmark = None
                await response.write(json.dumps(mark).encode() + b"\n")
            if watch.is_cut:
                await response.write(b'{"type":"ADDED","object":{"metadata":{"na')
                if watch.request.transport is not None:
                    watch.request.transport.abort()
                return
            if watch.is_closing:
                return
            await watch.wake.wait()


def _status(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "status": "Failure", "code": code, "message": message, "reason": "x"}


def _is_selected(request: web.Request, value: Mapping[str, Any] | None) -> bool:
    if value is None:
        return False
    label, _, wanted = request.query.get("labelSelector", "").partition("=")
    return not label or value["metadata"].get("labels", {}).get(label) == wanted


def _event(request: web.Request, written: Written) -> dict[str, Any] | None:
    """What a write is to this watch: an object may come into its selection, or leave it."""
    was, is_ = _is_selected(request, written.before), _is_selected(request, written.after)
    if is_:
        return {"type": "MODIFIED" if was else "ADDED", "object": written.after}
    if not was:
        return None
    assert written.before is not None
    gone = copy.deepcopy(written.before)
    gone["metadata"]["resourceVersion"] = str(written.version)
    return {"type": "DELETED", "object": gone}
