"""A push to S3: objects and parts with a SHA-256 that the server holds against what came.

A part is signed with its SHA-256, and says it again as S3's own checksum, so one that was
corrupted on its way is refused, and sent again. Whole objects that go at once get S3's checksum of
the whole, which is proof; of objects in parts S3 has none, so a mark in their metadata tells what
they are.
"""

import asyncio
import base64
import contextlib
import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from xml.sax.saxutils import escape

from damselfly.errors import OriginDeniedError, OriginNotFoundError, RemoteProtocolError, UsageError
from damselfly.model.ref import Ref
from damselfly.origin import xml_tree
from damselfly.origin.access import Access
from damselfly.origin.bucket import BucketObject
from damselfly.origin.bucket_push import PART_BYTES, BucketDestination, Held, Marks, SentPart
from damselfly.origin.port import OriginLimits
from damselfly.origin.s3 import S3API, sha256_of
from damselfly.origin.s3_errors import S3Refusal
from damselfly.origin.s3_place import S3Place
from damselfly.origin.sliced import sliced
from damselfly.origin.web import Answer, Web

CONTENT_MARK = "x-amz-meta-damselfly-blake3"
SHA256_MARK = "x-amz-meta-sha256"
_SENDING_S = 600.0
_FINISHING_S = 300.0
"""S3 says that putting parts together may take minutes."""
_PAGES_MAX = 40
_PAGE_BYTES_MAX = 4 << 20
_MD5 = re.compile(r'"?([0-9a-f]{32})"?', re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,17}", re.ASCII)
_FINE = frozenset({200, 201, 204})
_NO_GUARDS = 501


class S3Destination(BucketDestination):
    """A prefix of a bucket of S3. The web belongs to whoever gave it."""

    def __init__(
        self,
        ref: Ref,
        web: Web,
        access: Access,
        limits: OriginLimits,
        place: S3Place | None = None,
        *,
        part_bytes: int = PART_BYTES,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        place = place or S3Place.of()
        place.url(place.first_region, ref.netloc)  # Or no bucket can be called that.
        api = S3API(web, limits, place)
        prefix = ref.as_directory.decoded_path.removeprefix("/")
        super().__init__(
            S3Writer(api, web, ref.netloc, access), prefix, part_bytes=part_bytes, pause=pause
        )


class S3Writer:
    """Writes to one bucket; see `BucketWriter`."""

    def __init__(self, api: S3API, web: Web, bucket: str, access: Access) -> None:
        self._api = api
        self._web = web
        self._bucket = bucket
        self._access = access
        self._knows_guards = True

    async def check(self) -> None:
        """Make sure that there is a bucket; who may not look at it may still write there."""
        doing = f"looking at s3://{self._bucket}"
        query = {"list-type": "2", "max-keys": "1"}
        try:
            await self._api.ask("GET", self._bucket, access=self._access, doing=doing, query=query)
        except OriginNotFoundError as exc:
            raise UsageError(f"there is no bucket s3://{self._bucket} to push to") from exc
        except OriginDeniedError:
            pass

    async def look(self, key: str) -> Held | None:
        """Look at an object."""
        try:
            answer = await self._api.head(self._bucket, key, self._access)
        except OriginNotFoundError:
            return None
        length = answer.headers.get("Content-Length", "")
        if not _NUMBER.fullmatch(length):
            raise RemoteProtocolError(f"the origin does not say how big {self.shown(key)} is")
        tag = answer.headers.get("ETag", "").strip()
        mark = answer.headers.get(CONTENT_MARK, "").strip()
        return Held(int(length), tag, mark, sha256_of(answer.headers))

    async def read(self, key: str, held: Held) -> bytes:
        """Read something small whole."""
        if not held.size:
            return b""
        found = BucketObject(key, held.size, f"etag:{held.tag}" if held.tag else "")
        wanted = await self._api.wanted(self._bucket, found, 0, held.size, self._access)
        return await self._web.read(wanted)

    async def put(self, key: str, data: bytes, marks: Marks, over: Held | None) -> Held:
        """Send an object at once."""
        headers = {
            **await _told_of(data),
            "x-amz-sdk-checksum-algorithm": "SHA256",
            **_marked(marks),
        }
        answer = await self._guarded("PUT", key, {}, headers, data, over, _SENDING_S)
        return Held(len(data), answer.headers.get("ETag", "").strip(), marks.content, marks.sha256)

    async def delete(self, key: str) -> None:
        """Delete an object, if there is one."""
        with contextlib.suppress(OriginNotFoundError):
            await self._ask("DELETE", key)

    async def begin(self, key: str, marks: Marks) -> str:
        """Begin to send an object in parts."""
        headers = {"x-amz-checksum-algorithm": "SHA256", **_marked(marks)}
        answer = await self._ask("POST", key, {"uploads": ""}, headers)
        doing = f"beginning to send {self.shown(key)}"
        try:
            told = xml_tree.parse(answer.body.strip())
        except ValueError as exc:
            raise RemoteProtocolError(doing) from exc
        session = told.find("UploadId")
        if not session or len(session) > 2048:
            raise RemoteProtocolError(f"{doing}: the origin names no session")
        return session

    async def parts(self, key: str, session: str) -> Mapping[int, SentPart] | None:
        """The parts that are there."""
        found: dict[int, SentPart] = {}
        query = {"uploadId": session, "max-parts": "1000"}
        doing = f"listing the parts of {self.shown(key)}"
        for _ in range(_PAGES_MAX):
            try:
                answer = await self._ask("GET", key, query, bytes_max=_PAGE_BYTES_MAX)
                parts, marker = await asyncio.to_thread(parts_of, answer.body)
            except OriginNotFoundError:
                return None
            except ValueError as exc:
                raise RemoteProtocolError(doing) from exc
            found |= {part.number: part for part in parts}
            if marker is None:
                return found
            query["part-number-marker"] = marker
        raise RemoteProtocolError(f"{doing}: they do not end")

    def is_same(self, part: SentPart, data: bytes) -> bool:
        """Whether a part that is there has this content, by its SHA-256, else by its MD5."""
        if part.sha256:
            return part.sha256 == _base64_of(hashlib.sha256(data).digest())
        tag = _MD5.fullmatch(part.tag)
        return tag is not None and tag[1] == hashlib.md5(data, usedforsecurity=False).hexdigest()

    async def send_part(self, key: str, session: str, number: int, data: bytes) -> SentPart:
        """Send a part."""
        told = await _told_of(data)
        query = {"partNumber": str(number), "uploadId": session}
        answer = await self._ask("PUT", key, query, told, data, _SENDING_S)
        tag = answer.headers.get("ETag", "").strip()
        if not tag:
            raise RemoteProtocolError(f"sending {self.shown(key)}: a part got no ETag")
        return SentPart(number, len(data), tag, told["x-amz-checksum-sha256"])

    async def finish(
        self, key: str, session: str, parts: Sequence[SentPart], over: Held | None
    ) -> None:
        """Make an object of all parts."""
        listed = "".join(
            f"<Part><PartNumber>{part.number}</PartNumber><ETag>{escape(part.tag)}</ETag>"
            + (f"<ChecksumSHA256>{escape(part.sha256)}</ChecksumSHA256>" if part.sha256 else "")
            + "</Part>"
            for part in parts
        )
        name = "CompleteMultipartUpload"
        space = "http://s3.amazonaws.com/doc/2006-03-01/"
        body = f'<{name} xmlns="{space}">{listed}</{name}>'.encode()
        headers = {
            "Content-Length": str(len(body)),
            "x-amz-content-sha256": hashlib.sha256(body).hexdigest(),
        }
        query = {"uploadId": session}
        answer = await self._guarded("POST", key, query, headers, body, over, _FINISHING_S)
        # It begins to answer before it knows, so "200" may turn out to be an error.
        body = answer.body.strip()
        if b"<Error>" in body[:4096]:
            refusal = S3Refusal.of(Answer(500, answer.headers, body, answer.url))
            raise refusal.error(f"finishing {self.shown(key)}")

    async def abort(self, key: str, session: str) -> None:
        """Throw the parts away."""
        with contextlib.suppress(OriginNotFoundError):
            await self._ask("DELETE", key, {"uploadId": session})

    def shown(self, key: str) -> str:
        """What people call an object."""
        return self._api.shown(self._bucket, key)

    async def close(self) -> None:
        """Nothing is held."""

    # --- asking ---------------------------------------------------------------------------------

    async def _guarded(
        self,
        method: str,
        key: str,
        query: dict[str, str],
        headers: Mapping[str, str],
        data: bytes,
        over: Held | None,
        sending_s: float,
    ) -> Answer:
        """Write only over what was seen to be there, where the server knows how."""
        guard: dict[str, str] = {}
        if self._knows_guards:
            if over is None:
                guard = {"If-None-Match": "*"}
            elif over.tag.startswith('"'):
                guard = {"If-Match": over.tag}
        fine = _FINE | {_NO_GUARDS} if guard else _FINE
        answer = await self._ask(method, key, query, {**headers, **guard}, data, sending_s, fine)
        if answer.status == _NO_GUARDS:
            self._knows_guards = False
            answer = await self._ask(method, key, query, headers, data, sending_s)
        return answer

    async def _ask(
        self,
        method: str,
        key: str,
        query: dict[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        data: bytes = b"",
        sending_s: float = 0.0,
        fine: frozenset[int] = _FINE,
        bytes_max: int = 64 << 10,
    ) -> Answer:
        return await self._api.ask(
            method,
            self._bucket,
            key,
            access=self._access,
            doing=f"{_DOINGS[method]} {self.shown(key)}",
            query=query,
            headers=headers,
            body=sliced(data),
            bytes_max=bytes_max,
            sending_s=sending_s,
            fine=fine,
        )


_DOINGS = {
    "PUT": "sending",
    "POST": "sending",
    "DELETE": "deleting",
    "GET": "looking at",
}


async def _told_of(data: bytes) -> dict[str, str]:
    digest = await asyncio.to_thread(lambda: hashlib.sha256(data).digest())
    return {
        "Content-Length": str(len(data)),
        "x-amz-content-sha256": digest.hex(),
        "x-amz-checksum-sha256": _base64_of(digest),
    }


def _marked(marks: Marks) -> dict[str, str]:
    return {CONTENT_MARK: marks.content, SHA256_MARK: marks.sha256}


def _base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def parts_of(data: bytes) -> tuple[list[SentPart], str | None]:
    """Read a page of the parts that are there, and where the next one begins.

    Raises:
        ValueError: it is not one.
    """
    told = xml_tree.parse(data.strip())
    found: list[SentPart] = []
    for each in told.all("Part"):
        number, size = each.find("PartNumber") or "", each.find("Size") or ""
        if not (_NUMBER.fullmatch(number) and _NUMBER.fullmatch(size)):
            raise ValueError("a part is listed without its number or its size")
        tag, sha256 = each.find("ETag") or "", each.find("ChecksumSHA256") or ""
        found.append(SentPart(int(number), int(size), tag, sha256))
    if told.find("IsTruncated") != "true":
        return found, None
    marker = told.find("NextPartNumberMarker") or ""
    if not found or not _NUMBER.fullmatch(marker):
        raise ValueError("a page of parts does not say where the next one begins")
    return found, marker
