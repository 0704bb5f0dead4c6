"""The port: what the rest of the agent asks of wherever the bytes live first.

Kept narrow, so that a hub or a bucket is one more file: look a ref up, read spans of its files.
"""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from damselfly.model.manifest import Manifest
from damselfly.model.plan import Plan, PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS, Access


@dataclass(frozen=True, kw_only=True)
class OriginLimits:
    """What an origin may cost us; every default with its reason."""

    connections_per_host_max: int = 16
    """As many as browsers and hub clients open; more looks like an attack to some servers."""
    connect_s: float = 10.0
    """Longer than a lost SYN's first three retries."""
    silence_s: float = 30.0
    """A bucket that reads a cold object may think this long before the first byte."""
    body_silence_s: float = 15.0
    """Once it has begun, nothing needs to be fetched from afar any more."""
    body_floor_bytes: int = 64 << 10
    """Less than this in `body_floor_s` of waiting is no better than silence: a byte now and then
    would keep a connection and a buffer for ever. It is half of what each of 16 connections gets of
    a link of 1 Mbit/s, which is slow but honest."""
    body_floor_s: float = 15.0
    """Only what was waited for the origin counts: a reader or a budget may take its time."""
    resumes_max: int = 4
    """So often in a row a body that stalls or breaks off is asked for from where it stopped."""
    resumes_total_max: int = 16
    """So often altogether in one span: its claim is better handed to somebody else."""
    back_off_s: float = 0.25
    """Before the first time, twice as long before each other one, give or take a half."""
    tries_max: int = 3
    """So often what is small is asked for again after a 5xx or a reset."""
    unsteady_s: float = 0.0
    """So long after a 503, besides: who says it means to be back. An agent has half a minute."""
    rest_patience_s: float = 2.0
    """So long a request waits for a host that asks for rest, where no gate says otherwise. Agents
    and pushes have one that waits for minutes (`gate.PATIENCE_S`)."""
    head_s: float = 90.0
    """From asking to the end of an answer's head, connecting and thinking as above, and as long
    again for a few hundred bytes: one that trickles is never silent, and nothing else ends it."""
    page_s: float = 300.0
    """For a listing, an index or a header: the largest there may be at 2 Mbit/s."""
    resolve_s: float = 900.0
    """For finding out what a ref is, all of it: 100,000 files by one request of 0.1 s each, 16 at a
    time. No single request is slow where a server leads us on for ever."""
    redirects_max: int = 8
    listing_bytes_max: int = 8 << 20
    """About 50,000 entries of one directory."""
    listings_bytes_max: int = 64 << 20
    """Of all directories of an artifact."""
    index_bytes_max: int = 64 << 20
    directory_depth_max: int = 16
    directories_max: int = 2_000
    parked_max: int = 4
    """Streams of servers without ranges that wait for the span that follows theirs."""
    parked_s: float = 10.0
    """How long they wait: a server with one thread serves nobody else meanwhile."""
    header_guess_bytes: int = 256 << 10
    """One request reads the safetensors header of nearly any file: 1,500 tensors take 150 KiB."""
    read_threads: int = 8
    """Threads that read local files."""


@dataclass(frozen=True)
class Resolved:
    """What a ref means now.

    `plan.ref` is where to read it: canonical, unpinned, and with a slash at the end if and only if
    it is a directory. `manifest` is there when `damselfly push` left one. `revision` differs
    whenever a file, a size or a version does.
    """

    plan: Plan
    manifest: Manifest | None
    revision: str


class OriginStream(Protocol):
    """One span of a file, read in order by one task."""

    @property
    def first_byte_s(self) -> float | None:
        """Seconds from asking to the first byte; None before it came."""
        ...

    async def readinto(self, view: memoryview) -> None:
        """Fill `view` with the next bytes, all of it. Never touches it after returning or raising.

        Raises:
            OriginUnavailableError: the origin broke off or fell silent.
            OriginChangedError: the file is no longer the one that was planned.
        """
        ...


class Origin(Protocol):
    """Everything behind one scheme."""

    @property
    def shared(self) -> bool:
        """Whether every agent can read it; a local file only the agent that was asked can."""
        ...

    async def resolve(self, ref: Ref, access: Access = ANONYMOUS) -> Resolved:
        """Find the files behind `ref` and cut them.

        Raises:
            OriginNotFoundError, OriginDeniedError, OriginUnavailableError: as their names say.
            HeaderError: a safetensors file is malformed; names the file.
            ManifestError: a manifest, a path or a link that may not be.
        """
        ...

    async def prove(self, ref: Ref, file: PlannedFile, access: Access) -> None:
        """Prove that `access` may read `file`, by a byte of it; `ref` is the `ref` of its plan.

        Raises:
            OriginDeniedError, OriginNotFoundError, OriginUnavailableError: it may not.
            OriginChangedError: what it may read is another file.
        """
        ...

    def open(
        self,
        ref: Ref,
        file: PlannedFile,
        start: int,
        stop: int,
        access: Access = ANONYMOUS,
    ) -> AbstractAsyncContextManager[OriginStream]:
        """Read bytes `[start, stop)` of `file`; `ref` is the `ref` of its plan.

        Entering raises what `resolve` does, and OriginChangedError where the file is another now.
        """
        ...

    async def close(self) -> None:
        """Give connections and threads back. Streams must be closed by then."""
        ...


def revision_of(plan: Plan) -> str:
    """Name what a plan was made of: paths, sizes and versions, but not where it was found."""
    return str(Plan("-", plan.files).id)


def revision_of_manifest(manifest: Manifest) -> str:
    """Name what a manifest was found to be: it is its own revision."""
    return str(manifest.digest)
