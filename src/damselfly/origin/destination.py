"""The port of a push: where it brings a directory, whatever lies behind the scheme.

What is pushed is a **parcel**: every file was hashed before anything is sent, so a destination can
be asked what it has already. It is safe against a reader that looks half-way: an old manifest goes
before the first file that it names is touched, and the new one comes last.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from damselfly.model.manifest import Manifest
from damselfly.model.statement import SIGNATURE_NAME
from damselfly.origin.tree import LocalFile

__all__ = ["SIGNATURE_NAME", "Destination", "Parcel", "PushProgress", "Standing"]


@dataclass(frozen=True, slots=True)
class PushProgress:
    """How far a push has come: what it does, the file at work, and bytes that are done with."""

    doing: str
    path: str
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True)
class Parcel:
    """The files of one push. `files` and `sha256` (hex) are in the order of `manifest.files`."""

    directory: Path
    files: tuple[LocalFile, ...]
    sha256: tuple[str, ...]
    manifest: Manifest
    drops: tuple[str, ...] = ()
    """Files of the destination that have to go before the manifest comes."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a destination has of a parcel already.

    `kept` are the numbers of the files that are there with the same content; `bytes_missing` is
    what is left to send, less than the sizes of the others where a part can be taken from what
    lies there; `is_whole` tells that even the manifest is there and nothing is to be done.
    """

    kept: frozenset[int]
    bytes_missing: int
    is_whole: bool


class Destination(Protocol):
    """One place to push to. Belongs to one event loop, and to one push."""

    @property
    def shown(self) -> str:
        """What people call it: no secrets."""
        ...

    @property
    def replaces_all(self) -> bool:
        """Whether a push leaves nothing of what was there before."""
        ...

    async def small(self, path: str, bytes_max: int) -> bytes | None:
        """Read a small file that is there; empty if it is larger, None if there is none.

        Raises:
            OriginDeniedError, OriginUnavailableError: as their names say.
            UsageError: there is no such bucket, repository or registry, or it takes no push.
        """
        ...

    async def standing(self, parcel: Parcel) -> Standing:
        """Look what is there already; changes nothing.

        Raises:
            OriginDeniedError, OriginUnavailableError: as their names say.
            UsageError: there is no such bucket, repository or registry, or it takes no push.
        """
        ...

    async def push(
        self, parcel: Parcel, standing: Standing, advance: Callable[[str, int], None]
    ) -> None:
        """Send what `standing` lacks, then the manifest; `advance(path, bytes)` tells what went.

        An error leaves no manifest that lies, and what was sent counts when it is called again.

        Raises:
            OriginChangedError: a file is no longer the one that was hashed.
            OriginDeniedError, OriginUnavailableError, OriginBusyError: as their names say.
        """
        ...

    async def close(self) -> None:
        """Give connections and locks back."""
        ...
