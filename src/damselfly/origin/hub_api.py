"""The Hugging Face hub's HTTP API, as far as origins and pushes ask it: commits, trees, files.

Everything that it answers is bounded before it is believed: a mirror is somebody else's machine.
What goes wrong is told with what to do about it, because "401" sends people looking for a bug.
"""

import re
from dataclasses import dataclass
from typing import cast
from urllib.parse import quote, urlsplit

from yarl import URL

from damselfly.errors import (
    DamselflyError,
    ManifestError,
    OriginChangedError,
    OriginDeniedError,
    OriginNotFoundError,
    RemoteProtocolError,
)
from damselfly.model.chunker import CHUNK_BYTES
from damselfly.model.hub_ref import HubRef, is_commit
from damselfly.model.plan import CHUNKS_MAX, FILES_MAX
from damselfly.origin.access import ANONYMOUS, Access
from damselfly.origin.answers import decoded, fields_of
from damselfly.origin.hub_environment import HubEnvironment, is_below
from damselfly.origin.port import OriginLimits
from damselfly.origin.renewed import Address
from damselfly.origin.web import Answer, Web, check_status, location_of, redirected

FILE_BYTES_MAX = CHUNKS_MAX * CHUNK_BYTES
PAGES_MAX = 4096
"""The hub says 1,000 files a page, or 100 where it says more of each."""
TREE_BYTES_MAX = 128 << 20
"""100,000 files with names of 255 bytes, and twice what the hub says of each."""

_NEXT = re.compile(r'<([^<>\s]{1,4096})>\s*;\s*rel="?next"?', re.ASCII)
_OID = re.compile(r"[0-9a-f]{40}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NO_HEAD = frozenset({405, 501})


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a tree; `oid` is git's name of what lies in the repository itself."""

    path: str
    size: int
    oid: str
    sha256: str | None
    """Of a file that is kept outside of the repository (LFS): its content."""

    @property
    def version(self) -> str:
        """What changes whenever the content does."""
        return f"blob:{self.oid}" if self.sha256 is None else f"lfs:{self.sha256}"


class HubAPI:
    """One hub. Belongs to one event loop; what it is asked for is asked with the `Access` given."""

    def __init__(self, web: Web, limits: OriginLimits, environment: HubEnvironment) -> None:
        self._web = web
        self._limits = limits
        self._environment = environment

    @property
    def endpoint(self) -> str:
        """Where the hub is."""
        return self._environment.endpoint

    async def commit(self, place: HubRef, access: Access) -> str:
        """Find the commit that the revision of a place is now."""
        if place.is_pinned:
            return place.revision
        doing = f"looking for the revision {place.revision} of {place.shown}"
        url = f"{self._api(place)}/revision/{quote(place.revision, safe='')}?expand=sha"
        answer = await self._asked(url, place, access, doing)
        commit = fields_of(await decoded(answer.body, doing), doing).get("sha")
        if type(commit) is not str or not is_commit(commit):
            raise RemoteProtocolError(f"{doing}: the hub names no commit")
        return commit

    async def tree(
        self, place: HubRef, commit: str, access: Access, *, inside: str, is_deep: bool = True
    ) -> list[Entry]:
        """List the files of a directory of a commit, and of those below it.

        Raises:
            ManifestError: it has more than an artifact may have.
        """
        doing = f"listing {place.shown} at {commit[:12]}"
        path = f"/{quote(inside, safe='/')}" if inside else ""
        deep = "true" if is_deep else "false"
        url = f"{self._api(place)}/tree/{commit}{path}?recursive={deep}&expand=false"
        found: dict[str, Entry] = {}
        seen: set[str] = set()
        pages: set[str] = set()
        bytes_left = TREE_BYTES_MAX
        while url:
            pages.add(url)
            answer = await self._asked(url, place, access, doing)
            bytes_left -= len(answer.body)
            count = len(seen)
            await self._add(answer, doing, found, seen)
            url = _next(answer, self.endpoint, doing)
            if url and (len(seen) == count or url in pages):
                raise RemoteProtocolError(f"{doing}: the pages of the listing do not end")
            if len(pages) >= PAGES_MAX or bytes_left < 0 or len(found) > FILES_MAX:
                raise ManifestError(f"{doing}: more than an artifact may have")
        if sum(entry.size for entry in found.values()) > FILE_BYTES_MAX:
            raise ManifestError(f"{doing}: more bytes than an artifact may have")
        return list(found.values())

    async def small(
        self, place: HubRef, commit: str, path: str, access: Access, bytes_max: int
    ) -> bytes:
        """Get a small file, whole."""
        doing = f"getting {path} of {place.shown}"
        answer = await self._asked(self.url(place, commit, path), place, access, doing, bytes_max)
        return answer.body

    def url(self, place: HubRef, revision: str, path: str) -> str:
        """The lasting address of a file."""
        kind = "" if place.kind == "models" else f"{place.kind}/"
        at = f"{quote(revision, safe='')}/{quote(path, safe='/')}"
        return f"{self.endpoint}/{kind}{place.repository}/resolve/{at}"

    async def address(self, place: HubRef, commit: str, entry: Entry, access: Access) -> Address:
        """Ask where the bytes of a file are now.

        Raises:
            OriginChangedError: it is not the file that `entry` describes.
        """
        doing = f"looking for {entry.path} of {place.shown}"
        asker = await self._environment.access(access)
        url = self.url(place, commit, entry.path)
        for _ in range(self._limits.redirects_max + 1):
            answer = await self._web.send("HEAD", url, access=asker, follows=False)
            location = location_of(answer)
            if not location and answer.status in _NO_HEAD:
                return Address(url, asker)  # A mirror that only knows GET; it may redirect that.
            if not location:
                self._judge(answer, place, asker, doing)
            _check_linked(answer, commit, entry, doing)
            if not location:
                return Address(url, asker)
            url = str(redirected(URL(url, encoded=True), location, doing))
            if not is_below(url, self.endpoint):
                return Address(url, ANONYMOUS)
        raise RemoteProtocolError(f"{doing}: redirected too often")

    # --- asking ---------------------------------------------------------------------------------

    def _api(self, place: HubRef) -> str:
        return f"{self.endpoint}/api/{place.kind}/{place.repository}"

    async def _asked(
        self, url: str, place: HubRef, access: Access, doing: str, bytes_max: int | None = None
    ) -> Answer:
        asker = await self._environment.access(access)
        room = self._limits.listing_bytes_max if bytes_max is None else bytes_max
        answer = await self._web.send("GET", url, access=asker, bytes_max=room)
        self._judge(answer, place, asker, doing)
        return answer

    async def _add(
        self, answer: Answer, doing: str, found: dict[str, Entry], seen: set[str]
    ) -> None:
        listed = await decoded(answer.body, doing)
        if type(listed) is not list:
            raise RemoteProtocolError(f"{doing}: the hub lists nothing")
        for item in cast("list[object]", listed):
            fields = fields_of(item, doing)
            path = fields.get("path")
            if type(path) is not str:
                raise RemoteProtocolError(f"{doing}: the hub lists something without a path")
            if path in found:
                raise ManifestError(f"{doing}: the path {path[:120]!r} occurs twice")
            seen.add(path)
            if fields.get("type") == "file":
                found[path] = _entry(path, fields, doing)

    def _judge(self, answer: Answer, place: HubRef, access: Access, doing: str) -> None:
        error = refusal(
            answer.status,
            answer.headers.get("X-Error-Code", ""),
            place,
            f"{doing}: the hub answered {answer.status}",
            has_token=access.authorization is not None,
            page=f"{self.endpoint}/{place.shown}",
        )
        if error is not None:
            raise error
        check_status(answer, doing)


def refusal(
    status: int, code: str, place: HubRef, said: str, *, has_token: bool, page: str
) -> DamselflyError | None:
    """What a refusal of the hub means, and what to do about it; None: it is none of its own."""
    token = "the token that was shown" if has_token else "a token"
    match status, code:
        case ((401 | 403), "GatedRepo"):
            return OriginDeniedError(
                f"{said}: {place.shown} is gated: accept its conditions at {page} and show"
                f" {'a token of the account that did' if has_token else 'a token of that account'}"
            )
        case 401, _ if not has_token:
            return OriginDeniedError(
                f"{said}: {place.shown} is private, or there is none of that name: show a token"
                " that may read it (HF_TOKEN where the agent asks for itself, the volume's secret"
                " where a pod does)"
            )
        case ((401 | 403), _):
            return OriginDeniedError(
                f"{said}: {token} may not do this to {place.shown}, or there is none of that name"
            )
        case 404, "RevisionNotFound":
            return OriginNotFoundError(f"{said}: there is no revision {place.revision}")
        case 404, "EntryNotFound":
            return OriginNotFoundError(f"{said}: there is no such file or directory")
        case 404, "RepoNotFound":
            return OriginNotFoundError(
                f"{said}: there is no {place.kind.removesuffix('s')} {place.repository}"
            )
        case _:
            return None


def _next(answer: Answer, endpoint: str, doing: str) -> str:
    """Where the next page of a listing is; empty: there is none."""
    match = _NEXT.search(answer.headers.get("Link", "")[:8192])
    if match is None:
        return ""
    url = str(redirected(URL(answer.url, encoded=True), match[1], doing))
    if not is_below(url, endpoint):
        host = urlsplit(url).netloc
        raise RemoteProtocolError(
            f"{doing}: the next page is said to be on another host, {host[:120]!a}"
        )
    return url


def _entry(path: str, fields: dict[str, object], doing: str) -> Entry:
    size, oid, lfs = fields.get("size"), fields.get("oid"), fields.get("lfs")
    what = f"{doing}: {path[:120]!r}"
    if type(size) is not int or not 0 <= size <= FILE_BYTES_MAX:
        raise RemoteProtocolError(f"{what} has a size that cannot be")
    if type(oid) is not str or not _OID.fullmatch(oid):
        raise RemoteProtocolError(f"{what} has no name in git")
    if lfs is None:
        return Entry(path, size, oid, None)
    pointer = fields_of(lfs, what)
    sha256 = pointer.get("oid")
    if type(sha256) is not str or not _SHA256.fullmatch(sha256) or pointer.get("size") != size:
        raise RemoteProtocolError(f"{what} is kept elsewhere, and not said to be what")
    return Entry(path, size, oid, sha256)


def _check_linked(answer: Answer, commit: str, entry: Entry, doing: str) -> None:
    """Hold what the hub says of a file beside its redirect against what was planned."""
    headers = answer.headers
    size = headers.get("X-Linked-Size", "")
    if size.isascii() and size.isdecimal() and len(size) < 19 and int(size) != entry.size:
        raise OriginChangedError(
            f"{doing}: it has {int(size)} bytes, and {entry.size} were planned"
        )
    etag = headers.get("X-Linked-ETag", "").strip().removeprefix("W/").strip('"')
    expected = entry.sha256 if _SHA256.fullmatch(etag) else entry.oid
    is_name = _SHA256.fullmatch(etag) or _OID.fullmatch(etag)
    if is_name and expected and etag != expected:
        raise OriginChangedError(f"{doing}: it is {etag}, and {expected} was planned")
    there = headers.get("X-Repo-Commit", "")
    if is_commit(commit) and is_commit(there) and there != commit:
        raise OriginChangedError(f"{doing}: the hub answers for the commit {there}, not {commit}")
