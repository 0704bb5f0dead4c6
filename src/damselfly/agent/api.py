"""The agent's own API: HTTP/1.1 and JSON on a unix socket.

Who may open the socket may do everything, so the file's mode is the access control. A stream of a
pull is a window on it: closing the window stops nothing, and the same request opens it again.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from damselfly.client.answers import (
    BadChunk,
    Cancelled,
    Collected,
    Diagnosis,
    HeldArtifact,
    Progress,
    Pulled,
    PullRequest,
    Removed,
    Status,
    Verified,
    VerifyProgress,
)


class Node(Protocol):
    """What the API needs from the agent behind it.

    Every method raises DamselflyErrors and nothing else. An `artifact` or `target` is a digest
    (`blake3:<hex>`), an unambiguous prefix of at least 6 hex digits, or a ref.
    """

    def pull(self, request: PullRequest) -> AsyncIterator[Progress | Pulled]:
        """Start a pull, or join the one that runs, and watch it.

        The first item comes at once, then about five a second, each the newest state (a slow
        watcher misses some); the last is `Pulled`. A pull that fails raises from the iterator.
        Closing the iterator (`aclose`, as an async generator has it) leaves the pull going.
        """
        ...

    async def pulls(self) -> Sequence[Progress]:
        """The pulls that run."""
        ...

    async def cancel(self, target: str) -> Sequence[Cancelled]:
        """Stop the pulls of `target`; every watcher of one meets CancelledError.

        Raises:
            JobNotFoundError: None of that name runs.
        """
        ...

    async def artifacts(self) -> Sequence[HeldArtifact]:
        """What the store holds, most recently used first."""
        ...

    async def status(self) -> Status:
        """The agent at a glance."""
        ...

    def verify(
        self, artifact: str | None, *, repair: bool
    ) -> AsyncIterator[VerifyProgress | BadChunk | Verified]:
        """Re-read and re-hash one artifact, or all; the last item is `Verified`.

        Closing the iterator stops the work.
        """
        ...

    async def remove(self, artifact: str) -> Removed:
        """Take an artifact out of the store.

        Raises:
            LeaseHeldError: It is pinned or in use.
        """
        ...

    async def pin(self, artifact: str) -> HeldArtifact:
        """Keep an artifact from eviction until it is unpinned."""
        ...

    async def unpin(self, artifact: str) -> HeldArtifact:
        """Let an artifact be evicted again."""
        ...

    async def gc(self) -> Collected:
        """Remove what no artifact and no pull refers to."""
        ...

    async def doctor(self) -> Diagnosis:
        """Look at everything that commonly goes wrong."""
        ...
