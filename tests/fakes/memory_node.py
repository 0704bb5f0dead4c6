"""A node without a swarm: models in memory, views on disk. Verified by tests/conformance/agent_api.

The root is its store: leases lie where a store has them. `tokens` are those that open private refs.
`hold()` keeps pulls from going on past their first progress, until `release()`.
"""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from damselfly.client.answers import (
    BadChunk,
    Cancelled,
    Capacity,
    CapacityRequest,
    Check,
    Collected,
    Credentials,
    Diagnosis,
    Explained,
    HeldArtifact,
    Opened,
    Progress,
    Pulled,
    PullRequest,
    Removed,
    Setting,
    Status,
    StoreStatus,
    Verified,
    VerifyProgress,
    VolumeRequest,
)
from damselfly.errors import (
    ArtifactNotFoundError,
    CancelledError,
    DamselflyError,
    JobNotFoundError,
    LeaseHeldError,
    OriginDeniedError,
    OriginNotFoundError,
    UsageError,
)
from damselfly.model.digest import Digest
from damselfly.model.hub import HubName
from damselfly.model.lease import check_lease_id, encode, lease_path
from damselfly.model.ref import Ref
from damselfly.model.selection import selects

PREFIX = re.compile(r"(?:blake3:)?([0-9a-f]{6,64})")


@dataclass
class _Pull:
    progress: Progress
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    outcome: Pulled | DamselflyError | None = None
    task: asyncio.Task[None] | None = None


class MemoryNode:
    """See the module. `origin` holds models by ref: paths and their bytes."""

    def __init__(
        self,
        root: Path,
        origin: Mapping[str, Mapping[str, bytes]],
        tokens: Mapping[str, str] | None = None,
    ) -> None:
        self.root = root
        self.origin = origin
        self.tokens = tokens or {}
        self.asked: list[PullRequest] = []
        self.held: dict[str, HeldArtifact] = {}
        self.unrepaired: tuple[str, ...] = ()
        """What a repair names as not repaired."""
        self._files: dict[str, dict[str, bytes]] = {}
        self._seen: dict[tuple[str, tuple[str, ...], tuple[str, ...]], Pulled] = {}
        self._pulls: dict[PullRequest, _Pull] = {}
        self._may_go = asyncio.Event()
        self._may_go.set()

    def hold(self) -> None:
        """Keep pulls from ending."""
        self._may_go.clear()

    def release(self) -> None:
        """Let them end."""
        self._may_go.set()

    async def close(self) -> None:
        """End every pull."""
        tasks = [pull.task for pull in self._pulls.values() if pull.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- pulls --------------------------------------------------------------------------------

    async def pull(self, request: PullRequest) -> AsyncIterator[Progress | Pulled]:
        self.asked.append(request)
        ref = str(Ref.parse(request.ref))
        is_held = request.hold
        request = request.but(ref=ref, hold=False)
        pull = self._pulls.get(request)
        if pull is None:
            pull = self._pulls[request] = _Pull(Progress(ref=ref))
            pull.task = asyncio.create_task(self._run(request, pull))
        while pull.outcome is None:
            changed = pull.changed
            yield pull.progress
            await changed.wait()
        if isinstance(pull.outcome, DamselflyError):
            raise pull.outcome
        lease = self._lease(pull.outcome.artifact, "client")
        if is_held:
            _make(lease)
        try:
            yield pull.outcome
            if is_held:
                await asyncio.Event().wait()
        finally:
            if is_held:
                lease.unlink(missing_ok=True)

    async def _run(self, request: PullRequest, pull: _Pull) -> None:
        try:
            outcome: Pulled | DamselflyError = await self._fetched(request, pull)
        except DamselflyError as exc:
            outcome = exc
        except asyncio.CancelledError:
            outcome = CancelledError(f"the pull of {request.ref} was cancelled")
        del self._pulls[request]
        pull.outcome = outcome
        pull.changed.set()

    async def _fetched(self, request: PullRequest, pull: _Pull) -> Pulled:
        if request.ref not in self.origin:
            raise OriginNotFoundError(f"there is nothing at {request.ref}")
        self._prove(request.ref, request.credentials)
        everything = dict(self.origin[request.ref])
        files = {
            path: data
            for path, data in everything.items()
            if selects(path, request.include, request.exclude)
        }
        artifact = str(Digest.of(repr(sorted(everything.items())).encode()))
        size = sum(map(len, files.values()))
        self._tell(pull, phase="fetching", artifact=artifact, bytes_total=size)
        await self._may_go.wait()
        is_here = artifact in self.held
        view = self._view(artifact)
        for path, data in files.items():
            (view / path).parent.mkdir(parents=True, exist_ok=True)
            (view / path).unlink(missing_ok=True)
            (view / path).write_bytes(data)
        self._tell(pull, phase="sealing", bytes_done=size)
        self._files[artifact] = everything
        self.held[artifact] = HeldArtifact(
            artifact=artifact,
            refs=(request.ref,),
            bytes=sum(map(len, everything.values())),
            bytes_held=size,
            files=len(everything),
            path=str(view),
        )
        return Pulled(
            ref=request.ref,
            artifact=artifact,
            path=str(view),
            bytes=size,
            files=len(files),
            seconds=0.25,
            bytes_from_origin=0 if is_here else size,
            bytes_from_peers=0,
            bytes_from_store=size if is_here else 0,
        )

    def _view(self, artifact: str) -> Path:
        return self.root / artifact.removeprefix("blake3:")

    def _hub_view(self, artifact: str) -> Path:
        return self.root / f"{artifact.removeprefix('blake3:')}-hub"

    def _tell(self, pull: _Pull, **changes: object) -> None:
        pull.progress = pull.progress.but(**changes)
        changed, pull.changed = pull.changed, asyncio.Event()
        changed.set()

    # --- volumes ------------------------------------------------------------------------------

    async def open_volume(self, request: VolumeRequest) -> AsyncIterator[Progress | Opened]:
        if request.layout not in {"plain", "hf-cache"}:
            raise UsageError(f"{request.layout!r} is no layout")
        check_lease_id(request.lease)
        ref = str(Ref.parse(request.ref))
        self._prove(ref, request.credentials)
        found = self._seen.get((ref, request.include, request.exclude))
        if found is None or found.artifact not in self.held:
            pull = PullRequest(
                ref=ref,
                include=request.include,
                exclude=request.exclude,
                credentials=request.credentials,
            )
            async for item in self.pull(pull):
                if isinstance(item, Pulled):
                    found = self._seen[ref, request.include, request.exclude] = item
                else:
                    yield item
        assert found is not None
        lease = self._lease(found.artifact, request.lease)
        is_ours = not lease.exists()
        _make(lease)
        try:
            yield Opened(
                ref=ref,
                artifact=found.artifact,
                path=self._shown(ref, found, request.layout),
                store=str(self.root),
                bytes=found.bytes,
                files=found.files,
            )
            is_ours = False
        finally:
            if is_ours:
                lease.unlink(missing_ok=True)

    def _prove(self, ref: str, credentials: Credentials | None) -> None:
        token = credentials.token if credentials is not None else None
        if ref in self.tokens and token != self.tokens[ref]:
            raise OriginDeniedError(f"{ref} does not open")

    def _shown(self, ref: str, found: Pulled, layout: str) -> str:
        if layout == "plain":
            return found.path
        name = HubName.of(Ref.parse(ref), Digest.parse(found.artifact))
        view = self._hub_view(found.artifact)
        repository = view / name.folder
        shutil.copytree(found.path, repository / "snapshots" / name.revision, dirs_exist_ok=True)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(name.revision)
        return str(view)

    def _lease(self, artifact: str, lease_id: str) -> Path:
        return self.root / lease_path(Digest.parse(artifact), lease_id)

    def _leases(self, artifact: str) -> list[Path]:
        folder = self._lease(artifact, "any").parent
        return list(folder.iterdir()) if folder.is_dir() else []

    async def capacity(self, request: CapacityRequest) -> Capacity:
        found = None
        if request.ref is not None:
            ref = str(Ref.parse(request.ref))
            found = self._seen.get((ref, request.include, request.exclude))
        if found is None:
            return Capacity(available_bytes=1 << 40)
        held = found.bytes if found.artifact in self.held else 0
        return Capacity(available_bytes=1 << 40, ref_bytes=found.bytes, ref_bytes_held=held)

    async def pulls(self) -> Sequence[Progress]:
        return [pull.progress for pull in self._pulls.values()]

    async def cancel(self, target: str) -> Sequence[Cancelled]:
        found = [
            (request, pull)
            for request, pull in self._pulls.items()
            if target in {request.ref, pull.progress.artifact}
        ]
        if not found:
            raise JobNotFoundError(f"no pull of {target} is running")
        for _, pull in found:
            assert pull.task is not None
            pull.task.cancel()
        return [Cancelled(ref=req.ref, artifact=pull.progress.artifact) for req, pull in found]

    async def explain(self, target: str) -> Explained:
        for request, pull in self._pulls.items():
            if target in {request.ref, pull.progress.artifact}:
                return Explained(
                    ref=request.ref,
                    artifact=pull.progress.artifact,
                    phase=pull.progress.phase,
                    policy=request.origin or "auto",
                    began_ns=0,
                    seconds=0.0,
                    chunks=0,
                    chunks_missing=0,
                )
        raise JobNotFoundError(f"no pull of {target} is remembered")

    # --- artifacts ----------------------------------------------------------------------------

    def _find(self, name: str) -> HeldArtifact:
        if match := PREFIX.fullmatch(name):
            found = [
                item for key, item in self.held.items() if key.startswith(f"blake3:{match[1]}")
            ]
        else:
            ref = str(Ref.parse(name))
            found = [item for item in self.held.values() if ref in item.refs]
        if not found:
            raise ArtifactNotFoundError(f"the store has no artifact {name}")
        if len(found) > 1:
            raise UsageError(f"{name} could be any of {len(found)} artifacts")
        return found[0]

    async def artifacts(self) -> Sequence[HeldArtifact]:
        return list(self.held.values())

    async def remove(self, artifact: str) -> Removed:
        item = self._find(artifact)
        if item.pinned:
            raise LeaseHeldError(f"{item.artifact} is pinned")
        if self._leases(item.artifact):
            raise LeaseHeldError(f"{item.artifact} is leased")
        del self.held[item.artifact]
        shutil.rmtree(self._view(item.artifact))
        shutil.rmtree(self._hub_view(item.artifact), ignore_errors=True)
        return Removed(artifact=item.artifact, bytes_freed=item.bytes_held)

    async def pin(self, artifact: str) -> HeldArtifact:
        return self._set_pin(artifact, pinned=True)

    async def unpin(self, artifact: str) -> HeldArtifact:
        return self._set_pin(artifact, pinned=False)

    def _set_pin(self, artifact: str, *, pinned: bool) -> HeldArtifact:
        item = self._find(artifact).but(pinned=pinned)
        self.held[item.artifact] = item
        return item

    async def gc(self) -> Collected:
        return Collected(bytes_freed=0, files=0)

    async def verify(
        self, artifact: str | None, *, repair: bool
    ) -> AsyncIterator[VerifyProgress | BadChunk | Verified]:
        found = [self._find(artifact)] if artifact is not None else list(self.held.values())
        total = sum(item.bytes_held for item in found)
        yield VerifyProgress(artifact=artifact, bytes_total=total)
        bad = 0
        for item in found:
            for path, data in self._files[item.artifact].items():
                place = self._view(item.artifact) / path
                if place.exists() and place.read_bytes() != data:
                    bad += 1
                    yield BadChunk(
                        artifact=item.artifact,
                        path=path,
                        start=0,
                        length=len(data),
                        digest=str(Digest.of(data)),
                    )
                    if repair:
                        place.unlink()
                        place.write_bytes(data)
        yield Verified(
            artifacts=len(found),
            bytes=total,
            chunks_bad=bad,
            chunks_repaired=bad if repair else 0,
            unrepaired=self.unrepaired if repair else (),
            seconds=0.1,
        )

    # --- at a glance --------------------------------------------------------------------------

    async def status(self) -> Status:
        return Status(
            version="0.0.0",
            agent="192.0.2.1:7460",
            state="ready",
            zone="",
            pid=1,
            uptime_s=1.0,
            store=StoreStatus(
                path=str(self.root),
                bytes=sum(item.bytes_held for item in self.held.values()),
                capacity_bytes=1 << 40,
                artifacts=len(self.held),
                leases=sum(len(self._leases(artifact)) for artifact in self.held),
                pins=sum(item.pinned for item in self.held.values()),
            ),
            pulls=tuple(await self.pulls()),
        )

    async def doctor(self) -> Diagnosis:
        return Diagnosis(
            checks=(Check(name="disk", verdict="ok", detail="lots of room"),),
            settings=(Setting(key="agent.listen", value="192.0.2.1:7460", source="--listen"),),
        )


def _make(lease: Path) -> None:
    lease.parent.mkdir(parents=True, exist_ok=True)
    lease.write_bytes(encode(None, 1))
