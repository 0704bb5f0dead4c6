"""What an `oci://` ref names, and where its registry is asked. Pure.

    oci://registry/repository               the tag `latest`
    oci://registry/repository:tag
    oci://registry/repository@sha256:...    this very manifest, also after a tag

A registry speaks HTTPS. Only one on a loopback address, or one that the agent's configuration
lists, is asked in plain HTTP. `docker.io` is asked where it really is, and a name of one word there
means one of the official ones, as its users are used to.
"""

import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from ipaddress import ip_address

from damselfly.errors import UsageError
from damselfly.model.ref import Ref

LATEST = "latest"
REPOSITORY_CHARS_MAX = 255

DOCKER = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
"""Names of one registry."""
_DOCKER_API = "registry-1.docker.io"
_WORD = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_WORD}(?:/{_WORD})*", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class OCIName:
    """A repository of a registry, and a tag or a digest in it, as they are in the ref."""

    registry: str
    typed: str
    tag: str = LATEST
    digest: str | None = None

    @classmethod
    def of(cls, ref: Ref) -> "OCIName":
        """Read a ref.

        Raises:
            UsageError: it names no repository, or a tag or digest that cannot be.
        """
        assert ref.scheme == "oci"
        path, at, digest = ref.decoded_path.strip("/").partition("@")
        if at and not _DIGEST.fullmatch(digest):
            raise UsageError(f"{ref.safe}: what follows @ is not sha256: and 64 hex digits")
        # A colon of a tag comes after the last slash; no repository has one.
        repository, colon, tag = path.partition(":")
        if colon and not _TAG.fullmatch(tag):
            raise UsageError(f"{ref.safe}: {tag[:90]!r} is not a tag")
        if len(repository) > REPOSITORY_CHARS_MAX or not _REPOSITORY.fullmatch(repository):
            raise UsageError(
                f"{ref.safe} names no repository: words of lower case, as in oci://host/org/name:tag"
            )
        return cls(ref.netloc, repository, tag or LATEST, digest or None)

    @property
    def repository(self) -> str:
        """What the registry calls the repository."""
        is_official = self.registry in DOCKER and "/" not in self.typed
        return f"library/{self.typed}" if is_official else self.typed

    @property
    def reference(self) -> str:
        """What the registry is asked for."""
        return self.digest or self.tag

    @property
    def host(self) -> str:
        """The host that is really asked, with its port if it has one."""
        return _DOCKER_API if self.registry in DOCKER else self.registry

    def at(self, digest: str) -> "OCIName":
        """The manifest of this digest in the same repository."""
        return OCIName(self.registry, self.typed, self.tag, digest)

    @property
    def pinned(self) -> str:
        """The ref of what has a digest, of the very repository that was typed, without the tag."""
        assert self.digest is not None
        return f"oci://{self.registry}/{self.typed}@{self.digest}"

    @property
    def shown(self) -> str:
        """For people."""
        mark = f"@{self.digest}" if self.digest else f":{self.tag}"
        return f"oci://{self.registry}/{self.typed}{mark}"

    def address(self, insecure: AbstractSet[str]) -> str:
        """The scheme and host to ask; plain HTTP only where that is allowed."""
        is_plain = self.registry in insecure or is_loopback(self.host)
        return f"{'http' if is_plain else 'https'}://{self.host}"


def is_loopback(host: str) -> bool:
    """Whether a host, which may have a port, is this machine by its very name."""
    name = host.rpartition(":")[0] if re.search(r":[0-9]+$", host) else host
    if name == "localhost":
        return True
    try:
        return ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
