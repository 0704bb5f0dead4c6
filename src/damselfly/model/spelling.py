"""The names of a place, however its ref is spelt: for rules that nobody may get around.

A permission may be narrow: who spells a ref otherwise is refused, and asks. A duty may not: who
spells it otherwise would be free of it. So plain and encrypted, default ports, a dot at the end of
a host, upper case, the ways to write an address, revisions, tags, queries, and the web addresses of
hubs, registries and buckets are one. The names of a ref are read as its origin reads them
(`hub_parts.py`, `oci_name.py`).

A name that ends with a slash stands for something below it that cannot be told from the ref: a rule
about anything there may be about it.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from damselfly.errors import UsageError
from damselfly.model.hub_parts import KINDS, SPECIAL, HubParts
from damselfly.model.hub_ref import HubRef, is_repository
from damselfly.model.oci_name import DOCKER, OCIName
from damselfly.model.ref import Ref

EVERYWHERE = "*"
DOCKER_PREFIX = "oci://docker.io/"
OFFICIAL = "library"

_HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co", "www.hf.co"})
_HUB_STORES = re.compile(r".+\.(?:huggingface\.co|hf\.co)")
"""They have contents by their digests, so it is hidden whose they are."""
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_HUB_VERBS = frozenset({"resolve", "tree", "blob", "raw", "revision", "commit", "commits"})
_AMAZON = r"s3(?:express)?(?:[.-][a-z0-9-]+)*\.amazonaws\.(?:com|com\.cn|eu)"
_BUCKET_HOST = re.compile(rf"(?:(.+)\.)?{_AMAZON}")
_ENDPOINT_LABELS = re.compile(r"(?:(.*)\.)?bucket\.vpce-[a-z0-9-]+")
_ACCESS_POINT = re.compile(r".*(?:accesspoint|s3-object-lambda|s3-outposts).*")
_GS_HOST = re.compile(
    r"(?:(.+)\.)?(?:storage|commondatastorage|storage-download|storage\.[a-z0-9-]+(?:\.rep)?)"
    r"\.googleapis\.com|(?:(.+)\.)?storage\.cloud\.google\.com"
)
_GS_API_HOSTS = frozenset({"www.googleapis.com", "content-storage.googleapis.com"})
_CONTAINER_HOST = re.compile(
    r"[a-z0-9]+(?:-secondary)?(?:\.z[0-9]+)?\.(?:blob|dfs)(?:\.privatelink)?"
    r"\.(?:core\.windows\.net|core\.chinacloudapi\.cn|core\.usgovcloudapi\.net|storage\.azure\.net)"
    r"|[a-z0-9]+(?:-secondary)?\.privatelink\.(?:blob|dfs)\.core\.windows\.net"
)
_REGISTRY_VERBS = frozenset({"blobs", "manifests", "tags", "referrers"})
_DEFAULT_PORTS = {"sftp": {"22"}, "ftp": {"21"}}
_WEB_PORTS = frozenset({"", "80", "443"})
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where else than at their own addresses the hub and buckets are asked, by scheme."""

    places: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    """A scheme, a host with its port, and the names of a path."""

    def also(self, scheme: str, address: str) -> "Endpoints":
        """Know one more, by its address in the web.

        Raises:
            UsageError: it is none.
        """
        ref = Ref.parse(address)
        host, port = _host_of(ref.netloc)
        names = tuple(name for name in ref.decoded_path.split("/") if name)
        return Endpoints((*self.places, (scheme, _netloc(host, port), names)))

    def names(self, host: str, port: str, names: list[str]) -> list[str]:
        """What a web address is at the endpoints that it leads to."""
        found: list[str] = []
        for scheme, place, above in self.places:
            bucket, dot, _ = host.partition(f".{place.partition(':')[0]}")
            is_bucket = dot and scheme in _BUCKETS and _netloc(host, port) == f"{bucket}.{place}"
            if not is_bucket and not _is_host(scheme, _netloc(host, port), place):
                continue
            if tuple(names[: len(above)]) == above:
                below = names[len(above) :]
                found += _bucket(scheme, [bucket, *below]) if is_bucket else _spelt(scheme, below)
        return found


NO_ENDPOINTS = Endpoints()


def spellings(ref: Ref, endpoints: Endpoints = NO_ENDPOINTS) -> tuple[str, ...]:
    """The names of the place that a ref means, at least one; see the module."""
    names = [name for name in ref.decoded_path.split("/") if name]
    match ref.scheme:
        case "http" | "https":
            return tuple(dict.fromkeys(_web(*_host_of(ref.netloc), names, endpoints)))
        case "hf":
            parts = HubParts.of([ref.netloc, *names])
            try:
                HubRef.of(ref)
            except UsageError:
                return _hub_name(parts), "hf://"
            return (_hub_name(parts),)
        case "oci":
            return tuple(_artifact(ref))
        case _:
            return (prefix_spelling(ref),)


def prefix_spelling(ref: Ref, endpoints: Endpoints = NO_ENDPOINTS) -> str:
    """The name of what a prefix is about: it may end anywhere, and need not be a place."""
    names = [name for name in ref.decoded_path.split("/") if name]
    match ref.scheme:
        case "http" | "https":
            host, port = _host_of(ref.netloc)
            return _web(host, port, names, endpoints)[0]
        case "hf":
            return _hub_name(HubParts.of([ref.netloc, *names]))
        case "oci":
            return _joined("oci", _registry(ref.netloc), _untagged(names))
        case "file":
            return "/".join(["file://", *names])
        case "s3" | "gs" | "az":
            return _joined(ref.scheme, ref.netloc.lower(), names)
        case _:
            host, port = _host_of(ref.netloc)
            port = "" if port in _DEFAULT_PORTS.get(ref.scheme, set()) else port
            return _joined(ref.scheme, f"{host}:{port}" if port else host, names)


def official(place: str) -> str:
    """The other name of a prefix of one word at `docker.io`: there it may be one of its images."""
    word = place.removeprefix(DOCKER_PREFIX).rstrip("/")
    if not place.startswith(DOCKER_PREFIX) or not word or "/" in word or word == OFFICIAL:
        return ""
    return f"{DOCKER_PREFIX}{OFFICIAL}/{place.removeprefix(DOCKER_PREFIX)}"


# --- the web ----------------------------------------------------------------------------------


def _web(host: str, port: str, names: list[str], endpoints: Endpoints) -> list[str]:
    found = endpoints.names(host, port, names)
    if port in _WEB_PORTS:
        found += _known(host, names)
    is_whole = bool(found)
    if names[:1] == ["v2"]:
        at = next((at for at in range(len(names) - 1, 1, -1) if names[at] in _REGISTRY_VERBS), 0)
        if at:
            registry = _registry(host + (f":{port}" if port else ""))
            found.append(_joined("oci", registry, names[1:at]))
    if not is_whole:
        found.insert(0, _joined("https", _netloc(host, port), names))
    if _HUB_STORES.fullmatch(host) and host not in _HUB_HOSTS:
        found.append("hf://")
    return found


def _known(host: str, names: list[str]) -> list[str]:
    """What a web address is where hubs and buckets have their own."""
    if host in _HUB_HOSTS:
        return _hub(names)
    if match := _BUCKET_HOST.fullmatch(host):
        bucket = match[1] or ""
        if _ACCESS_POINT.fullmatch(host):
            return ["s3://"]
        if through := _ENDPOINT_LABELS.fullmatch(bucket):
            bucket = through[1] or ""
        return _bucket("s3", [bucket, *names])
    if host in _GS_API_HOSTS:
        return _google(names) if "b" in names else []
    if match := _GS_HOST.fullmatch(host):
        bucket = match[1] or match[2]
        return _bucket("gs", [bucket, *names]) if bucket else _google(names)
    if _CONTAINER_HOST.fullmatch(host):
        return _bucket("az", names)
    return []


def _hub(names: list[str]) -> list[str]:
    """A path of the hub's web: a repository, or its files; else anything of it."""
    names = list(names)
    is_api = names[:1] == ["api"]
    if is_api:
        del names[0]
        if names[:1] == ["resolve-cache"]:
            del names[0]
            # kind, organisation, name, commit: as if it said `resolve` before the commit.
            at = next((at for at, name in enumerate(names[:4]) if _COMMIT.fullmatch(name)), 3)
            names.insert(at, "resolve")
        if names[:1] and names[0].casefold() not in KINDS:
            return ["hf://"]
    has_kind = bool(names) and names[0].casefold() in KINDS
    kind = names.pop(0).casefold() if has_kind else KINDS[0]
    taken = 1 if len(names) > 1 and names[1] in _HUB_VERBS else 2
    repository = [name.partition("@")[0].removesuffix(".git") for name in names[:taken]]
    rest = names[taken:]
    if rest and rest[0] in _HUB_VERBS:
        del rest[0]
        del rest[: 3 if rest[:1] == ["refs"] and rest[1:2] and rest[1] in SPECIAL else 1]
    elif is_api:
        rest = []
    if not repository:
        return [f"hf://{kind}/" if has_kind else "hf://"]
    if not is_repository(repository):
        return [_hub_place(kind, repository, rest), "hf://"]
    return [_hub_place(kind, repository, rest)]


def _google(names: list[str]) -> list[str]:
    """A path of Google's: of the API that knows JSON, or of the other one."""
    names = list(names)
    if names[:1] and names[1:2] == ["storage"] and names[3:4] == ["b"]:
        del names[0]
    if names[:1] == ["storage"] and names[2:3] == ["b"]:
        names = names[3:]
        if names[1:2] == ["o"]:
            del names[1]
    elif names[:1] == ["batch"]:
        return ["gs://"]
    return _bucket("gs", names)


def _bucket(scheme: str, names: list[str]) -> list[str]:
    names = [name for name in names if name]
    return [_joined(scheme, names[0].lower() if names else "", names[1:])]


_BUCKETS = frozenset({"s3", "gs"})


def _spelt(scheme: str, names: list[str]) -> list[str]:
    """What a path below an endpoint is."""
    match scheme:
        case "hf":
            return _hub(names)
        case "gs":
            return _google(names)
        case _:
            return _bucket(scheme, names)


def _is_host(scheme: str, here: str, place: str) -> bool:
    if here == place:
        return True
    account, dot, rest = place.partition(".")
    return scheme == "az" and bool(dot) and here == f"{account}-secondary.{rest}"


# --- hubs and registries ----------------------------------------------------------------------


def _hub_name(parts: HubParts) -> str:
    return _hub_place(parts.kind, list(parts.repository), list(parts.inside))


def _hub_place(kind: str, repository: list[str], inside: list[str]) -> str:
    return _joined("hf", kind, [*(name.casefold() for name in repository), *inside])


def _artifact(ref: Ref) -> list[str]:
    registry = _registry(ref.netloc)
    try:
        name = OCIName.of(ref)
    except UsageError:
        return [prefix_spelling(ref), f"oci://{registry}/"]
    place = _joined("oci", registry, name.repository.split("/"))
    place = official(place) or place
    host, port = _host_of(name.host)
    repository = place.split("/")[3:]
    return [place, _joined("https", _netloc(host, port), ["v2", *repository])]


def _registry(netloc: str) -> str:
    host, port = _host_of(netloc)
    host = host if port in _WEB_PORTS else f"{host}:{port}"
    return "docker.io" if host in DOCKER else host


def _untagged(names: list[str]) -> list[str]:
    path = "/".join(names).partition("@")[0]
    head, slash, last = path.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}".split("/")


# --- hosts ------------------------------------------------------------------------------------


def _host_of(netloc: str) -> tuple[str, str]:
    """A host in one spelling, and its port as it is written."""
    host, port = netloc, ""
    if not netloc.endswith("]") and ":" in netloc:
        host, _, port = netloc.rpartition(":")
    return _one_host(host.lower()), port


def _one_host(host: str) -> str:
    if host.startswith("["):
        try:
            address = IPv6Address(host[1:-1])
        except ValueError:
            return host
        return str(address.ipv4_mapped) if address.ipv4_mapped else f"[{address.compressed}]"
    host = host.rstrip(".")
    return str(_ipv4(host) or host)


def _ipv4(host: str) -> IPv4Address | None:
    """An address as `inet_aton` reads it: one to four numbers, the last for all that is left."""
    parts = host.split(".")
    if len(parts) > 4 or not all(_NUMBER.fullmatch(part) and len(part) <= 40 for part in parts):
        return None
    try:
        *firsts, last = [_number(part) for part in parts]
    except ValueError:
        return None
    if any(number > 255 for number in firsts) or last >= 1 << 8 * (4 - len(firsts)):
        return None
    for at, number in enumerate(firsts):
        last |= number << 8 * (3 - at)
    return IPv4Address(last)


def _number(text: str) -> int:
    if text.startswith("0x"):
        return int(text[2:] or "0", 16)
    return int(text, 8) if text.startswith("0") and text != "0" else int(text)


def _netloc(host: str, port: str) -> str:
    return host if port in _WEB_PORTS else f"{host}:{port}"


def _joined(scheme: str, host: str, names: list[str]) -> str:
    return f"{scheme}://" + "/".join(part for part in (host, *names) if part)
