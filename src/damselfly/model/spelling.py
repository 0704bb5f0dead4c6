"""The one name of a place, however its ref is spelt: for rules that nobody may get around.

A permission may be narrow: who spells a ref otherwise is refused, and asks. A duty may not: who
spells it otherwise would be free of it. So plain and encrypted, default ports, a dot at the end of
a host, upper case, revisions, tags, queries and the web addresses of hubs and buckets are one.
"""

import re

from damselfly.model.ref import Ref

EVERYWHERE = "*"

_HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_HUB_KINDS = frozenset({"datasets", "spaces"})
_HUB_VERBS = frozenset({"resolve", "tree", "blob", "raw"})
_BUCKET_HOST = re.compile(r"(.+)\.s3(?:[.-][a-z0-9-]+)*\.amazonaws\.com(?:\.cn)?")
_BUCKET_PATH_HOST = re.compile(r"s3(?:[.-][a-z0-9-]+)*\.amazonaws\.com(?:\.cn)?")
_CONTAINER_HOST = re.compile(r"[a-z0-9]+\.blob\.core\.windows\.net")
_GS_HOSTS = frozenset({"storage.googleapis.com", "storage.cloud.google.com"})
_DOCKER_HOSTS = frozenset({"index.docker.io", "registry-1.docker.io", "docker.io"})


def spelling(ref: Ref) -> str:
    """The name of the place that a ref means; never with a slash at the end."""
    names = [name for name in ref.decoded_path.split("/") if name]
    match ref.scheme:
        case "http" | "https":
            return _web(ref.netloc, names)
        case "hf":
            return _hub([ref.netloc, *names])
        case "oci":
            return _joined("oci", _registry(ref.netloc), _untagged(names))
        case "file":
            return "/".join(["file://", *names])
        case _:
            return _joined(ref.scheme, ref.netloc.lower(), names)


def _web(netloc: str, names: list[str]) -> str:
    host, colon, port = netloc.partition(":") if not netloc.startswith("[") else (netloc, "", "")
    host = host.rstrip(".")
    if port in {"", "80", "443"}:
        if host in _HUB_HOSTS:
            return _hub(names)
        if match := _BUCKET_HOST.fullmatch(host):
            return _joined("s3", match[1], names)
        if _BUCKET_PATH_HOST.fullmatch(host):
            return _joined("s3", "", names)
        if host in _GS_HOSTS:
            return _joined("gs", "", names)
        if _CONTAINER_HOST.fullmatch(host):
            return _joined("az", "", names)
        colon = port = ""
    return _joined("https", f"{host}{colon}{port}", names)


def _hub(names: list[str]) -> str:
    names = [name.casefold() for name in names]
    at = 2 if names and names[0] in _HUB_KINDS else 1
    if len(names) > at:
        names[at] = names[at].partition("@")[0]
    if len(names) > at + 1 and names[at + 1] in _HUB_VERBS:
        del names[at + 1 : at + 3]
    return _joined("hf", "", names)


def _registry(netloc: str) -> str:
    host = netloc.removesuffix(":443").removesuffix(":80").rstrip(".")
    return "docker.io" if host in _DOCKER_HOSTS else host


def _untagged(names: list[str]) -> list[str]:
    path = "/".join(names).partition("@")[0]
    head, slash, last = path.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}".split("/")


def _joined(scheme: str, host: str, names: list[str]) -> str:
    return f"{scheme}://" + "/".join(part for part in (host, *names) if part)
