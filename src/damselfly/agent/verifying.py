"""Re-reading what is on disk for whoever asks, and fetching again what is bad.

Reading a large store takes hours: it has a thread of its own, for one verification at a time, and
ends at the next chunk once nobody listens any more.
"""

import asyncio
import glob
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial

from damselfly.agent.pull import Workshop, is_held
from damselfly.agent.watch import PROGRESS_INTERVAL_S
from damselfly.cache import report
from damselfly.cache.store import Store
from damselfly.client.answers import (
    BadChunk,
    Progress,
    Pulled,
    PullRequest,
    Verified,
    VerifyProgress,
)
from damselfly.errors import (
    ArtifactNotFoundError,
    CancelledError,
    DamselflyError,
    UsageError,
    explain,
)
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.selection import selects


class Verifier:
    """Verifies, one after the other. Belongs to one event loop."""

    def __init__(
        self, shop: Workshop, pull: Callable[[PullRequest], AsyncIterator[Progress | Pulled]]
    ) -> None:
        self._shop = shop
        self._pull = pull
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="verify")

    async def verify(
        self, artifact: Digest | None, *, repair: bool
    ) -> AsyncGenerator[VerifyProgress | BadChunk | Verified]:
        """Verify an artifact, or everything; see `Node.verify`."""
        shop = self._shop
        began_s = shop.clock.monotonic_s()
        found = None
        async with aclosing(self._read(artifact)) as items:
            async for item in items:
                if isinstance(item, VerifyProgress):
                    yield item
                else:
                    found = item
        assert found is not None, "a reading ends with what it found"
        if found.bad:
            await shop.swarms.lost(found.degraded, {bad.expected for bad in found.bad})
        manifests = await shop.work(partial(_manifests, shop.store, found.degraded))
        for bad in found.bad:
            yield _bad_chunk(bad, manifests, found.degraded)
        unrepaired: list[str] = []
        repaired = 0
        if repair and found.degraded:
            for degraded in found.degraded:
                yield VerifyProgress(
                    artifact=str(degraded), phase="repairing", chunks_bad=len(found.bad)
                )
                try:
                    await self._repair(degraded)
                except DamselflyError as exc:
                    unrepaired.append(f"{degraded}: {explain(exc)}")
            async with aclosing(self._read(artifact)) as items:
                async for item in items:
                    if isinstance(item, VerifyProgress):
                        yield item
                    else:
                        again = partial(_missing, shop.store, item.degraded)
                        missing = await shop.work(again)
                        well = [bad for bad in found.bad if bad.expected not in missing]
                        repaired = max(0, len(well) - len(item.bad))
        infos = await shop.work(partial(shop.store.artifacts))
        yield Verified(
            artifacts=1 if artifact is not None else sum(is_held(info.state) for info in infos),
            bytes=found.bytes,
            chunks_bad=len(found.bad),
            chunks_repaired=repaired,
            unrepaired=tuple(unrepaired),
            seconds=round(shop.clock.monotonic_s() - began_s, 3),
        )

    async def _read(
        self, artifact: Digest | None
    ) -> AsyncGenerator[VerifyProgress | report.Verified]:
        """Read in the thread; the last item is what was found. Closing it ends the reading."""
        name = str(artifact) if artifact is not None else None
        stop = threading.Event()
        told: deque[tuple[int, int]] = deque(maxlen=1)

        def tell(done: int, total: int) -> None:
            if stop.is_set():
                raise CancelledError("nobody waits for this verification any more")
            told.append((done, total))

        thread = self._reader.submit(partial(self._shop.store.verify, artifact, tell))
        reading = asyncio.wrap_future(thread)
        try:
            while not (await asyncio.wait({reading}, timeout=PROGRESS_INTERVAL_S))[0]:
                if told:
                    done, total = told[-1]
                    yield VerifyProgress(artifact=name, bytes_done=done, bytes_total=total)
                elif not thread.running():
                    yield VerifyProgress(artifact=name, phase="waiting for another verification")
            yield reading.result()
        finally:
            stop.set()
            thread.cancel()
            # Not longer than a chunk takes: what comes next finds the thread free.
            await asyncio.wait({reading})
            if not reading.cancelled():
                reading.exception()

    async def _repair(self, artifact: Digest) -> None:
        """Pull again what is missing of the files that were here."""
        request = await self._shop.work(partial(_request_for, self._shop.store, artifact))
        async for _ in self._pull(request):
            pass


def _request_for(store: Store, artifact: Digest) -> PullRequest:
    """What brings an artifact's own files, and no others.

    Raises:
        ArtifactNotFoundError: it has been taken out of the store.
        UsageError: no ref is known for it.
    """
    info = next((info for info in store.artifacts() if info.artifact == artifact), None)
    manifest = store.manifest(artifact)
    if info is None or manifest is None:
        raise ArtifactNotFoundError(f"{artifact} has just gone from the store")
    if not info.refs:
        raise UsageError("it was pulled by no ref that is known here: pull it again")
    ref = f"{info.refs[0]}#{artifact}"
    numbers = store.files_of(artifact)
    if len(numbers) == len(manifest.files):
        return PullRequest(ref=ref)
    include = tuple(glob.escape(manifest.files[number].path) for number in sorted(numbers))
    # A name without a folder also means the files of that name in every folder.
    others = (file.path for n, file in enumerate(manifest.files) if n not in numbers)
    exclude = tuple(glob.escape(path) for path in others if selects(path, include, ()))
    return PullRequest(ref=ref, include=include, exclude=exclude)


def _manifests(store: Store, artifacts: tuple[Digest, ...]) -> dict[Digest, Manifest]:
    found = ((artifact, store.manifest(artifact)) for artifact in artifacts)
    return {artifact: manifest for artifact, manifest in found if manifest is not None}


def _missing(store: Store, artifacts: tuple[Digest, ...]) -> set[Digest]:
    """The chunks that these artifacts lack, by digest."""
    missing: set[Digest] = set()
    for artifact, manifest in _manifests(store, artifacts).items():
        held = store.held(artifact).bits
        missing.update(d for index, d in enumerate(manifest.digests) if not held >> index & 1)
    return missing


def _bad_chunk(
    bad: report.BadChunk, degraded: "dict[Digest, Manifest]", names: tuple[Digest, ...]
) -> BadChunk:
    """Say where a bad chunk lies, in the first artifact that has its file."""
    start = length = 0
    artifact = names[0] if names else bad.expected
    for name, manifest in degraded.items():
        for file in manifest.files:
            if file.path == bad.path and bad.number < len(file.chunks):
                start = sum(chunk.length for chunk in file.chunks[: bad.number])
                length = file.chunks[bad.number].length
                artifact = name
    return BadChunk(
        artifact=str(artifact),
        path=bad.path,
        start=start,
        length=length,
        digest=str(bad.expected),
    )
