"""`az://`: containers of one Azure account, by the Blob service's REST API. A `BucketAPI`.

A blob is pinned by its ETag, which Azure changes with every write, and asked for with `If-Match`;
one that is looked at alone in an account that keeps versions is pinned by its version. Azure
computes no digest of a blob that was sent in blocks. Public containers are read without
credentials; what the environment has is shown for the agent itself and for nobody else.
"""

import asyncio
import re
from collections.abc import Mapping
from urllib.parse import quote

from damselfly.errors import (
    ConfigError,
    OriginChangedError,
    OriginDeniedError,
    RemoteProtocolError,
    UsageError,
)
from damselfly.origin import xml_tree
from damselfly.origin.access import ANONYMOUS, Access, Authorizer
from damselfly.origin.az_access import AzureCredentials, SharedKey
from damselfly.origin.az_account import AZAccount, key_of
from damselfly.origin.bucket import BucketObject, ObjectPage
from damselfly.origin.cloud_tokens import CloudTokens
from damselfly.origin.web import Answer, Body, Wanted, Web, check_status

API_VERSION = "2020-10-02"
"""The last in which listings never encode a name in a way of their own."""
PAGE_OBJECTS = 500
PAGE_BYTES_MAX = 8 << 20
"""500 blobs with names of 1,024 characters, and as much metadata as there may be of each."""

_CODE = re.compile(r"[A-Za-z]{1,64}", re.ASCII)
_CONTAINER = re.compile(r"(?:\$root|\$web|[a-z0-9](?:-?[a-z0-9]){2,62})", re.ASCII)
_ETAG = re.compile(r"[!#-~]{1,128}", re.ASCII)
_MARKER_CHARS_MAX = 8192
_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)
_VERSION_ID = re.compile(r"[0-9TZ:.+-]{1,64}", re.ASCII)
_REFUSALS = frozenset(
    {"AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation"}
    | {"PublicAccessNotPermitted"}
)
"""What Azure refuses with codes that mean other things elsewhere (400, 409)."""


class AZContainers:
    """The containers of an account, as `BucketOrigin` asks for them. Belongs to one event loop."""

    pages_are_complete = True

    def __init__(self, web: Web, account: AZAccount, tokens: CloudTokens | None = None) -> None:
        self._web = web
        self._account = account
        self._tokens = tokens or CloudTokens("az://", AzureCredentials())

    async def page(self, bucket: str, prefix: str, token: str | None, access: Access) -> ObjectPage:
        """List blobs; see `BucketAPI`."""
        query = {
            "comp": "list",
            "include": "metadata",  # It tells directories, in accounts that have them.
            "maxresults": str(PAGE_OBJECTS),
            "prefix": prefix,
            "restype": "container",
        }
        if token is not None:
            query["marker"] = token
        shown = self.shown(bucket, prefix)
        url = self.url(bucket, None, query, access)
        answer = await self.ask("GET", url, access, bytes_max=PAGE_BYTES_MAX)
        check_answer(answer, f"listing {shown}")
        return await asyncio.to_thread(parse_page, answer.body, shown)

    async def measure(self, bucket: str, key: str, access: Access) -> BucketObject:
        """Look at one blob; see `BucketAPI`."""
        shown = self.shown(bucket, key)
        answer = await self.ask("HEAD", self.url(bucket, key, {}, access), access)
        check_answer(answer, f"looking at {shown}")
        size = answer.headers.get("Content-Length", "")
        etag = answer.headers.get("ETag", "").strip().strip('"')
        version_id = answer.headers.get("x-ms-version-id", "")
        if not _NUMBER.fullmatch(size) or not _ETAG.fullmatch(etag):
            raise RemoteProtocolError(f"looking at {shown}: it has no size, or no ETag")
        if _VERSION_ID.fullmatch(version_id):
            return BucketObject(key, int(size), f"version-id:{version_id}")
        return BucketObject(key, int(size), f'etag:"{etag}"')

    async def wanted(
        self, bucket: str, found: BucketObject, start: int, stop: int, access: Access
    ) -> Wanted:
        """The request for a span; see `BucketAPI`."""
        query: dict[str, str] = {}
        headers = [("x-ms-version", API_VERSION)]
        kind, _, version = found.version.partition(":")
        if kind == "etag" and _ETAG.fullmatch(version.strip('"')):
            headers.append(("If-Match", version))
        elif kind == "version-id" and _VERSION_ID.fullmatch(version):
            query["versionid"] = version
        elif found.version:
            raise RemoteProtocolError(
                f"{self.shown(bucket, found.key)} is planned with a version that is none of Azure's"
            )
        url = self.url(bucket, found.key, query, access)
        authorizer = await self.authorizer(access)
        return Wanted(url, found.size, found.version, start, stop, authorizer, tuple(headers))

    async def refused(self, bucket: str, key: str, access: Access) -> None:
        """Find out why a span was refused; see `BucketAPI`."""
        if access.is_own:
            self._tokens.spoil()
        await self.measure(bucket, key, access)

    def shown(self, bucket: str, key: str) -> str:
        """What people call it."""
        return f"az://{bucket}/{key}"

    # --- asking ---------------------------------------------------------------------------------

    async def ask(
        self,
        method: str,
        url: str,
        access: Access,
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
        *,
        bytes_max: int = 1 << 20,
        sending_s: float = 0.0,
    ) -> Answer:
        """Ask, once more with a new token if it is the agent's own that is refused.

        A request with a body says its `Content-Length` and `Content-Type`: see `SharedKey`.
        """
        said = {"x-ms-version": API_VERSION, **(headers or {})}
        for is_last in (False, True):
            authorizer = await self.authorizer(access)
            answer = await self._web.send(
                method,
                url,
                access=authorizer,
                headers=said,
                body=body,
                bytes_max=bytes_max,
                sending_s=sending_s,
            )
            is_token = isinstance(authorizer, Access) and authorizer.token is not None
            if is_last or answer.status != 401 or not access.is_own or not is_token:
                return answer
            self._tokens.spoil()
        raise AssertionError("the last answer is returned")

    async def authorizer(self, access: Access) -> Authorizer:
        """What to show for `access`, besides a SAS token, which is in the URL."""
        account = self._account
        if access.is_own:
            if account.key is not None:
                return SharedKey(account.name, account.key)
            # A token is not shown where everybody can read it; Azure's own programs refuse too.
            if account.sas is not None or not account.endpoint.startswith("https://"):
                return ANONYMOUS
            return await self._tokens.access()
        if access.username is not None:
            try:
                return SharedKey(access.username, key_of(access.password or ""))
            except ConfigError:
                raise OriginDeniedError(
                    "az:// is opened by a token, or by an account and its key in base64"
                ) from None
        return access

    def url(self, container: str, key: str | None, query: Mapping[str, str], access: Access) -> str:
        """The URL of a blob, or of a container. It may have a SAS token in it: never for a log."""
        if not _CONTAINER.fullmatch(container):
            raise UsageError(f"az://{container[:80]} is not what a container can be called")
        place = f"{self._account.endpoint}/{container}"
        if key is not None:
            place += "/" + quote(key, safe="/-._~")
        pairs = [f"{quote(name, safe='')}={quote(text, safe='')}" for name, text in query.items()]
        if access.is_own and self._account.key is None and self._account.sas is not None:
            pairs.append(self._account.sas)
        return f"{place}?{'&'.join(pairs)}" if pairs else place


def check_answer(answer: Answer, doing: str) -> None:
    """Raise what Azure's answer means, in its own codes where they say more than the status.

    Raises:
        OriginDeniedError, OriginNotFoundError, OriginChangedError, OriginUnavailableError,
        RemoteProtocolError
    """
    code = answer.headers.get("x-ms-error-code", "")
    if not _CODE.fullmatch(code):
        code = ""
    if code in _REFUSALS:
        raise OriginDeniedError(f"{doing}: the origin answered {answer.status} ({code})")
    if answer.status == 412:
        raise OriginChangedError(f"{doing}: it was replaced meanwhile")
    check_status(answer, f"{doing} ({code})" if code else doing)


def parse_page(data: bytes, shown: str) -> ObjectPage:
    """Read a page of a listing.

    Raises:
        RemoteProtocolError: it is none.
    """
    try:
        top = xml_tree.parse(data)
        if top.name != "EnumerationResults":
            raise ValueError("it is no listing")
        objects = tuple(_blob_of(blob) for blobs in top.all("Blobs") for blob in blobs.all("Blob"))
        marker = top.find("NextMarker") or None
        if marker is not None and len(marker) > _MARKER_CHARS_MAX:
            raise ValueError("the marker of the next page is too long")
    except ValueError as exc:
        raise RemoteProtocolError(f"reading the listing of {shown}") from exc
    return ObjectPage(objects, marker)


def _blob_of(blob: xml_tree.Element) -> BucketObject:
    name = next((element.text for element in blob.all("Name")), "")
    size = blob.find("Properties", "Content-Length") or ""
    etag = (blob.find("Properties", "Etag") or "").strip('"')
    if not name or not _NUMBER.fullmatch(size) or not _ETAG.fullmatch(etag):
        raise ValueError("a blob without a name, a size or an ETag")
    is_directory = blob.find("Properties", "ResourceType") == "directory"
    if is_directory or (blob.find("Metadata", "hdi_isfolder") or "").lower() == "true":
        name = name.rstrip("/") + "/"  # It is no file.
    return BucketObject(name, int(size), f'etag:"{etag}"')
