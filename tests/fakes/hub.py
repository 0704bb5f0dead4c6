"""A hub that answers like the Hugging Face hub: its API on one port, large files on another.

It runs in a thread of its own, so that tests ask it from an event loop, from processes and with the
hub's own blocking client alike. What the client does with it (tests/interop) proves it faithful.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import re
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlencode

from aiohttp import web

SECRET = b"what the other host signs with"
CHUNK = 64 << 10
_LARGE = (".safetensors", ".bin", ".gguf")
_API = re.compile(
    r"/api/(models|datasets|spaces)/(.+?)(?:/(revision|tree|preupload|commit)/([^/]+)(?:/(.*))?)?"
)
_RESOLVE = re.compile(r"/(?:(datasets|spaces)/)?(.+?)/resolve/([^/]+)/(.+)")
_BATCH = re.compile(r"/(?:(datasets|spaces)/)?(.+?)\.git/info/lfs/objects/batch")


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith(_LARGE)


@dataclass
class Seen:
    """One request as it came; `at` is the host that it came to."""

    at: str
    method: str
    path: str
    query: str
    headers: dict[str, str]
    status: int = 0


@dataclass
class Repository:
    kind: str
    name: str
    is_private: bool = False
    is_gated: bool = False
    readers: set[str] = field(default_factory=set[str])
    writers: set[str] = field(default_factory=set[str])
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]])
    branches: dict[str, str] = field(default_factory=dict[str, str])
    lies: dict[str, str] = field(default_factory=dict[str, str])
    """What is said to be the sha256 of a path, and is not."""

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Make a commit that has exactly these files."""
        told = [(path, sha256_of(data)) for path, data in sorted(files.items())]
        parent = self.branches.get(branch, "")
        oid = hashlib.sha1(repr((told, parent, branch)).encode()).hexdigest()
        self.commits[oid] = dict(files)
        self.branches[branch] = oid
        return oid

    def find(self, revision: str) -> str | None:
        revision = self.branches.get(revision, revision)
        return revision if revision in self.commits else None

    def sha256(self, path: str, data: bytes) -> str:
        return self.lies.get(path, sha256_of(data))


class Hub:
    """What the two servers know, and how they misbehave; tests set it before they ask."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.tokens: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}
        self.seen: list[Seen] = []
        self.page_size = 1000
        self.lasting_s = 3600
        self.is_dated = True
        self.endpoint = ""
        self.other = ""
        self.generation = 0
        self.bytes_sent = 0
        self.expire_after: int | None = None
        """So many bytes of large files, and every address that was signed until then is void."""
        self.cut_after: int | None = None
        """So many bytes of the next large file, and its connection is cut."""
        self.stall_after: int | None = None
        self.refuse_with: list[int] = []
        """What the other host answers to the next requests, instead of bytes."""
        self.refused_objects: set[str] = set()
        """What the other host does not take."""
        self.held: threading.Event | None = None
        """Objects are taken only once it is set."""
        self.is_held = threading.Event()
        """Somebody waits for that."""
        self.busy: list[dict[str, str]] = []
        """The headers of 429s that the hub answers next."""
        self.tampered: Callable[[str, web.Response], web.Response | None] = lambda _, __: None
        """May replace what the hub answers to a path."""
        self._end = asyncio.Event()

    # --- what tests set and look at -------------------------------------------------------------

    def repository(
        self, name: str, files: dict[str, bytes] | None = None, kind: str = "models"
    ) -> Repository:
        made = self.repositories[kind, name] = Repository(kind, name)
        if files is not None:
            made.commit(files)
        return made

    def expire(self) -> None:
        """Make every address void that was signed until now."""
        self.generation += 1

    def asked(self, at: str, method: str = "") -> list[Seen]:
        return [each for each in self.seen if each.at == at and each.method.startswith(method)]

    # --- the hub --------------------------------------------------------------------------------

    async def answer(self, request: web.Request) -> web.StreamResponse:
        seen = _seen("hub", request)
        self.seen.append(seen)
        if self.busy:
            response = _error(429, "", **self.busy.pop(0))
        else:
            response = await self._answer(request)
        response = self.tampered(request.path, response) or response
        seen.status = response.status
        return response

    async def _answer(self, request: web.Request) -> web.Response:
        path = request.rel_url.raw_path
        shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if shown and shown not in self.tokens:
            message = "Invalid credentials in Authorization header"
            return _error(401, "", **{"X-Error-Message": message})
        if path == "/api/validate-yaml":
            return web.json_response({"errors": [], "warnings": []})
        if match := _BATCH.fullmatch(path):
            repository = self.repositories.get((match[1] or "models", match[2]))
            return self._may_write(repository, shown) or await self._batch(request)
        if match := _API.fullmatch(path):
            kind, name, what, revision, below = match.groups(default="")
            repository = self.repositories.get((kind, name))
            if what in {"preupload", "commit"}:
                refused = self._may_write(repository, shown)
                if refused is not None or repository is None:
                    return refused or _error(404, "RepoNotFound")
                if what == "preupload":
                    return await self._modes(request, repository, unquote(revision))
                return await self._commit(request, repository, unquote(revision))
            if (refused := self._may_see(repository, shown)) or repository is None:
                return refused or _error(404, "RepoNotFound")
            commit = repository.find(unquote(revision) or "main")
            if commit is None:
                return _error(404, "RevisionNotFound")
            if what == "tree":
                return self._tree(request, repository, commit, unquote(below))
            return _info(request, repository, commit)
        if match := _RESOLVE.fullmatch(path):
            kind, name, revision, file = match.groups(default="")
            repository = self.repositories.get((kind or "models", name))
            if (refused := self._may_see(repository, shown)) or repository is None:
                return refused or _error(404, "RepoNotFound")
            if repository.is_gated and shown not in repository.readers:
                return _error(403 if shown else 401, "GatedRepo")
            return self._resolve(request, repository, unquote(revision), unquote(file))
        return _error(404, "")

    def _may_see(self, repository: Repository | None, shown: str) -> web.Response | None:
        if repository is None or (repository.is_private and shown not in repository.readers):
            return _error(404 if shown else 401, "RepoNotFound")
        return None

    def _may_write(self, repository: Repository | None, shown: str) -> web.Response | None:
        if (refused := self._may_see(repository, shown)) or repository is None:
            return refused or _error(404, "RepoNotFound")
        if not shown:
            return _error(401, "", **{"X-Error-Message": "Invalid username or password."})
        if shown not in repository.writers:
            return _error(403, "", **{"X-Error-Message": "You may not write here"})
        return None

    def _tree(
        self, request: web.Request, repository: Repository, commit: str, inside: str
    ) -> web.Response:
        files = repository.commits[commit]
        within = f"{inside}/" if inside else ""
        paths = sorted(path for path in files if path.startswith(within))
        if inside and not paths:
            return _error(404, "EntryNotFound")
        entries: dict[str, dict[str, object]] = {}
        is_deep = request.query.get("recursive") == "true"
        for path in paths:
            names = path.removeprefix(within).split("/")
            for depth in range(1, len(names)):
                folder = within + "/".join(names[:depth])
                oid = git_oid(folder.encode())
                told = {"type": "directory", "oid": oid, "size": 0, "path": folder}
                if is_deep or depth == 1:
                    entries[folder] = dict[str, object](told)
            if not is_deep and len(names) > 1:
                continue
            entries[path] = _file(repository, path, files[path])
        listed = list(entries.values())
        start = int(request.query.get("cursor", "0"))
        headers: dict[str, str] = {}
        if start + self.page_size < len(listed):
            query = dict(request.query) | {"cursor": str(start + self.page_size)}
            url = f"{self.endpoint}{request.rel_url.raw_path}?{urlencode(query)}"
            headers["Link"] = f'<{url}>; rel="next"'
        return web.json_response(listed[start : start + self.page_size], headers=headers)

    def _resolve(
        self, request: web.Request, repository: Repository, revision: str, path: str
    ) -> web.Response:
        commit = repository.find(revision)
        if commit is None:
            return _error(404, "RevisionNotFound")
        data = repository.commits[commit].get(path)
        if data is None:
            return _error(404, "EntryNotFound")
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not is_large(path):
            headers["ETag"] = f'"{git_oid(data)}"'
            return _ranged(request, data, headers)
        sha256 = sha256_of(data)
        self.objects[sha256] = data
        headers |= {
            "X-Linked-Size": str(len(data)),
            "X-Linked-ETag": f'"{repository.sha256(path, data)}"',
            "Location": self.signed(f"/large/{sha256}"),
        }
        return web.Response(status=302, headers=headers)

    # --- pushes ---------------------------------------------------------------------------------

    async def _modes(
        self, request: web.Request, repository: Repository, revision: str
    ) -> web.Response:
        if (commit := repository.find(revision)) is None:
            return _error(404, "RevisionNotFound")
        files = repository.commits[commit]
        ignored = files.get(".gitignore", b"").decode().split()
        told: list[dict[str, object]] = []
        for file in (await request.json())["files"]:
            path: str = file["path"]
            answer: dict[str, object] = {
                "path": path,
                "uploadMode": "lfs" if is_large(path) else "regular",
                "shouldIgnore": path in ignored,
            }
            if path in files:
                data = files[path]
                answer["oid"] = sha256_of(data) if is_large(path) else git_oid(data)
            told.append(answer)
        return web.json_response({"files": told})

    async def _batch(self, request: web.Request) -> web.Response:
        objects: list[dict[str, object]] = []
        for each in (await request.json())["objects"]:
            answer: dict[str, object] = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.objects:
                href = self.signed(f"/put/{each['oid']}")
                answer["actions"] = {"upload": {"href": href}}
            objects.append(answer)
        return web.json_response({"transfer": "basic", "objects": objects})

    async def _commit(
        self, request: web.Request, repository: Repository, branch: str
    ) -> web.Response:
        head = repository.branches.get(branch)
        if head is None:
            return _error(404, "RevisionNotFound")
        lines = [json.loads(line) for line in (await request.read()).splitlines() if line]
        files = dict(repository.commits[head])
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    if value.get("parentCommit") not in {None, head}:
                        return _error(412, "", **{"X-Error-Message": "A commit has happened since"})
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.objects:
                        return _error(400, "", **{"X-Error-Message": "An LFS object is missing"})
                    files[value["path"]] = self.objects[value["oid"]]
                case "deletedFile":
                    files.pop(value["path"], None)
                case _:
                    return _error(400, "")
        oid = repository.commit(files, branch)
        url = f"{self.endpoint}/{repository.name}/commit/{oid}"
        return web.json_response({"success": True, "commitOid": oid, "commitUrl": url})

    # --- the other host -------------------------------------------------------------------------

    def signed(self, path: str) -> str:
        query = {"X-Amz-Generation": str(self.generation)}
        if self.is_dated:
            query["X-Amz-Date"] = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            query["X-Amz-Expires"] = str(self.lasting_s)
        query["X-Amz-Signature"] = _signature(path, str(self.generation))
        return f"{self.other}{path}?{urlencode(query)}"

    async def answer_large(self, request: web.Request) -> web.StreamResponse:
        seen = _seen("other", request)
        self.seen.append(seen)
        response = await self._large(request, seen)
        seen.status = response.status
        return response

    async def _large(self, request: web.Request, seen: Seen) -> web.StreamResponse:
        said = {key: values[0] for key, values in parse_qs(request.query_string).items()}
        generation = said.get("X-Amz-Generation", "")
        is_signed = said.get("X-Amz-Signature") == _signature(request.path, generation)
        if self.refuse_with:
            return web.Response(status=self.refuse_with.pop(0), text="<Error/>")
        if not is_signed or generation != str(self.generation):
            return web.Response(status=403, text="<Error>Request has expired</Error>")
        sha256 = request.path.rpartition("/")[2]
        if request.method == "PUT":
            data = await request.read()
            if self.held is not None:
                self.is_held.set()
                await asyncio.to_thread(self.held.wait)
            if sha256 in self.refused_objects:
                return web.Response(status=403)
            if sha256_of(data) != sha256:
                return web.Response(status=400)
            self.objects[sha256] = data
            return web.Response(headers={"ETag": f'"{sha256[:32]}"'})
        return await self._send(request, seen, self.objects[sha256])

    async def _send(self, request: web.Request, seen: Seen, data: bytes) -> web.StreamResponse:
        found = _ranged(request, data, {"ETag": '"of-another-kind-2"'})
        seen.status = found.status  # Now: whoever has read it all may look before we come back.
        body = bytes(found.body) if isinstance(found.body, bytes) else b""
        headers = {key: value for key, value in found.headers.items() if key != "Content-Type"}
        response = web.StreamResponse(status=found.status, headers=headers)
        response.content_length = len(body)
        await response.prepare(request)
        generation = self.generation
        sent = 0
        for start in range(0, len(body), CHUNK):
            if self.cut_after is not None and sent >= self.cut_after:
                self.cut_after = None
                _cut(request)
            if self.stall_after is not None and sent >= self.stall_after:
                self.stall_after = None
                await self._end.wait()
            if generation != self.generation:
                _cut(request)
            part = body[start : start + CHUNK]
            await response.write(part)
            sent += len(part)
            self.bytes_sent += len(part)
            if self.expire_after is not None and self.bytes_sent >= self.expire_after:
                self.expire_after = None
                self.expire()
        await response.write_eof()
        return response

    # --- running --------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Generator["Hub"]:
        """Serve in a thread until the block ends."""
        ready = threading.Event()
        loop = asyncio.new_event_loop()
        ended = asyncio.Event()

        async def serve() -> None:
            runners: list[web.AppRunner] = []
            for answer in (self.answer, self.answer_large):
                app = web.Application(client_max_size=1 << 30)
                app.router.add_route("*", "/{tail:.*}", answer)
                runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
                await runner.setup()
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                runners.append(runner)
            self.endpoint, self.other = (
                f"http://127.0.0.1:{runner.addresses[0][1]}" for runner in runners
            )
            ready.set()
            await ended.wait()
            self._end.set()
            for runner in runners:
                await runner.cleanup()

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
        thread.start()
        ready.wait()
        try:
            yield self
        finally:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(ended.set)
            thread.join()
            loop.close()


def _seen(at: str, request: web.Request) -> Seen:
    headers = {key.lower(): value for key, value in request.headers.items()}
    return Seen(at, request.method, request.path, request.query_string, headers)


def _signature(path: str, generation: str) -> str:
    return hmac.new(SECRET, f"{path} {generation}".encode(), "sha256").hexdigest()


def _error(status: int, code: str, **headers: str) -> web.Response:
    coded = {"X-Error-Code": code} if code else {}
    return web.json_response({"error": code}, status=status, headers={**coded, **headers})


def _info(request: web.Request, repository: Repository, commit: str) -> web.Response:
    told: dict[str, object] = {"_id": "0", "id": repository.name, "sha": commit}
    if "expand" not in request.query:
        files = repository.commits[commit]
        told["siblings"] = [{"rfilename": path} for path in sorted(files)]
        told |= {"private": repository.is_private, "tags": [], "downloads": 0, "likes": 0}
    return web.json_response(told)


def _file(repository: Repository, path: str, data: bytes) -> dict[str, object]:
    told: dict[str, object] = {"type": "file", "size": len(data), "path": path}
    if not is_large(path):
        return told | {"oid": git_oid(data)}
    sha256 = repository.sha256(path, data)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (
        sha256.encode(),
        len(data),
    )
    lfs = {"oid": sha256, "size": len(data), "pointerSize": len(pointer)}
    return told | {"oid": git_oid(pointer), "lfs": lfs}


def _ranged(request: web.Request, data: bytes, headers: dict[str, str]) -> web.Response:
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    kind = "application/octet-stream"
    if match is None:
        return web.Response(body=data, headers=headers, content_type=kind)
    start, stop = int(match[1]), min(int(match[2] or len(data)), len(data) - 1) + 1
    if start >= len(data):
        return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
    headers = headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
    return web.Response(status=206, body=data[start:stop], headers=headers, content_type=kind)


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
    raise ConnectionResetError
