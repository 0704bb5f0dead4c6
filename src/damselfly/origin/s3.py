"""`s3://`: Amazon's S3, and every server that speaks its HTTP API.

What pins an object: its version, where the bucket keeps versions (`versionId=` in the URL), else
its ETag (`If-Match`). Whole-file digests are S3's own SHA-256 of whole objects; those of parts
(`...-N`) are of no use, and metadata is its owner's word and proves nothing.

Who asks signs with a key: a caller's user name is the key id and the password the secret key.
Temporary keys need a session token besides, which does not fit in there: only the agent itself may
have such, from its environment (`s3_keys.py`). A bearer token means nothing to S3. Whoever shows
nothing asks unsigned, which public buckets answer.

A bucket is asked for in one region; where that is wrong, the answer says where it is, and that is
remembered until it turns out to be wrong itself.
"""

import asyncio
import base64
import binascii
import logging
import re
from collections import OrderedDict
from collections.abc import Mapping
from urllib.parse import quote, unquote_plus

from damselfly.errors import (
    DamselflyError,
    OriginDeniedError,
    RemoteProtocolError,
)
from damselfly.model.plan import VERSION_CHARS_MAX
from damselfly.origin import xml_tree
from damselfly.origin.access import Access
from damselfly.origin.bucket import BucketObject, ObjectPage
from damselfly.origin.port import OriginLimits
from damselfly.origin.s3_errors import S3Refusal
from damselfly.origin.s3_keys import OwnKeys
from damselfly.origin.s3_place import S3Place
from damselfly.origin.s3_signature import S3Keys, S3Signer
from damselfly.origin.web import Answer, Body, Wanted, Web

logger = logging.getLogger(__name__)

REGIONS_MAX = 256
_TRIES = 4
"""A wrong region, keys that ran out, and a region that moved meanwhile."""
_ERROR_BYTES_MAX = 64 << 10
_VERSION_ID = "version-id:"
_ETAG = "etag:"
_ETAG_OF_PARTS = re.compile(r'-[0-9]+"?$', re.ASCII)
_SIZE = re.compile(r"[0-9]{1,17}", re.ASCII)
_SHOWN_CHARS_MAX = 300


class S3API:
    """Asks S3; see `BucketAPI`. Belongs to one event loop."""

    pages_are_complete = False  # They lack the object's version id and its digest.

    def __init__(self, web: Web, limits: OriginLimits, place: S3Place) -> None:
        self._web = web
        self._limits = limits
        self._place = place
        self._own = OwnKeys()
        self._regions = OrderedDict[str, str]()

    async def page(self, bucket: str, prefix: str, token: str | None, access: Access) -> ObjectPage:
        """List objects, 1,000 at a time; see `BucketAPI`."""
        query = {
            "list-type": "2",
            "prefix": prefix,
            "max-keys": "1000",
            "encoding-type": "url",
        }
        if token is not None:
            query["continuation-token"] = token
        doing = f"listing {self.shown(bucket, prefix)}"
        answer = await self.ask(
            "GET",
            bucket,
            access=access,
            doing=doing,
            query=query,
            bytes_max=self._limits.listing_bytes_max,
        )
        try:
            return await asyncio.to_thread(page_of, answer.body)
        except ValueError as exc:
            raise RemoteProtocolError(doing) from exc

    async def measure(self, bucket: str, key: str, access: Access) -> BucketObject:
        """Look at one object; see `BucketAPI`."""
        answer = await self.head(bucket, key, access)
        return object_of(key, answer.headers, self.shown(bucket, key))

    async def head(self, bucket: str, key: str, access: Access) -> Answer:
        """Ask for everything about one object but its content."""
        doing = f"looking at {self.shown(bucket, key)}"
        checksums = {"x-amz-checksum-mode": "ENABLED"}
        try:
            return await self.ask(
                "HEAD", bucket, key, access=access, doing=doing, headers=checksums
            )
        except (OriginDeniedError, RemoteProtocolError):
            # A HEAD has no body to say why, nor where the bucket is instead.
            await self.refused(bucket, key, access)
            return await self.ask(
                "HEAD", bucket, key, access=access, doing=doing, headers=checksums
            )

    async def wanted(
        self, bucket: str, found: BucketObject, start: int, stop: int, access: Access
    ) -> Wanted:
        """The request for a span of an object; see `BucketAPI`."""
        region = self._region(bucket)
        query: dict[str, str] | None = None
        headers: tuple[tuple[str, str], ...] = ()
        if found.version.startswith(_VERSION_ID):
            query = {"versionId": found.version.removeprefix(_VERSION_ID)}
        elif found.version.startswith(f'{_ETAG}"'):  # A weak one never matches.
            headers = (("If-Match", found.version.removeprefix(_ETAG)),)
        url = self._place.url(region, bucket, found.key, query)
        signer = S3Signer(await self._keys(access), region)
        return Wanted(url, found.size, found.version, start, stop, signer, headers)

    async def refused(self, bucket: str, key: str, access: Access) -> None:
        """Ask for a byte of an object, with an answer that says what is wrong; see `BucketAPI`."""
        await self.ask(
            "GET",
            bucket,
            key,
            access=access,
            doing=f"reading {self.shown(bucket, key)}",
            headers={"Range": "bytes=0-0"},
            fine=frozenset({200, 206, 416}),
        )

    def shown(self, bucket: str, key: str) -> str:
        """What people call an object, or a prefix."""
        return f"s3://{bucket}/{quote(key)}"[:_SHOWN_CHARS_MAX]

    async def ask(
        self,
        method: str,
        bucket: str,
        key: str = "",
        *,
        access: Access,
        doing: str,
        query: dict[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
        bytes_max: int = _ERROR_BYTES_MAX,
        sending_s: float = 0.0,
        fine: frozenset[int] = frozenset({200, 204, 206}),
    ) -> Answer:
        """Ask something, again where the answer teaches us how; `doing` is what errors say.

        Raises:
            OriginDeniedError, OriginNotFoundError, OriginBusyError, OriginUnavailableError,
            OriginChangedError, RemoteProtocolError: as S3's error codes say.
        """
        failure: DamselflyError | None = None
        signer = S3Signer(None, "")
        for _ in range(_TRIES):
            region = self._region(bucket)
            signer = S3Signer(await self._keys(access), region)
            answer = await self._web.send(
                method,
                self._place.url(region, bucket, key, query),
                access=signer,
                headers=headers,
                body=body,
                bytes_max=bytes_max,
                follows=False,
                sending_s=sending_s,
            )
            if answer.status in fine:
                return answer
            refusal = S3Refusal.of(answer)
            failure = refusal.error(doing)
            if refusal.is_of_the_region and await self._found(bucket, region, refusal):
                continue
            is_own = access.is_own and signer.keys is not None
            if refusal.is_of_old_keys and is_own and await self._renewed(signer.keys):
                continue
            break
        assert failure is not None, "there is a first try"
        if isinstance(failure, OriginDeniedError) and signer.keys is None:
            lacks = "no keys were found" if access.is_own else "no keys were given"
            raise OriginDeniedError(f"{failure} (asked unsigned: {lacks})")
        raise failure

    # --- keys and regions -----------------------------------------------------------------------

    async def _keys(self, access: Access) -> S3Keys | None:
        if access.is_own:
            return await self._own.keys()
        if access.token is not None:
            raise OriginDeniedError(
                "S3 knows no tokens: show an access key id as the user name, and its secret access"
                " key as the password"
            )
        if access.username is None:
            return None
        return S3Keys(access.username, access.password or "")

    async def _renewed(self, keys: S3Keys | None) -> bool:
        return keys is not None and await self._own.renewed(keys)

    def _region(self, bucket: str) -> str:
        return self._regions.get(bucket, self._place.first_region)

    async def _found(self, bucket: str, asked: str, refusal: S3Refusal) -> bool:
        """Learn in which region a bucket is; tells whether it is another than was asked."""
        found = refusal.region
        if found is None and refusal.status in {301, 307, 308}:
            url = self._place.url(asked, bucket)
            answer = await self._web.send("HEAD", url, follows=False)
            found = S3Refusal.of(answer).region
        if found is None:  # What was remembered may be wrong.
            return self._regions.pop(bucket, None) is not None and asked != self._region(bucket)
        if found == self._region(bucket):
            return found != asked
        self._regions[bucket] = found
        self._regions.move_to_end(bucket)
        if len(self._regions) > REGIONS_MAX:
            self._regions.popitem(last=False)
        logger.info("s3.region_found", extra={"bucket": bucket, "region": found})
        return True


def object_of(key: str, headers: Mapping[str, str], place: str) -> BucketObject:
    """An object as the head of an answer tells of it."""
    length = headers.get("Content-Length", "")
    if not _SIZE.fullmatch(length):
        raise RemoteProtocolError(f"the origin does not say how big {place} is")
    digest = sha256_of(headers)
    return BucketObject(
        key, int(length), _version_of(headers), () if digest is None else (f"sha256:{digest}",)
    )


def sha256_of(headers: Mapping[str, str]) -> str | None:
    """The SHA-256 of the whole object (hex) where S3 has computed that; None where it has not."""
    # Not every server says the type, or marks the checksum of parts: then the ETag tells of parts.
    is_in_parts = _ETAG_OF_PARTS.search(headers.get("ETag", "")) is not None
    implied = "COMPOSITE" if is_in_parts else "FULL_OBJECT"
    if headers.get("x-amz-checksum-type", implied) != "FULL_OBJECT":
        return None
    try:
        digest = base64.b64decode(headers.get("x-amz-checksum-sha256", ""), validate=True)
    except (binascii.Error, ValueError):
        return None  # That of parts ends with their number.
    return digest.hex() if len(digest) == 32 else None


def _version_of(headers: Mapping[str, str]) -> str:
    kinds = ((_VERSION_ID, "x-amz-version-id"), (_ETAG, "ETag"), ("modified:", "Last-Modified"))
    for kind, name in kinds:
        said = headers.get(name, "").strip()
        # The version "null" is what a bucket has from before it kept versions: it is overwritten.
        if kind == _VERSION_ID and said == "null":
            continue
        if said and said.isprintable() and len(kind + said) <= VERSION_CHARS_MAX:
            return kind + said
    return ""


def page_of(data: bytes) -> ObjectPage:
    """Read a page of a listing.

    Raises:
        ValueError: it is not one.
    """
    top = xml_tree.parse(data)
    if top.name != "ListBucketResult":
        raise ValueError(f"the origin answered {top.name[:80]!a}, which is no listing")
    is_quoted = top.find("EncodingType") == "url"
    found: list[BucketObject] = []
    for each in top.all("Contents"):
        key, size = each.find("Key"), each.find("Size")
        if key is None or size is None or not _SIZE.fullmatch(size):
            raise ValueError("an object is listed without its key or its size")
        if is_quoted:
            key = unquote_plus(key, errors="surrogateescape")
        found.append(BucketObject(key, int(size), f"{_ETAG}{each.find('ETag') or ''}"))
    token = None
    if top.find("IsTruncated") == "true":
        token = top.find("NextContinuationToken")
        if not token:
            raise ValueError("a page of the listing does not say where the next one begins")
    return ObjectPage(tuple(found), token)
