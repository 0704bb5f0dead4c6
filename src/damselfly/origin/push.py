"""`damselfly push`: a directory, hashed, brought to where agents read it, its manifest beside it.

Everything is hashed before anything is sent: so a destination can be asked what it has already, and
a push that was interrupted goes on where it was. Whoever calls this is a person at a terminal: it
blocks, and an interrupt ends it between two chunks.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    nullcontext,
)
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from damselfly.errors import UsageError
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.ref import Ref
from damselfly.model.statement import SIGNATURE_BYTES_MAX, SIGNATURE_NAME
from damselfly.origin.access import OWN, Access
from damselfly.origin.clouds import Clouds
from damselfly.origin.destination import Destination, Parcel, PushProgress, Standing
from damselfly.origin.destinations import destination_for, local_place
from damselfly.origin.file_push import DirectoryPush
from damselfly.origin.gate import Gate
from damselfly.origin.parcel import Advance, Sign, Survey, packed
from damselfly.origin.port import OriginLimits
from damselfly.origin.s3_place import S3Place
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
    drops_signature: bool = False,
    is_dry: bool = False,
    s3: S3Place | None = None,
    clouds: Clouds | None = None,
) -> PushReport:
    """Bring the files of `directory` to `destination` and leave their manifest beside them.

    `destination` is a path or a ref; it may be `directory` itself: then nothing is copied. What
    else lies there is left alone; the manifest does not name it. A signature there would be of
    other files: it is replaced (`sign`) or goes (`drops_signature`). With `is_dry` nothing is
    changed. `s3` and `clouds` say where those are, if not where the environment says.

    Raises:
        UsageError, ConfigError: the destination makes no sense, another push is writing there, or
            it has a signature and nothing is said of it.
        OriginNotFoundError, HeaderError, ManifestError: `directory` is not an artifact.
        OriginChangedError: a file was written to meanwhile.
        StoreFullError: the destination has no room.
        OriginDeniedError, OriginUnavailableError: as their names say.
    """
    begin = partial(_step, on_progress or (lambda _: None))
    target = local_place(destination)
    if target is not None:
        _check_local(directory, target, access)
        survey = Survey.of(directory, is_signed=sign is not None)
        signing = _Signing(survey, sign, drops_signature)
        work = DirectoryPush(target)
        return _pushed_here(signing, work, str(target), begin, is_dry=is_dry)
    ref = Ref.parse(destination)
    reach = partial(_reached, ref, access, s3, clouds)
    survey = Survey.of(directory, is_signed=sign is not None)
    signing = _Signing(survey, sign, drops_signature)
    # Hashing takes minutes: what lacks is said before it.
    asyncio.run(_looked(reach, signing, begin))
    with signing.packed(begin) as parcel:
        return asyncio.run(_sent(parcel, reach, begin, is_dry=is_dry))


class _Signing:
    """What becomes of the signature that a destination may have of an earlier push."""

    def __init__(self, survey: Survey, sign: Sign | None, drops: bool) -> None:
        self._survey = survey
        self._sign = sign
        self._drops = drops
        self._there: bytes | None = None
        self._brings = sign is not None or survey.has_signature
        if drops and self._brings:
            raise UsageError(
                f"pushing {survey.directory}: it brings a {SIGNATURE_NAME}, and --drop-signature"
                " says that there is to be none"
            )

    def found(self, there: bytes | None, shown: str, *, is_replaced: bool = False) -> None:
        """Take the signature that the destination has, if it has one."""
        self._there = None if is_replaced and self._sign is None else there
        if self._there is not None and not self._brings and not self._drops:
            raise UsageError(
                f"pushing to {shown}: there is a {SIGNATURE_NAME}, and it would not be of these"
                " files: sign them with --sign-key, or have it deleted with --drop-signature"
            )

    def packed(self, begin: Callable[[str, int], Advance]) -> AbstractContextManager[Parcel]:
        """Hash the files."""
        return packed(
            self._survey,
            begin("hashing", self._survey.plan.bytes),
            self._sign,
            signature=self._there,
            drops=(SIGNATURE_NAME,) if self._drops and self._there is not None else (),
        )


def _pushed_here(
    signing: _Signing,
    work: DirectoryPush,
    shown: str,
    begin: Callable[[str, int], Advance],
    *,
    is_dry: bool,
) -> PushReport:
    if is_dry:
        work.check()
    signing.found(work.small(SIGNATURE_NAME, SIGNATURE_BYTES_MAX), shown)
    with nullcontext() if is_dry else work.held(), signing.packed(begin) as parcel:
        standing = work.standing(parcel, begin("comparing", parcel.manifest.bytes))
        if not is_dry:
            work.push(parcel, standing, begin("copying", standing.bytes_missing))
        return _report(parcel, standing, shown)


def _check_local(directory: Path, target: Path, access: Access) -> None:
    if access != OWN:
        raise UsageError(f"pushing to the directory {target}: it takes no credentials")
    source = Path(os.path.realpath(directory))
    if target != source and target.is_relative_to(source):
        raise UsageError(f"pushing {directory} into itself: {target} lies inside of it")


Reach = Callable[[], AbstractAsyncContextManager[Destination]]


@asynccontextmanager
async def _reached(
    ref: Ref, access: Access, s3: S3Place | None, clouds: Clouds | None
) -> AsyncGenerator[Destination]:
    limits = OriginLimits()
    web = Web(limits, Gate())
    try:
        destination = destination_for(ref, web, access, limits, s3=s3, clouds=clouds)
        try:
            yield destination
        finally:
            await destination.close()
    finally:
        await web.close()


async def _looked(reach: Reach, signing: _Signing, begin: Callable[[str, int], Advance]) -> None:
    """Find the signature that is there. A loop of its own: hashing would keep this one waiting."""
    async with reach() as destination:
        begin("looking", 0)(destination.shown, 0)
        there = await destination.small(SIGNATURE_NAME, SIGNATURE_BYTES_MAX)
        signing.found(there, destination.shown, is_replaced=destination.replaces_all)


async def _sent(
    parcel: Parcel, reach: Reach, begin: Callable[[str, int], Advance], *, is_dry: bool
) -> PushReport:
    async with reach() as destination:
        begin("looking", 0)(destination.shown, 0)
        standing = await destination.standing(parcel)
        if not is_dry and not standing.is_whole:
            sending = begin("sending", standing.bytes_missing)
            await destination.push(parcel, standing, sending)
        return _report(parcel, standing, destination.shown)


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
