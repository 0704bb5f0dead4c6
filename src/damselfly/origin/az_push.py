"""A push to an Azure container: blobs in blocks that tell by their names what is in them.

A block's name has its number and the SHA-256 of its content, so a later push sees in the list of
blocks that nobody has committed which of its own are there. Committing the list makes the blob, all
at once, under `If-Match`. Blocks that are never committed are thrown away by Azure after a week.
"""

import asyncio
import base64
import binascii
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence

from damselfly.errors import (
    OriginChangedError,
    OriginDeniedError,
    OriginNotFoundError,
    RemoteProtocolError,
    UsageError,
)
from damselfly.model.ref import Ref
from damselfly.origin import xml_tree
from damselfly.origin.access import Access
from damselfly.origin.az import AZContainers, check_answer
from damselfly.origin.az_account import AZAccount
from damselfly.origin.bucket import BucketObject
from damselfly.origin.bucket_push import PART_BYTES, BucketDestination, Held, Marks, SentPart
from damselfly.origin.port import OriginLimits
from damselfly.origin.push_session import marks_of, session_of
from damselfly.origin.sliced import md5_of, sliced
from damselfly.origin.web import Answer, Web

CONTENT_MARK = "x-ms-meta-damselfly_blake3"
SHA256_MARK = "x-ms-meta-sha256"
_SENDING_S = 600.0
_FINISHING_S = 120.0
_LIST_BYTES_MAX = 16 << 20
_NUMBER_BYTES = 4
_NAME_BYTES = _NUMBER_BYTES + 32
_THERE_ALREADY = frozenset({"BlobAlreadyExists", "ConditionNotMet", "TargetConditionNotMet"})


class AzDestination(BucketDestination):
    """A prefix of a container of an Azure account. The web belongs to whoever gave it."""

    def __init__(
        self,
        ref: Ref,
        web: Web,
        access: Access,
        limits: OriginLimits,
        account: AZAccount | None = None,
        *,
        part_bytes: int = PART_BYTES,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        del limits
        api = AZContainers(web, account or AZAccount.of(None, None))
        api.url(ref.netloc, None, {}, access)  # Or no container can be called that.
        prefix = ref.as_directory.decoded_path.removeprefix("/")
        writer = AZWriter(api, web, ref.netloc, access)
        super().__init__(writer, prefix, part_bytes=part_bytes, pause=pause)


class AZWriter:
    """Writes to one container; see `BucketWriter`."""

    def __init__(self, api: AZContainers, web: Web, container: str, access: Access) -> None:
        self._api = api
        self._web = web
        self._container = container
        self._access = access

    async def check(self) -> None:
        """Make sure that there is a container; who may not list it may still write there."""
        query = {"comp": "list", "maxresults": "1", "restype": "container"}
        try:
            await self._ask("GET", None, query, f"looking at az://{self._container}")
        except OriginNotFoundError as exc:
            raise UsageError(f"there is no container az://{self._container} to push to") from exc
        except OriginDeniedError:
            pass

    async def look(self, key: str) -> Held | None:
        """Look at a blob."""
        try:
            answer = await self._ask("HEAD", key, {}, f"looking at {self.shown(key)}")
        except OriginNotFoundError:
            return None
        length = answer.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal() and len(length) < 18):
            raise RemoteProtocolError(f"the origin does not say how big {self.shown(key)} is")
        tag = answer.headers.get("ETag", "").strip()
        return Held(int(length), tag, answer.headers.get(CONTENT_MARK, "").strip())

    async def read(self, key: str, held: Held) -> bytes:
        """Read something small whole."""
        if not held.size:
            return b""
        found = BucketObject(key, held.size, f"etag:{held.tag}")
        return await self._web.read(
            await self._api.wanted(self._container, found, 0, held.size, self._access)
        )

    async def put(self, key: str, data: bytes, marks: Marks, over: Held | None) -> Held:
        """Send a blob at once."""
        headers = {**_marked(marks), **_guard(over), "x-ms-blob-type": "BlockBlob"}
        answer = await self._send(key, {}, headers, data, f"sending {self.shown(key)}")
        return Held(len(data), answer.headers.get("ETag", "").strip(), marks.content)

    async def delete(self, key: str) -> None:
        """Delete a blob, if there is one."""
        with contextlib.suppress(OriginNotFoundError):
            await self._ask("DELETE", key, {}, f"deleting {self.shown(key)}")

    async def begin(self, key: str, marks: Marks) -> str:
        """A name for the session: nothing has to be asked."""
        del key
        return session_of(marks)

    async def parts(self, key: str, session: str) -> Mapping[int, SentPart] | None:
        """The blocks that nobody has committed and that are called as ours are."""
        if marks_of(session) is None:
            return None  # What was noted is no session of ours.
        query = {"blocklisttype": "uncommitted", "comp": "blocklist"}
        doing = f"listing the blocks of {self.shown(key)}"
        try:
            answer = await self._ask("GET", key, query, doing, bytes_max=_LIST_BYTES_MAX)
        except OriginNotFoundError:
            return {}
        try:
            blocks = await asyncio.to_thread(_blocks_of, answer.body)
        except ValueError as exc:
            raise RemoteProtocolError(doing) from exc
        return {block.number: block for block in blocks}

    def is_same(self, part: SentPart, data: bytes) -> bool:
        """Whether a block that is there has this content, by the SHA-256 that it is called by."""
        return part.tag == block_name(part.number, data)

    async def send_part(self, key: str, session: str, number: int, data: bytes) -> SentPart:
        """Send a block."""
        del session
        name = await asyncio.to_thread(block_name, number, data)
        query = {"blockid": name, "comp": "block"}
        await self._send(key, query, {}, data, f"sending {self.shown(key)}")
        return SentPart(number, len(data), name)

    async def finish(
        self, key: str, session: str, parts: Sequence[SentPart], over: Held | None
    ) -> None:
        """Commit the blocks."""
        marks = marks_of(session)
        assert marks is not None, "parts were sent to this session"
        names = "".join(f"<Latest>{part.tag}</Latest>" for part in parts)
        body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{names}</BlockList>'.encode()
        headers = {**_marked(marks), **_guard(over), "Content-Type": "application/xml"}
        doing = f"putting {self.shown(key)} together"
        await self._send(key, {"comp": "blocklist"}, headers, body, doing, _FINISHING_S)

    async def abort(self, key: str, session: str) -> None:
        """Nothing to be done: what nobody commits goes by itself."""

    def shown(self, key: str) -> str:
        """What people call a blob."""
        return self._api.shown(self._container, key)

    async def close(self) -> None:
        """Nothing is held."""

    # --- asking ---------------------------------------------------------------------------------

    async def _send(
        self,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        data: bytes,
        doing: str,
        sending_s: float = _SENDING_S,
    ) -> Answer:
        md5 = await asyncio.to_thread(md5_of, data)
        said = {
            "Content-Length": str(len(data)),
            "Content-MD5": md5,  # Azure refuses what arrives as something else.
            "Content-Type": "application/octet-stream",
            **headers,
        }
        return await self._ask("PUT", key, query, doing, said, data, sending_s)

    async def _ask(
        self,
        method: str,
        key: str | None,
        query: Mapping[str, str],
        doing: str,
        headers: Mapping[str, str] | None = None,
        data: bytes = b"",
        sending_s: float = 0.0,
        bytes_max: int = 1 << 20,
    ) -> Answer:
        url = self._api.url(self._container, key, query, self._access)
        answer = await self._api.ask(
            method,
            url,
            self._access,
            headers,
            sliced(data),
            bytes_max=bytes_max,
            sending_s=sending_s,
        )
        if answer.headers.get("x-ms-error-code") in _THERE_ALREADY:
            raise OriginChangedError(f"{doing}: something else is there")
        check_answer(answer, doing)
        return answer


def block_name(number: int, data: bytes) -> str:
    """What a block is called: every name of a blob's blocks has to have one length."""
    raw = number.to_bytes(_NUMBER_BYTES, "big") + hashlib.sha256(data).digest()
    return base64.b64encode(raw).decode()


def _blocks_of(data: bytes) -> list[SentPart]:
    found: list[SentPart] = []
    top = xml_tree.parse(data)
    for block in (each for blocks in top.all("UncommittedBlocks") for each in blocks.all("Block")):
        name, size = block.find("Name") or "", block.find("Size") or ""
        if not (size.isascii() and size.isdecimal() and len(size) < 18):
            raise ValueError("a block is listed without its size")
        try:
            raw = base64.b64decode(name, validate=True)
        except binascii.Error:
            continue
        if len(raw) == _NAME_BYTES:
            number = int.from_bytes(raw[:_NUMBER_BYTES], "big")
            found.append(SentPart(number, int(size), name))
    return found


def _marked(marks: Marks) -> dict[str, str]:
    return {CONTENT_MARK: marks.content, SHA256_MARK: marks.sha256}


def _guard(over: Held | None) -> dict[str, str]:
    return {"If-None-Match": "*"} if over is None else {"If-Match": over.tag}
