"""A push to Google Cloud Storage: objects of 32 parts at most are put together, as often as needed.

Google's resumable sessions are not used. One takes a file from its beginning to its end, so nothing
of it goes side by side; and its name lets whoever reads it write, so it could not be noted where a
later push finds it. Parts are objects of their own below `.damselfly-push/` instead, where readers
do not look: each has an MD5 that Google computed, by which a later push knows it, and `compose`
makes one object of them. That object comes into being whole, under `ifGenerationMatch`.
"""

import asyncio
import contextlib
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import cast

from damselfly.errors import (
    OriginDeniedError,
    OriginNotFoundError,
    OriginUnavailableError,
    RemoteProtocolError,
    UsageError,
)
from damselfly.model import canonical
from damselfly.model.paths import PUSH_DIRECTORY
from damselfly.model.ref import Ref
from damselfly.origin.access import Access
from damselfly.origin.bucket import BucketObject, listed
from damselfly.origin.bucket_push import PART_BYTES, BucketDestination, Held, Marks, SentPart
from damselfly.origin.cloud_tokens import CloudTokens
from damselfly.origin.gs import GSBuckets, endpoint_of, query_of
from damselfly.origin.gs_credentials import WRITE, GoogleCredentials
from damselfly.origin.port import OriginLimits
from damselfly.origin.push_journal import JOURNAL_NAME
from damselfly.origin.push_session import marks_of, session_of
from damselfly.origin.sliced import md5_of, sliced
from damselfly.origin.together import together
from damselfly.origin.web import Web

CONTENT_MARK = "damselfly-blake3"
SHA256_MARK = "sha256"
COMPOSED_MAX = 32
"""As many objects as Google makes one of at a time."""

_FIELDS = "name,size,generation,metadata,md5Hash"
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)
_PART = re.compile(r"[0-9]{5}", re.ASCII)
_SENDING_S = 600.0
_FINISHING_S = 120.0
_WIDTH = 16
_SPACE_S = 1.0
"""Google takes one write a second of one object, and answers 429 to more: only the journal is."""


class GSDestination(BucketDestination):
    """A prefix of a bucket of Google's. The web belongs to whoever gave it."""

    def __init__(
        self,
        ref: Ref,
        web: Web,
        access: Access,
        limits: OriginLimits,
        endpoint: str | None = None,
        *,
        part_bytes: int = PART_BYTES,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        del limits
        tokens = CloudTokens("gs://", GoogleCredentials(WRITE))
        api = GSBuckets(web, endpoint_of(endpoint), tokens)
        api.bucket_url(ref.netloc, {})  # Or no bucket can be called that.
        prefix = ref.as_directory.decoded_path.removeprefix("/")
        writer = GSWriter(api, web, ref.netloc, prefix, access, pause)
        super().__init__(writer, prefix, part_bytes=part_bytes, pause=pause)


class GSWriter:
    """Writes below one prefix of one bucket; see `BucketWriter`."""

    def __init__(
        self,
        api: GSBuckets,
        web: Web,
        bucket: str,
        prefix: str,
        access: Access,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._web = web
        self._bucket = bucket
        self._place = f"{prefix}{PUSH_DIRECTORY}/"
        self._journal = prefix + JOURNAL_NAME
        self._access = access
        self._pause = pause
        self._noted_s = -_SPACE_S

    async def check(self) -> None:
        """Make sure that there is a bucket; who may not list it may still write there."""
        url = self._api.bucket_url(self._bucket, {"maxResults": "1", "fields": "kind"})
        doing = f"looking at gs://{self._bucket}"
        try:
            await self._api.ask("GET", url, self._access, doing)
        except OriginNotFoundError as exc:
            raise UsageError(f"there is no bucket gs://{self._bucket} to push to") from exc
        except OriginDeniedError:
            pass

    async def look(self, key: str) -> Held | None:
        """Look at an object."""
        url = self._api.object_url(self._bucket, key, {"fields": _FIELDS})
        doing = f"looking at {self.shown(key)}"
        try:
            answer = await self._api.ask("GET", url, self._access, doing)
        except OriginNotFoundError:
            return None
        return _held_of(answer.body, doing)[0]

    async def read(self, key: str, held: Held) -> bytes:
        """Read something small whole."""
        if not held.size:
            return b""
        found = BucketObject(key, held.size, f"generation:{held.tag}")
        return await self._web.read(
            await self._api.wanted(self._bucket, found, 0, held.size, self._access)
        )

    async def put(self, key: str, data: bytes, marks: Marks, over: Held | None) -> Held:
        """Send an object at once, with the MD5 that Google has to find."""
        if key == self._journal:
            await self._space()
        return (await self._put(key, data, marks, _guard(over)))[0]

    async def delete(self, key: str) -> None:
        """Delete an object, if there is one."""
        url = self._api.object_url(self._bucket, key, {})
        with contextlib.suppress(OriginNotFoundError):
            await self._api.ask("DELETE", url, self._access, f"deleting {self.shown(key)}")

    async def begin(self, key: str, marks: Marks) -> str:
        """A name for the directory of the parts: nothing has to be asked."""
        del key
        return session_of(marks)

    async def parts(self, key: str, session: str) -> Mapping[int, SentPart] | None:
        """The parts that are there."""
        if marks_of(session) is None:
            return None  # What was noted is no session of ours.
        place = self._directory(session)
        numbers = [
            int(name)
            async for each in listed(self._api, self._bucket, place, self._access)
            if _PART.fullmatch(name := each.key.removeprefix(place))
        ]
        work = (partial(self._look_at_part, session, number) for number in numbers)
        parts = await together(work, _WIDTH)
        return {part.number: part for part in parts if part is not None}

    def is_same(self, part: SentPart, data: bytes) -> bool:
        """Whether a part that is there has this content, by the MD5 that Google computed."""
        return part.tag.partition(" ")[2] == md5_of(data)

    async def send_part(self, key: str, session: str, number: int, data: bytes) -> SentPart:
        """Send a part; one that was there is replaced."""
        held, md5 = await self._put(self._part(session, number), data, None, {})
        return SentPart(number, len(data), f"{held.tag} {md5}")

    async def finish(
        self, key: str, session: str, parts: Sequence[SentPart], over: Held | None
    ) -> None:
        """Make an object of all parts, and delete them."""
        marks = marks_of(session)
        assert marks is not None, "parts were sent to this session"
        level = [(self._part(session, part.number), part.tag.partition(" ")[0]) for part in parts]
        made: list[str] = []
        while len(level) > COMPOSED_MAX:
            groups = [level[at : at + COMPOSED_MAX] for at in range(0, len(level), COMPOSED_MAX)]
            names = [f"{self._directory(session)}c{len(made) + n:05d}" for n in range(len(groups))]
            tags = await together(
                (
                    partial(self._compose, name, group, None, {})
                    for name, group in zip(names, groups, strict=True)
                ),
                _WIDTH,
            )
            made += names
            level = list(zip(names, tags, strict=True))
        await self._compose(key, level, marks, _guard(over))
        await self._clear([*made, *(self._part(session, part.number) for part in parts)])

    async def abort(self, key: str, session: str) -> None:
        """Throw the parts away."""
        if marks_of(session) is None:
            return
        place = self._directory(session)
        objects = listed(self._api, self._bucket, place, self._access)
        await self._clear([each.key async for each in objects])

    def shown(self, key: str) -> str:
        """What people call an object."""
        return self._api.shown(self._bucket, key)

    async def close(self) -> None:
        """Nothing is held."""

    # --- asking ---------------------------------------------------------------------------------

    async def _space(self) -> None:
        wait_s = self._noted_s + _SPACE_S - time.monotonic()
        if wait_s > 0:
            await self._pause(wait_s)
        self._noted_s = time.monotonic()

    async def _put(
        self, key: str, data: bytes, marks: Marks | None, guard: dict[str, str]
    ) -> tuple[Held, str]:
        doing = f"sending {self.shown(key)}"
        md5 = await asyncio.to_thread(md5_of, data)
        about: dict[str, object] = {"name": key, "md5Hash": md5}
        if marks is not None:
            about["metadata"] = _metadata_of(marks)
        boundary = secrets.token_hex(16)
        body = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
            f"{json.dumps(about)}\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
        ).encode()
        body += data + f"\r\n--{boundary}--\r\n".encode()
        query = {"uploadType": "multipart", "fields": _FIELDS, **guard}
        answer = await self._api.ask(
            "POST",
            self._api.bucket_url(self._bucket, query, "/upload"),
            self._access,
            doing,
            headers={
                "Content-Length": str(len(body)),
                "Content-Type": f"multipart/related; boundary={boundary}",
            },
            body=sliced(body),
            sending_s=_SENDING_S,
        )
        held, found = _held_of(answer.body, doing)
        if held.size != len(data) or found != md5:
            raise OriginUnavailableError(f"{doing}: it arrived as something else")
        return held, found

    async def _compose(
        self,
        key: str,
        sources: Sequence[tuple[str, str]],
        marks: Marks | None,
        guard: dict[str, str],
    ) -> str:
        about: dict[str, object] = {"contentType": "application/octet-stream"}
        if marks is not None:
            about["metadata"] = _metadata_of(marks)
        body = json.dumps(
            {
                "kind": "storage#composeRequest",
                "destination": about,
                "sourceObjects": [{"name": name, "generation": tag} for name, tag in sources],
            }
        ).encode()
        doing = f"putting {self.shown(key)} together"
        url = self._api.object_url(self._bucket, key, {})
        headers = {"Content-Length": str(len(body)), "Content-Type": "application/json"}
        query = query_of({"fields": _FIELDS, **guard})
        answer = await self._api.ask(
            "POST",
            f"{url}/compose{query}",
            self._access,
            doing,
            headers=headers,
            body=body,
            sending_s=_FINISHING_S,
        )
        return _held_of(answer.body, doing)[0].tag

    async def _look_at_part(self, session: str, number: int) -> SentPart | None:
        key = self._part(session, number)
        url = self._api.object_url(self._bucket, key, {"fields": _FIELDS})
        doing = f"looking at {self.shown(key)}"
        try:
            answer = await self._api.ask("GET", url, self._access, doing)
        except OriginNotFoundError:
            return None
        held, md5 = _held_of(answer.body, doing)
        return SentPart(number, held.size, f"{held.tag} {md5}")

    async def _clear(self, keys: Sequence[str]) -> None:
        # What stays is in nobody's way, and an error here would deny what is done.
        async def delete(key: str) -> None:
            with contextlib.suppress(OriginDeniedError, OriginUnavailableError):
                await self.delete(key)

        await together((partial(delete, key) for key in keys), _WIDTH)

    def _directory(self, session: str) -> str:
        return f"{self._place}{session[:32]}/"

    def _part(self, session: str, number: int) -> str:
        return f"{self._directory(session)}{number:05d}"


def _metadata_of(marks: Marks) -> dict[str, str]:
    return {CONTENT_MARK: marks.content, SHA256_MARK: marks.sha256}


def _guard(over: Held | None) -> dict[str, str]:
    return {"ifGenerationMatch": "0" if over is None else over.tag}


def _held_of(data: bytes, doing: str) -> tuple[Held, str]:
    """What is said of an object, and its MD5; empty where it has none."""
    try:
        fields = cast("dict[str, object]", canonical.expect(canonical.decode(data), dict, "it"))
        size = canonical.expect(fields.get("size", "0"), str, "size")
        tag = canonical.expect(fields.get("generation"), str, "generation")
        marks = cast(
            "dict[str, object]", canonical.expect(fields.get("metadata") or {}, dict, "metadata")
        )
        content = canonical.expect(marks.get(CONTENT_MARK, ""), str, "a mark")
        md5 = canonical.expect(fields.get("md5Hash") or "", str, "md5Hash")
        if not _NUMBER.fullmatch(size) or not _NUMBER.fullmatch(tag):
            raise ValueError("an object without a size or a generation")
    except ValueError as exc:
        raise RemoteProtocolError(doing) from exc
    return Held(int(size), tag, content), md5
