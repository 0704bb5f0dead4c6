"""`gs://`: Google Cloud Storage by its JSON API. A `BucketAPI`.

Every object has a generation, a number that no other content of that name ever gets, so a file is
pinned by it and read by it. What Google computes of an object is an MD5 and a CRC32C, which are no
digests to us. Public buckets are read without credentials.
"""

import asyncio
import os
import re
from collections.abc import Mapping
from typing import cast
from urllib.parse import quote

from damselfly.errors import (
    ConfigError,
    OriginDeniedError,
    RemoteProtocolError,
    UsageError,
)
from damselfly.model import canonical
from damselfly.origin.access import ANONYMOUS, Access, Authorizer
from damselfly.origin.bucket import BucketObject, ObjectPage
from damselfly.origin.cloud_tokens import CloudTokens
from damselfly.origin.gs_credentials import READ, GoogleCredentials
from damselfly.origin.s3_place import check_endpoint
from damselfly.origin.web import Answer, Body, Wanted, Web, check_status

ENDPOINT = "https://storage.googleapis.com"
EMULATOR_VARIABLE = "STORAGE_EMULATOR_HOST"
PAGE_OBJECTS = 1000
PAGE_BYTES_MAX = 4 << 20
"""A thousand objects with names of 1,024 bytes, as JSON writes them, and what else is said."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", re.ASCII)
_FIELDS = "name,size,generation,contentEncoding"
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)
_TOKEN_CHARS_MAX = 4096


def endpoint_of(said: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """Where Google Cloud Storage is: as configured, else as its own clients are told.

    Raises:
        ConfigError: the environment names no endpoint.
    """
    if said is not None:
        return said
    text = environ.get(EMULATOR_VARIABLE, "")
    if not text:
        return ENDPOINT
    try:
        return check_endpoint(text if "://" in text else f"http://{text}")
    except ValueError as exc:
        raise ConfigError(f"{EMULATOR_VARIABLE} names no endpoint") from exc


class GSBuckets:
    """Google's buckets, as `BucketOrigin` asks for them. Belongs to one event loop."""

    pages_are_complete = True

    def __init__(self, web: Web, endpoint: str, tokens: CloudTokens | None = None) -> None:
        self.endpoint = endpoint
        # An emulator is shown nothing, nor is anything shown where everybody can read it.
        self.shows_own = endpoint.startswith("https://")
        self._web = web
        self._tokens = tokens or CloudTokens("gs://", GoogleCredentials(READ))

    async def page(self, bucket: str, prefix: str, token: str | None, access: Access) -> ObjectPage:
        """List objects; see `BucketAPI`."""
        query = {
            "fields": f"items({_FIELDS}),nextPageToken",
            "maxResults": str(PAGE_OBJECTS),
            "prefix": prefix,
            "projection": "noAcl",
        }
        if token is not None:
            query["pageToken"] = token
        shown = self.shown(bucket, prefix)
        answer = await self.ask(
            "GET", self.bucket_url(bucket, query), access, f"listing {shown}", PAGE_BYTES_MAX
        )
        return await asyncio.to_thread(parse_page, answer.body, shown)

    async def measure(self, bucket: str, key: str, access: Access) -> BucketObject:
        """Look at one object; see `BucketAPI`."""
        shown = self.shown(bucket, key)
        url = self.object_url(bucket, key, {"fields": _FIELDS, "projection": "noAcl"})
        answer = await self.ask("GET", url, access, f"looking at {shown}")
        return parse_object(answer.body, key, shown)

    async def wanted(
        self, bucket: str, found: BucketObject, start: int, stop: int, access: Access
    ) -> Wanted:
        """The request for a span; see `BucketAPI`."""
        query = {"alt": "media"}
        if found.version:
            kind, _, generation = found.version.partition(":")
            if kind != "generation" or not _NUMBER.fullmatch(generation):
                raise RemoteProtocolError(
                    f"{self.shown(bucket, found.key)} is planned with a version that is none of"
                    " Google's"
                )
            query["generation"] = generation
        url = self.object_url(bucket, found.key, query)
        authorizer = await self.authorizer(access)
        return Wanted(url, found.size, found.version, start, stop, authorizer)

    async def refused(self, bucket: str, key: str, access: Access) -> None:
        """Find out why a span was refused; see `BucketAPI`."""
        if access.is_own:
            self._tokens.spoil()
        await self.measure(bucket, key, access)

    def shown(self, bucket: str, key: str) -> str:
        """What people call it."""
        return f"gs://{bucket}/{key}"

    # --- asking ---------------------------------------------------------------------------------

    async def ask(
        self,
        method: str,
        url: str,
        access: Access,
        doing: str,
        bytes_max: int = 1 << 20,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
        sending_s: float = 0.0,
    ) -> Answer:
        """Ask something, once more with a new token if it is the agent's that is refused."""
        for is_last in (False, True):
            authorizer = await self.authorizer(access)
            answer = await self._web.send(
                method,
                url,
                access=authorizer,
                headers=headers,
                body=body,
                bytes_max=bytes_max,
                sending_s=sending_s,
            )
            if is_last or answer.status != 401 or not access.is_own or authorizer == ANONYMOUS:
                check_status(answer, doing)
                return answer
            self._tokens.spoil()
        raise AssertionError("the last answer is returned")

    async def authorizer(self, access: Access) -> Authorizer:
        """What to show for `access`."""
        if access.is_own:
            return await self._tokens.access() if self.shows_own else ANONYMOUS
        if access.username is not None:
            raise OriginDeniedError("gs:// is opened by a token, not by a user name and a password")
        return access

    def bucket_url(self, bucket: str, query: Mapping[str, str], verb: str = "") -> str:
        """The URL of a bucket's objects; `verb` is what goes before its path."""
        if not _BUCKET.fullmatch(bucket) or ".." in bucket:
            raise UsageError(f"gs://{bucket[:80]} is not what a bucket can be called")
        return f"{self.endpoint}{verb}/storage/v1/b/{bucket}/o{query_of(query)}"

    def object_url(self, bucket: str, key: str, query: Mapping[str, str]) -> str:
        """The URL of an object: its whole name is one part of the path."""
        return f"{self.bucket_url(bucket, {})}/{quote(key, safe='')}{query_of(query)}"


def query_of(query: Mapping[str, str]) -> str:
    """Write a query, with its question mark."""
    pairs = (f"{quote(name, safe='')}={quote(text, safe='')}" for name, text in query.items())
    return "?" + "&".join(pairs) if query else ""


def parse_page(data: bytes, shown: str) -> ObjectPage:
    """Read a page of a listing.

    Raises:
        RemoteProtocolError: it is none.
    """
    try:
        fields = _fields(canonical.decode(data))
        items = cast("list[object]", canonical.expect(fields.get("items", []), list, "items"))
        objects = tuple(_object_of(item, shown) for item in items)
        token = fields.get("nextPageToken")
        if token is not None:
            token = canonical.expect(token, str, "nextPageToken")
            if not 0 < len(token) <= _TOKEN_CHARS_MAX:
                raise ValueError("the token of the next page is too long, or empty")
    except ValueError as exc:
        raise RemoteProtocolError(f"reading the listing of {shown}") from exc
    return ObjectPage(objects, token)


def parse_object(data: bytes, key: str, shown: str) -> BucketObject:
    """Read what is said of one object.

    Raises:
        RemoteProtocolError: it is not that object, or not said.
    """
    try:
        found = _object_of(canonical.decode(data), shown)
        if found.key != key:
            raise ValueError("it is another object")
    except ValueError as exc:
        raise RemoteProtocolError(f"reading what {shown} is") from exc
    return found


def _object_of(value: object, shown: str) -> BucketObject:
    fields = _fields(value)
    name = canonical.expect(fields.get("name"), str, "name")
    size = canonical.expect(fields.get("size", "0"), str, "size")
    generation = canonical.expect(fields.get("generation"), str, "generation")
    if not name or not _NUMBER.fullmatch(size) or not _NUMBER.fullmatch(generation):
        raise ValueError("an object without a name, a size or a generation")
    if fields.get("contentEncoding") not in {None, "", "identity"}:
        # Google unpacks it for who does not take it so, and then there are no ranges.
        raise RemoteProtocolError(
            f"an object in {shown} is stored with a Content-Encoding: it has no size to plan with"
        )
    return BucketObject(name, int(size), f"generation:{generation}")


def _fields(value: object) -> dict[str, object]:
    return cast("dict[str, object]", canonical.expect(value, dict, "the answer"))
