"""Refs: where an artifact is found, as somebody types it.

    file:///models/llama          a directory or a file that the asked agent can read
    https://host/models/llama/    a directory
    https://host/llama.gguf       a file
    hf://org/name@rev/sub/dir     a repository of the Hugging Face Hub (`model/hub.py`)
    s3://bucket/prefix/           and gs://, az://: objects of a bucket
    oci://registry/repo:tag       an artifact of a registry
    sftp://host/models/           and whatever else there is an origin for
    ...#blake3:<hex>              and it must be this artifact

`str(ref)` is canonical: scheme and host in lower case, no default port, `.` and `..` resolved, the
path percent-encoded in one way. A ref may carry a presigned query; `safe` is the form for logs and
errors, and `named` the one for peers and the store. Credentials in a ref are refused: refs travel
to peers, and end up in shell histories.
"""

import posixpath
import re
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from urllib.parse import quote, unquote, unquote_to_bytes

from damselfly.errors import UsageError
from damselfly.model.digest import Digest
from damselfly.model.hub_parts import KINDS, HubParts
from damselfly.model.schemes import SCHEMES

REF_CHARS_MAX = 4096

_URL = re.compile(r"(?s)([a-z][a-z0-9+.-]*)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#(.*))?")
_HOST = re.compile(
    r"(?=[^\[]{1,254}$)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?|\[[0-9a-f:.]{2,45}\]", re.ASCII
)
"""As name servers have it: no empty label and none of more than 63 characters."""
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PLACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}", re.ASCII)
"""An organisation, a bucket or a container: no host, and upper case means something."""
_DEFAULT_PORTS = {"http": 80, "https": 443}
_PLACED = frozenset({"hf", "s3", "gs", "az"})
_WEB = frozenset({"http", "https"})
_REPOSITORIES = frozenset({"hf", "oci"})
_NAMED = re.compile(r"blake3=[0-9a-f]{64}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_OCI_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_PATH_SAFE = "/-._~!$&'()*+,;=:@"
_QUERY_SAFE = _PATH_SAFE + "?%"


@dataclass(frozen=True, slots=True)
class Ref:
    """A ref that was parsed. `path` is as in a URL: percent-encoded, and starts with `/`."""

    scheme: str
    netloc: str
    path: str
    query: str = ""
    pin: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> "Ref":
        """Read a ref.

        Raises:
            UsageError: not a ref, a scheme that is not spoken, or credentials inside.
        """
        if len(text) > REF_CHARS_MAX or not text.isprintable() or not text:
            raise UsageError(f"a ref is one line of at most {REF_CHARS_MAX} characters")
        scheme, separator, rest = text.partition("://")
        if not re.split(r"[/?#]", rest, maxsplit=1)[0].isascii():
            raise UsageError(f"{_hidden(text)!r} names no host: one that is not ASCII is xn--...")
        match = _URL.fullmatch(f"{scheme.lower()}{separator}{rest}")
        if match is None:
            raise UsageError(f"{_hidden(text)!r} is not a ref: {_known()}, as in file:///models/x")
        scheme, netloc, path, query, fragment = match.groups(default="")
        if "@" in netloc:
            raise UsageError(f"credentials in a {scheme}:// ref: refs are no place for secrets")
        shown = f"{scheme}://{netloc}{path}"[:200]
        if scheme == "file":
            if netloc.lower() not in {"", "localhost"} or not path or query:
                raise UsageError(f"{shown!r} is not a file ref: three slashes and an absolute path")
            netloc = ""
        elif query and scheme not in {"http", "https"}:
            raise UsageError(f"{shown!r} has a query: only http(s):// refs may")
        elif scheme in _PLACED:
            if not _PLACE.fullmatch(netloc):
                raise UsageError(f"{shown!r} names no {_place_of(scheme)}")
        else:
            netloc = _netloc(scheme, netloc.lower(), shown)
        if scheme in _REPOSITORIES and ".." in map(unquote, path.split("/")):
            # It would lead out of a revision or of a repository, into another one.
            raise UsageError(f"{shown!r} has a .. in it: write where it leads")
        return cls(
            scheme,
            netloc,
            _path(path or "/", shown),
            quote(query, safe=_QUERY_SAFE),
            _pin(fragment, shown) if fragment else None,
        )

    @property
    def is_directory(self) -> bool:
        """Written with a slash at the end: surely a directory. Without one it may be either."""
        return self.path.endswith("/")

    @property
    def as_directory(self) -> "Ref":
        """The same with a slash at the end."""
        return self if self.is_directory else replace(self, path=self.path + "/")

    @property
    def as_file(self) -> "Ref":
        """The same without a slash at the end."""
        return replace(self, path=self.path.rstrip("/")) if self.path.rstrip("/") else self

    @property
    def unpinned(self) -> "Ref":
        """Where to look, without what must be found there."""
        return replace(self, pin=None)

    @property
    def named(self) -> "Ref":
        """The same for others, and for what is kept: a digest stands for the query.

        A query may be a signature, so it stays with who was given it; refs that differ in it are
        different refs all the same.
        """
        if not self.query or _NAMED.fullmatch(self.query):
            return self
        return replace(self, query=f"blake3={Digest.of(self.query.encode()).hex}")

    def place_of(self, text: str) -> "Ref":
        """The place that a plan of this ref names; a query of ours that it only knows is put back.

        Raises:
            UsageError: it names none.
        """
        place = Ref.parse(text).unpinned
        if self.query and place.query == self.named.query:
            return replace(place, query=self.query)
        return place

    @property
    def is_immutable(self) -> bool:
        """Whether it names one revision for ever: a commit of a hub, a digest of a registry."""
        revision = self._repository[1]
        if self.scheme == "hf":
            return _COMMIT.fullmatch(revision) is not None
        return self.scheme == "oci" and _OCI_DIGEST.search(revision) is not None

    def is_trusted_with(self, place: "Ref") -> bool:
        """Whether what proves who asks for this ref may be shown at `place`, where its files are.

        The plan of a ref may come from others, and lead anywhere: the same host of the web, the
        same bucket, the same repository are trusted, and nothing else.
        """
        if self.scheme == place.scheme == "hf":
            return place._repository[0] == self._repository[0]
        if place.netloc != self.netloc:
            return False
        if self.scheme in _WEB:
            return place.scheme in {self.scheme, "https"}
        return place.scheme == self.scheme and place._repository[0] == self._repository[0]

    def leads_to(self, place: "Ref") -> bool:
        """Whether `place` is this ref or lies below it, so that who may read it has proved this."""
        if not self.is_trusted_with(place) or place.query != self.query:
            return False
        if self.is_immutable and place._repository[1] != self._repository[1]:
            return False
        ours, theirs = self._repository[2], place._repository[2]
        return theirs == ours or f"{theirs}/".startswith(f"{ours.rstrip('/')}/")

    @property
    def repository(self) -> str:
        """The repository of a hub or a registry, without a revision; elsewhere nothing."""
        return self._repository[0].strip("/").removeprefix(f"{KINDS[0]}/")

    @property
    def _repository(self) -> tuple[str, str, str]:
        """What the path says: the repository, its revision, and where in it.

        Elsewhere than on hubs and registries everything is where.
        """
        if self.scheme == "hf":
            parts = HubParts.of([self.netloc, *self.decoded_path.split("/")])
            repository = "/".join([parts.kind, *parts.repository])
            return repository, parts.revision, "/" + "/".join(parts.inside)
        if self.scheme == "oci":
            before, slash, last = self.path.rstrip("/").rpartition("/")
            match = re.match(r"[^:@]*", last)
            assert match is not None, "it matches nothing at all, too"
            if self.netloc == "docker.io" and not before:
                before = "/library"  # Where its own images lie; `model/oci_name.py` says it so.
            return before + slash + match[0], last[match.end() :], "/"
        return "", "", self.path

    @property
    def name(self) -> str:
        """The last name in the path, decoded: what a single file is called."""
        return _decoded(self.path.rstrip("/").rpartition("/")[2])

    @property
    def decoded_path(self) -> str:
        """The path as text, whatever the scheme."""
        return _decoded(self.path)

    @property
    def local_path(self) -> str:
        """The path on this machine that a `file://` ref means."""
        assert self.scheme == "file"
        return self.decoded_path

    @property
    def location(self) -> str:
        """The URL to ask, with its query and without the pin. Never for a log."""
        return f"{self.scheme}://{self.netloc}{self.path}" + (
            f"?{self.query}" if self.query else ""
        )

    @property
    def safe(self) -> str:
        """For people and logs: the values of the query are hidden, they may be signatures."""
        return _safe(str(self))

    def file_location(self, path: str) -> str:
        """The URL of the file `path` below this directory."""
        assert self.is_directory
        return replace(self, path=self.path + quote(path, safe=_PATH_SAFE)).location

    def __str__(self) -> str:
        return self.location + (f"#{self.pin}" if self.pin else "")


def _safe(text: str) -> str:
    body, mark, pin = text.partition("#")
    place, question, query = body.partition("?")
    if _NAMED.fullmatch(query):
        return text  # A digest tells nobody what it is of.
    if question:
        keys = [pair.partition("=") for pair in query.split("&")]
        place += "?" + "&".join(f"{key}=..." if equals else "..." for key, equals, _ in keys)
    return place + mark + pin


def _hidden(text: str) -> str:
    # Something that did not parse may hold anything: show it up to where secrets begin.
    head = re.split(r"[?#]", text, maxsplit=1)[0]
    return re.sub(r"//[^/]*@", "//...@", head)[:120]


def _known() -> str:
    return "known are " + ", ".join(f"{scheme}://" for scheme in SCHEMES)


def _place_of(scheme: str) -> str:
    return "organisation" if scheme == "hf" else "bucket"


def _netloc(scheme: str, netloc: str, shown: str) -> str:
    host, colon, port = netloc.rpartition(":") if re.search(r":\d*$", netloc) else (netloc, "", "")
    if not _HOST.fullmatch(host) or not _is_address(host):
        raise UsageError(f"{shown!r} names no host")
    if not colon or not port:
        return host
    if not port.isascii() or len(port) > 5 or not 1 <= int(port) <= 65535:
        raise UsageError(f"{shown!r} has a port that cannot be")
    return host if int(port) == _DEFAULT_PORTS.get(scheme) else f"{host}:{int(port)}"


def _is_address(host: str) -> bool:
    """Whether what is in brackets is an address; what is in none may be anything."""
    if not host.startswith("["):
        return True
    try:
        IPv6Address(host[1:-1])
    except ValueError:
        return False
    return True


def _path(path: str, shown: str) -> str:
    if _BAD_PERCENT.search(path):
        raise UsageError(f"{shown!r} has a % that stands for nothing: write %25")
    try:
        names = [_decoded(name) for name in path.split("/")]
    except UnicodeDecodeError:
        raise UsageError(f"{shown!r} does not decode to UTF-8") from None
    for name in names:
        if "/" in name or not name.isprintable():
            raise UsageError(f"{shown!r} has a slash or a control character in a name")
    is_directory = names[-1] in {"", ".", ".."}
    resolved = posixpath.normpath("/".join(names)).lstrip("/")
    quoted = "/" + quote(resolved, safe=_PATH_SAFE)
    return quoted + "/" if is_directory and quoted != "/" else quoted


def _decoded(name: str) -> str:
    return unquote_to_bytes(name).decode()


def _pin(fragment: str, shown: str) -> Digest:
    try:
        return Digest.parse(fragment)
    except UsageError as exc:
        raise UsageError(f"what follows # in {shown!r} pins an artifact") from exc
