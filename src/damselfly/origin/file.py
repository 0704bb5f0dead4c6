"""`file://`: a directory or a file on this machine, read by threads."""

import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from damselfly.errors import OriginChangedError, OriginNotFoundError
from damselfly.model.manifest import MANIFEST_BYTES_MAX, MANIFEST_NAME
from damselfly.model.plan import Plan, PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin import tree
from damselfly.origin.access import ANONYMOUS, Access
from damselfly.origin.beside import manifest_from
from damselfly.origin.port import OriginLimits, Resolved, revision_of, revision_of_manifest
from damselfly.origin.threads import Threads


class FileOrigin:
    """Local files. Only the agent that was asked can read them."""

    shared = False

    def __init__(self, limits: OriginLimits) -> None:
        self._threads = Threads(limits.read_threads)

    async def resolve(self, ref: Ref, access: Access = ANONYMOUS) -> Resolved:
        """Find the files behind `ref` and cut them; see `Origin`."""
        return await self._threads.run(partial(_resolve, ref.unpinned))

    async def prove(self, ref: Ref, file: PlannedFile, access: Access) -> None:
        """Nothing to prove: the system asks the agent who it is, not who asks the agent."""

    @asynccontextmanager
    async def open(
        self,
        ref: Ref,
        file: PlannedFile,
        start: int,
        stop: int,
        access: Access = ANONYMOUS,
    ) -> AsyncGenerator["FileStream"]:
        """Read a span of a file; see `Origin`."""
        stream = FileStream(self._threads, start, stop)
        try:
            await self._threads.run(partial(stream.open, ref, file))
            yield stream
        finally:
            stream.close()

    async def close(self) -> None:
        """End the threads."""
        self._threads.close()


class FileStream:
    """A span of a local file. Belongs to one task."""

    def __init__(self, threads: Threads, start: int, stop: int) -> None:
        self.first_byte_s: float | None = None
        self._threads = threads
        self._position = start
        self._stop = stop
        self._file: tree.LocalFile | None = None
        self._descriptor = -1
        self._asked_s = time.monotonic()

    def open(self, ref: Ref, file: PlannedFile) -> None:
        """Open the file, in a thread."""
        self._file = _located(ref, file)
        self._descriptor = tree.open_unchanged(self._file)

    async def readinto(self, view: memoryview) -> None:
        """Fill `view` with the next bytes; see `OriginStream`."""
        assert len(view) <= self._stop - self._position, "reading past the end of the span"
        await self._threads.run(partial(self._read, view))
        self._position += len(view)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _read(self, view: memoryview) -> None:
        assert self._file is not None, "open before reading"
        tree.read_exactly(self._descriptor, view, self._position, self._file)
        # Bytes written while we read would show here: look after reading, not only before.
        tree.check_unchanged(self._descriptor, self._file)
        if self.first_byte_s is None:
            self.first_byte_s = time.monotonic() - self._asked_s


def _resolve(ref: Ref) -> Resolved:
    root = Path(ref.local_path)
    if not tree.is_directory(root):
        file = tree.look_at(ref.name, root)
        plan = Plan.of(str(ref.as_file), [tree.plan_file(file)])
        return Resolved(plan, None, revision_of(plan))
    ref = ref.as_directory
    if (data := _manifest_bytes(root)) is not None:
        manifest = manifest_from(data, str(root / MANIFEST_NAME))
        plan = manifest.plan(str(ref))
        for planned in plan.files:
            _check_size(tree.look(root, planned.path), planned)
        return Resolved(plan, manifest, revision_of_manifest(manifest))
    files = tree.walk(root)
    if not files:
        raise OriginNotFoundError(f"the directory {root} has no files")
    plan = Plan.of(str(ref), [tree.plan_file(file) for file in files])
    return Resolved(plan, None, revision_of(plan))


def _manifest_bytes(root: Path) -> bytes | None:
    location = root / MANIFEST_NAME
    try:
        tree.look_at(MANIFEST_NAME, location)
    except OriginNotFoundError:
        return None
    try:
        with location.open("rb") as opened:
            return opened.read(MANIFEST_BYTES_MAX + 1)
    except OSError as exc:
        raise tree.local_error(exc, f"reading {location}") from exc


def _check_size(found: tree.LocalFile, planned: PlannedFile) -> None:
    if found.size != planned.bytes:
        raise OriginChangedError(
            f"{found.location} has {found.size} bytes, and {planned.bytes} in {MANIFEST_NAME}:"
            " push the directory again"
        )


def _located(ref: Ref, file: PlannedFile) -> tree.LocalFile:
    if ref.is_directory:
        found = tree.look(Path(ref.local_path), file.path)
    else:
        found = tree.look_at(file.path, Path(ref.local_path))
    # What is there now, to be held against what was there when the plan was made.
    return replace(found, size=file.bytes, version=file.version)
