"""`damselfly push`: a directory, hashed, brought to where agents read it, its manifest beside it.

Everything is hashed before anything is sent: so a destination can be asked what it has already, and
a push that was interrupted goes on where it was. Whoever calls this is a person at a terminal: it
blocks, and an interrupt ends it between two chunks.
"""

import asyncio
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from damselfly.errors import UsageError
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.ref import Ref
from damselfly.origin.access import OWN, Access
from damselfly.origin.destination import Parcel, PushProgress, Standing
from damselfly.origin.destinations import destination_for, local_place, maker_for
from damselfly.origin.file_push import DirectoryPush
from damselfly.origin.gate import Gate
from damselfly.origin.parcel import Advance, Sign, Survey, packed
from damselfly.origin.port import OriginLimits
from damselfly.origin.web import Web

__all__ = ["PushProgress", "PushReport", "push"]

OnProgress = Callable[[PushProgress], None]


@dataclass(frozen=True, slots=True)
class PushReport:
    """What a push did; after a dry run, what it would have done."""

    manifest: Manifest
    destination: str
    files_sent: int
    files_kept: int
    bytes_sent: int
    is_whole: bool
    """Even the manifest was there already."""

    @property
    def artifact(self) -> Digest:
        """The artifact's name."""
        return self.manifest.digest


def push(
    directory: Path,
    destination: str,
    on_progress: OnProgress | None = None,
    *,
    access: Access = OWN,
    sign: Sign | None = None,
    is_dry: bool = False,
) -> PushReport:
    """Bring the files of `directory` to `destination` and leave their manifest beside them.

    `destination` is a path or a ref; it may be `directory` itself: then nothing is copied. What
    else lies there is left alone; the manifest does not name it. With `is_dry` nothing is changed.

    Raises:
        UsageError: the destination makes no sense, or another push is writing there.
        OriginNotFoundError, HeaderError, ManifestError: `directory` is not an artifact.
        OriginChangedError: a file was written to meanwhile.
        StoreFullError: the destination has no room.
        OriginDeniedError, OriginUnavailableError: as their names say.
    """
    begin = partial(_step, on_progress or (lambda _: None))
    target = local_place(destination)
    if target is not None:
        _check_local(directory, target, access)
    else:
        maker_for(Ref.parse(destination))  # Hashing takes minutes: say what lacks before it.
    survey = Survey.of(directory, is_signed=sign is not None)
    hashing = begin("hashing", survey.plan.bytes)
    if target is None:
        with packed(survey, hashing, sign) as parcel:
            return asyncio.run(_sent(parcel, Ref.parse(destination), begin, access, is_dry=is_dry))
    work = DirectoryPush(target)
    with nullcontext() if is_dry else work.held(), packed(survey, hashing, sign) as parcel:
        standing = work.standing(parcel, begin("comparing", parcel.manifest.bytes))
        if not is_dry:
            work.push(parcel, standing, begin("copying", standing.bytes_missing))
        return _report(parcel, standing, str(target))


def _check_local(directory: Path, target: Path, access: Access) -> None:
    if access != OWN:
        raise UsageError(f"pushing to the directory {target}: it takes no credentials")
    source = Path(os.path.realpath(directory))
    if target != source and target.is_relative_to(source):
        raise UsageError(f"pushing {directory} into itself: {target} lies inside of it")


async def _sent(
    parcel: Parcel, ref: Ref, begin: Callable[[str, int], Advance], access: Access, *, is_dry: bool
) -> PushReport:
    limits = OriginLimits()
    web = Web(limits, Gate())
    try:
        destination = destination_for(ref, web, access, limits)
        try:
            begin("looking", 0)(destination.shown, 0)
            standing = await destination.standing(parcel)
            if not is_dry and not standing.is_whole:
                sending = begin("sending", standing.bytes_missing)
                await destination.push(parcel, standing, sending)
            return _report(parcel, standing, destination.shown)
        finally:
            await destination.close()
    finally:
        await web.close()


def _step(on_progress: OnProgress, doing: str, bytes_total: int) -> Advance:
    """Begin a step; what comes back is to be told what is done."""
    bytes_done = 0

    def advance(path: str, count: int) -> None:
        nonlocal bytes_done
        bytes_done += count
        on_progress(PushProgress(doing, path, bytes_done, bytes_total))

    return advance


def _report(parcel: Parcel, standing: Standing, destination: str) -> PushReport:
    kept = len(standing.kept)
    return PushReport(
        parcel.manifest,
        destination,
        len(parcel.files) - kept,
        kept,
        standing.bytes_missing,
        standing.is_whole,
    )
