"""Pushing to the hub: one ordinary commit that has the files and, with them, their manifest.

The commit is made on the very one that was listed, so a commit of somebody else in between is
noticed and nothing is lost; and a commit is whole or is not there, so nobody reads half a push.
What the repository has with the same digest is not sent. Large files are sent before the commit,
one after the other, and stay with the hub: a push that was interrupted finds them there.

What is looked up goes through our own web. What is sent goes through `huggingface_hub`, which
knows how the hub wants it: that is why it is an extra, and is imported nowhere else. Its errors
repeat addresses with signatures in them, so none is passed on.
"""

import asyncio
import hashlib
import os
import re
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Literal, cast

from damselfly.errors import (
    CancelledError,
    DamselflyError,
    OriginBusyError,
    OriginChangedError,
    OriginDeniedError,
    OriginNotFoundError,
    OriginUnavailableError,
    RemoteProtocolError,
    UsageError,
)
from damselfly.model.hub_ref import HubRef
from damselfly.model.manifest import MANIFEST_NAME
from damselfly.model.ref import Ref
from damselfly.origin import tree
from damselfly.origin.access import OWN, Access
from damselfly.origin.destination import Parcel, Standing
from damselfly.origin.hub_api import Entry, HubAPI, refusal
from damselfly.origin.hub_environment import ENDPOINT, HubEnvironment
from damselfly.origin.port import OriginLimits
from damselfly.origin.threads import Threads
from damselfly.origin.tree import LocalFile
from damselfly.origin.web import Web

TOGETHER_MAX = 256
"""Small files that are announced to the hub in one request: as many as it takes."""
TOGETHER_BYTES_MAX = 8 << 20
"""A file of this size is sent by itself, so that progress is told after each."""
MESSAGE = "Push with Damselfly"

_READ_BYTES = 1 << 20
_XET_STATUS = re.compile(r"HTTP status (?:client|server) error \(([45][0-9]{2})\b", re.ASCII)
"""Xet's errors are texts, with addresses in them: nothing but the status is taken."""
_SINGULAR: Mapping[str, Literal["model", "dataset", "space"]] = {
    "models": "model",
    "datasets": "dataset",
    "spaces": "space",
}

Tell = Callable[[str, int], None]


class HubDestination:
    """A branch of a repository, or a directory of one. Belongs to one event loop and one push."""

    def __init__(
        self,
        ref: Ref,
        web: Web,
        access: Access = OWN,
        *,
        limits: OriginLimits | None = None,
        environment: HubEnvironment | None = None,
    ) -> None:
        self._place = HubRef.of(ref)
        if self._place.is_pinned or ref.pin is not None:
            raise UsageError(f"pushing to {ref.safe}: a commit never changes; name a branch")
        if access.username is not None:
            raise UsageError(f"pushing to {ref.safe}: the hub takes tokens, no user names")
        self._ref = ref
        self._access = access
        self._environment = environment or HubEnvironment()
        self._api = HubAPI(web, limits or OriginLimits(), self._environment)
        self._threads = Threads(1)
        self._commit: str | None = None

    @property
    def shown(self) -> str:
        """What people call it."""
        return self._ref.safe

    @property
    def replaces_all(self) -> bool:
        """What else lies there stays."""
        return False

    async def small(self, path: str, bytes_max: int) -> bytes | None:
        """Read a small file that is there; see `Destination`."""
        commit, place = await self._found(), self._place
        try:
            listed = await self._api.tree(
                place, commit, self._access, inside=place.inside, is_deep=False
            )
        except OriginNotFoundError:
            return None  # There is no such directory.
        inside = self._path(path)
        there = next((entry for entry in listed if entry.path == inside), None)
        if there is None:
            return None
        if there.size > bytes_max:
            return b""
        return await self._api.small(place, commit, inside, self._access, bytes_max)

    async def standing(self, parcel: Parcel) -> Standing:
        """Look what the branch has already; see `Destination`."""
        place = self._place
        self._commit = await self._found()
        try:
            listed = await self._api.tree(place, self._commit, self._access, inside=place.inside)
        except OriginNotFoundError:
            listed = []  # The directory comes with the first file in it.
        entries = {entry.path: entry for entry in listed}
        kept = await self._threads.run(partial(self._kept, parcel, entries))
        missing = [file for number, file in enumerate(parcel.files) if number not in kept]
        manifest = parcel.manifest.canonical()
        there = entries.get(self._path(MANIFEST_NAME))
        is_there = there is not None and (
            there.oid == _git_oid([manifest], len(manifest))
            if there.sha256 is None
            else there.sha256 == hashlib.sha256(manifest).hexdigest()
        )
        is_whole = not missing and is_there and not parcel.drops
        return Standing(kept, sum(file.size for file in missing), is_whole)

    async def push(self, parcel: Parcel, standing: Standing, advance: Tell) -> None:
        """Send what is missing, and commit; see `Destination`."""
        assert self._commit is not None, "look what is there before you push"
        if standing.is_whole:
            return
        access = await self._environment.access(self._access)
        loop = asyncio.get_running_loop()
        stopped = threading.Event()

        def tell(path: str, count: int) -> None:
            loop.call_soon_threadsafe(advance, path, count)

        missing = [file for number, file in enumerate(parcel.files) if number not in standing.kept]
        send = partial(self._send, parcel, missing, access, self._commit, tell, stopped)
        work = asyncio.ensure_future(self._threads.run(send))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            stopped.set()
            await asyncio.wait([work])
            raise

    async def close(self) -> None:
        """End the thread."""
        self._threads.close()

    async def _found(self) -> str:
        """The commit that the branch is now."""
        _library()
        place = self._place
        try:
            return await self._api.commit(place, self._access)
        except OriginNotFoundError as exc:
            raise UsageError(
                f"pushing to {self.shown}: the repository or the branch {place.revision} has to be"
                " made first, at the hub or with its own `hf repos create`"
            ) from exc

    # --- in a thread ----------------------------------------------------------------------------

    def _kept(self, parcel: Parcel, entries: Mapping[str, Entry]) -> frozenset[int]:
        kept: set[int] = set()
        for number, (file, sha256) in enumerate(zip(parcel.files, parcel.sha256, strict=True)):
            there = entries.get(self._path(file.path))
            if there is None or there.size != file.size:
                continue
            if there.sha256 == sha256 or (there.sha256 is None and there.oid == _oid_of(file)):
                kept.add(number)
        return frozenset(kept)

    def _send(
        self,
        parcel: Parcel,
        missing: list[LocalFile],
        access: Access,
        commit: str,
        tell: Tell,
        stopped: threading.Event,
    ) -> None:
        library = _library()
        place = self._place
        doing = f"pushing to {self.shown}"
        with (
            _without_xet(library, is_off=self._api.endpoint != ENDPOINT),
            self._told(doing, has_token=access.token is not None),
        ):
            client = library.HfApi(endpoint=self._api.endpoint, token=access.token or False)
            where = {
                "repo_id": place.repository,
                "repo_type": _SINGULAR[place.kind],
                "revision": place.revision,
            }
            additions: list[object] = []
            for batch in _together(missing):
                made: list[object] = []
                for file in batch:
                    _check_unchanged(file)
                    made.append(
                        library.CommitOperationAdd(
                            path_in_repo=self._path(file.path), path_or_fileobj=str(file.location)
                        )
                    )
                client.preupload_lfs_files(additions=made, **where)
                for file, addition in zip(batch, made, strict=True):
                    if getattr(addition, "_should_ignore", False):
                        raise UsageError(f"{doing}: .gitignore there leaves out {file.path!r}")
                    _check_unchanged(file)
                    tell(file.path, file.size)
                additions += made
                if stopped.is_set():
                    raise CancelledError(f"{doing} was cancelled")
            manifest = library.CommitOperationAdd(
                path_in_repo=self._path(MANIFEST_NAME), path_or_fileobj=parcel.manifest.canonical()
            )
            dropped = [
                library.CommitOperationDelete(path_in_repo=self._path(path))
                for path in parcel.drops
            ]
            for file in missing:
                _check_unchanged(file)
            client.create_commit(
                operations=[*additions, *dropped, manifest],
                commit_message=MESSAGE,
                parent_commit=commit,
                **where,
            )

    def _path(self, path: str) -> str:
        return f"{self._place.inside}/{path}" if self._place.inside else path

    @contextmanager
    def _told(self, doing: str, *, has_token: bool) -> Generator[None]:
        """Tell what the hub's client reports, without any text of its own that has addresses."""
        try:
            yield
        except (DamselflyError, AssertionError, AttributeError, TypeError):
            raise  # Ours, in two senses.
        except Exception as exc:  # noqa: BLE001, RUF100  Whatever it raises: none may be shown.
            raise self._error(exc, doing, has_token=has_token) from None

    def _error(self, exc: Exception, doing: str, *, has_token: bool) -> DamselflyError:
        # A failure to send a file is wrapped into a text that repeats it.
        while exc.__cause__ is not None and not _status_of(exc):
            if not isinstance(exc.__cause__, Exception):
                break
            exc = exc.__cause__
        status = _status_of(exc)
        said = f"{doing}: the hub answered {status}"
        if not status and (match := _XET_STATUS.search(str(exc))):
            status = int(match[1])
            said = (
                f"{doing}: the hub's client was answered {status} while it sent files by Xet"
                " (HF_HUB_DISABLE_XET=1 in the environment has it send them otherwise)"
            )
        if not status:
            if isinstance(exc, ValueError):
                return RemoteProtocolError(f"{doing}: the hub's client refuses what it is given")
            return OriginUnavailableError(f"{doing}: {type(exc).__name__} of the hub's client")
        headers = cast("Mapping[str, str]", getattr(getattr(exc, "response", None), "headers", {}))
        page = f"{self._api.endpoint}/{self._place.shown}"
        code = headers.get("X-Error-Code", "")
        told = refusal(status, code, self._place, said, has_token=has_token, page=page)
        if isinstance(told, OriginNotFoundError):
            return UsageError(str(told))
        if told is not None:
            return told
        after = headers.get("Retry-After", "")
        match status:
            case 401 | 403:
                return OriginDeniedError(said)
            case 409 | 412:
                return OriginChangedError(f"{said}: somebody committed meanwhile; push again")
            case 429:
                is_number = after.isascii() and after.isdecimal() and len(after) < 7
                return OriginBusyError(said, float(after) if is_number else None)
            case _ if status >= 500:
                return OriginUnavailableError(said)
            case _:
                return RemoteProtocolError(said)


@contextmanager
def _without_xet(library: ModuleType, *, is_off: bool) -> Generator[None]:
    """Mirrors and other hubs speak no Xet, and the client gives up where it finds none.

    It reads its constant whenever it sends; the user's environment stays as it is.
    """
    constants = library.constants
    was_off = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = was_off or is_off
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = was_off


def _library() -> ModuleType:
    try:
        library = import_module("huggingface_hub")  # An extra, and slow to import.
        import_module("huggingface_hub.utils").disable_progress_bars()  # It is told by our caller.
    except ImportError as exc:
        raise UsageError(
            "pushing to the hub needs huggingface_hub: pip install 'damselfly[hf]'"
        ) from exc
    return library


def _status_of(exc: Exception) -> int:
    status: object = getattr(getattr(exc, "response", None), "status_code", 0)
    return status if isinstance(status, int) else 0


def _together(files: list[LocalFile]) -> Iterator[list[LocalFile]]:
    """Small files in batches, a large one by itself."""
    batch: list[LocalFile] = []
    room = TOGETHER_BYTES_MAX
    for file in files:
        if batch and (file.size > room or len(batch) == TOGETHER_MAX):
            yield batch
            batch, room = [], TOGETHER_BYTES_MAX
        batch.append(file)
        room -= file.size
    if batch:
        yield batch


def _check_unchanged(file: LocalFile) -> None:
    os.close(tree.open_unchanged(file))


def _oid_of(file: LocalFile) -> str:
    """What git calls the content of a file."""
    descriptor = tree.open_unchanged(file)
    try:
        return _git_oid(_parts(descriptor, file), file.size)
    finally:
        os.close(descriptor)


def _parts(descriptor: int, file: LocalFile) -> Iterator[bytes]:
    buffer = bytearray(min(_READ_BYTES, file.size))
    for start in range(0, file.size, _READ_BYTES):
        part = memoryview(buffer)[: min(_READ_BYTES, file.size - start)]
        tree.read_exactly(descriptor, part, start, file)
        yield bytes(part)


def _git_oid(parts: Iterator[bytes] | list[bytes], size: int) -> str:
    hasher = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    for part in parts:
        hasher.update(part)
    return hasher.hexdigest()
