"""From a file that was listed to one that is planned: safetensors are cut along their tensors."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from damselfly.errors import HeaderError, ManifestError
from damselfly.model import chunker, safetensors
from damselfly.model.plan import PlannedFile
from damselfly.origin.port import OriginLimits


@dataclass(frozen=True, slots=True)
class Listed:
    """A file as an origin lists it; see `PlannedFile` for `version` and `digests`."""

    path: str
    size: int
    version: str
    digests: tuple[str, ...] = ()


class Room:
    """How many bytes the files of one artifact may still have, before any of them is cut.

    Cuts of a hundred thousand files that are said to be huge would fill the memory, one by one all
    within the limit.
    """

    def __init__(self) -> None:
        self._bytes_left = chunker.FILE_BYTES_MAX

    def take(self, size: int, place: str) -> None:
        """Count a file of `size` bytes.

        Raises:
            ManifestError: with it they are more than an artifact may have.
        """
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise ManifestError(
                f"the files of an artifact have at most {chunker.FILE_BYTES_MAX} bytes together,"
                f" and with {place} they have more"
            )


async def cut(
    file: Listed, read: Callable[[int, int], Awaitable[bytes]], place: str, limits: OriginLimits
) -> PlannedFile:
    """Cut a file; `read(start, stop)` reads a few bytes of it, `place` is what errors call it.

    Raises:
        HeaderError: it is a malformed safetensors file.
        ManifestError: it is bigger than any artifact.
    """
    try:
        lengths = chunker.cut(file.size)
    except ManifestError as exc:
        raise ManifestError(f"looking at {place}") from exc
    if chunker.is_safetensors(file.path):
        try:
            head = b""
            if file.size:
                head = await read(0, min(limits.header_guess_bytes, file.size))
            length = safetensors.header_bytes(head, file.size)
            if length > len(head):
                head += await read(len(head), length)
            header = await asyncio.to_thread(safetensors.parse, head, file.size)
        except HeaderError as exc:
            raise HeaderError(f"reading the header of {place}") from exc
        lengths = chunker.cut_safetensors(header)
    return PlannedFile(file.path, lengths, file.version, file.digests)
