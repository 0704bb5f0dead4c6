"""The agent's client: one method per question, records for answers, our errors for failures."""

import json
import os
from collections.abc import Generator, Mapping, Sequence
from typing import TypeVar, cast

from damselfly.client.answers import (
    ArtifactRequest,
    BadChunk,
    Cancelled,
    CancelRequest,
    Capacity,
    CapacityRequest,
    Collected,
    Diagnosis,
    Explained,
    HeldArtifact,
    Opened,
    Progress,
    Pulled,
    PullRequest,
    Removed,
    Status,
    Verified,
    VerifyProgress,
    VerifyRequest,
    VolumeRequest,
    Warmed,
    WarmProgress,
    WarmRequest,
)
from damselfly.client.exchange import Exchange
from damselfly.client.record import Record
from damselfly.client.socket_path import find_socket
from damselfly.errors import (
    AgentUnavailableError,
    DamselflyError,
    RemoteProtocolError,
    UsageError,
    error_classes,
)

R = TypeVar("R", bound=Record)

ANSWER_PATIENCE_S = 60.0
STREAM_PATIENCE_S = 60.0  # the agent says at least `still here` every 5 s
_UNKNOWN_PATH = frozenset({404, 405})
"""With these an agent says of a path what it says of a usage: that it knows no such."""


class AgentClient:
    """Asks the agent that listens on a unix socket.

    Holds no connection between calls, so it may be shared by threads, and a stream that is not
    read to its end is closed by closing its iterator. Every method raises AgentUnavailableError if
    nobody answers, and otherwise what the agent says went wrong, as an error of the same class.
    """

    def __init__(self, socket_path: str | None = None) -> None:
        self.socket_path = socket_path or find_socket(os.environ, os.geteuid())

    def __repr__(self) -> str:
        return f"<AgentClient {self.socket_path}>"

    def pull(self, request: PullRequest) -> Generator[Progress | Pulled]:
        """Start or join a pull, and watch it; the last item is `Pulled`.

        Raises:
            DamselflyError: The pull failed, or was cancelled.
        """
        for item in self._stream("/v1/pulls", request, (Progress, Pulled)):
            assert isinstance(item, Progress | Pulled)
            yield item

    def open_volume(self, request: VolumeRequest) -> Generator[Progress | Opened]:
        """Prove, pull, lease and show a volume, and watch it; the last item is `Opened`.

        Closing the iterator leaves the pull going, and the same request joins it.

        Raises:
            DamselflyError: It cannot be opened; there is no lease.
        """
        for item in self._stream("/v1/volumes", request, (Progress, Opened)):
            assert isinstance(item, Progress | Opened)
            yield item

    def capacity(self, request: CapacityRequest) -> Capacity:
        """How much could be stored, of anything or of one ref."""
        return Capacity.parse(self._ask("POST", "/v1/capacity", request))

    def pulls(self) -> Sequence[Progress]:
        """The pulls that run."""
        return self._list("/v1/pulls", "pulls", Progress)

    def cancel(self, target: str) -> Sequence[Cancelled]:
        """Stop the pulls of a ref or an artifact."""
        answer = self._ask("POST", "/v1/cancel", CancelRequest(target=target))
        return _read_list(answer, "cancelled", Cancelled)

    def warm(self, request: WarmRequest) -> Generator[WarmProgress | Warmed]:
        """Start or join a warm-up, and watch it; the last item is `Warmed`, whatever the outcome.

        Raises:
            DamselflyError: Nodes cannot be warmed like this at all.
        """
        for item in self._stream("/v1/warm", request, (WarmProgress, Warmed)):
            assert isinstance(item, WarmProgress | Warmed)
            yield item

    def cancel_warm(self, request: WarmRequest) -> Warmed:
        """Stop warm-ups of a ref with these filters on the nodes that the request names."""
        return Warmed.parse(self._ask("POST", "/v1/warm/cancel", request))

    def explain(self, target: str) -> Explained:
        """Where the chunks of the latest pull of a ref or an artifact came from, and why."""
        return Explained.parse(self._ask("POST", "/v1/explain", CancelRequest(target=target)))

    def artifacts(self) -> Sequence[HeldArtifact]:
        """What the store holds."""
        return self._list("/v1/artifacts", "artifacts", HeldArtifact)

    def status(self) -> Status:
        """The agent at a glance."""
        return Status.parse(self._ask("GET", "/v1/status"))

    def verify(
        self, artifact: str | None = None, *, repair: bool = False
    ) -> Generator[VerifyProgress | BadChunk | Verified]:
        """Re-read and re-hash one artifact, or all; the last item is `Verified`."""
        question = VerifyRequest(artifact=artifact, repair=repair)
        kinds = (VerifyProgress, BadChunk, Verified)
        for item in self._stream("/v1/verify", question, kinds):
            assert isinstance(item, VerifyProgress | BadChunk | Verified)
            yield item

    def remove(self, artifact: str) -> Removed:
        """Take an artifact out of the store."""
        return Removed.parse(self._ask("POST", "/v1/rm", ArtifactRequest(artifact=artifact)))

    def pin(self, artifact: str) -> HeldArtifact:
        """Keep an artifact from eviction."""
        return HeldArtifact.parse(self._ask("POST", "/v1/pin", ArtifactRequest(artifact=artifact)))

    def unpin(self, artifact: str) -> HeldArtifact:
        """Let an artifact be evicted again."""
        return HeldArtifact.parse(
            self._ask("POST", "/v1/unpin", ArtifactRequest(artifact=artifact))
        )

    def gc(self) -> Collected:
        """Remove what no artifact refers to."""
        return Collected.parse(self._ask("POST", "/v1/gc"))

    def doctor(self) -> Diagnosis:
        """What the agent finds when it looks at itself."""
        return Diagnosis.parse(self._ask("GET", "/v1/doctor"))

    # --- how it is asked ----------------------------------------------------------------------

    def _begin(
        self, method: str, target: str, question: Record | None, patience_s: float
    ) -> Exchange:
        body = b"" if question is None else json.dumps(question.to_json()).encode()
        return Exchange.begin(self.socket_path, method, target, body, patience_s=patience_s)

    def _ask(self, method: str, target: str, question: Record | None = None) -> object:
        with self._begin(method, target, question, ANSWER_PATIENCE_S) as exchange:
            answer = _load(exchange.read(), self.socket_path)
        if exchange.status != 200:
            raise _error(answer, exchange.status)
        return answer

    def _list(self, target: str, key: str, kind: type[R]) -> Sequence[R]:
        return _read_list(self._ask("GET", target), key, kind)

    def _stream(
        self, target: str, question: Record, kinds: Sequence[type[Record]]
    ) -> Generator[Record]:
        with self._begin("POST", target, question, STREAM_PATIENCE_S) as exchange:
            if exchange.status != 200:
                raise _error(_load(exchange.read(), self.socket_path), exchange.status)
            by_event = {kind.event: kind for kind in kinds}
            for line in exchange.lines():
                answer = _object(_load(line, self.socket_path))
                event = str(answer.get("event"))
                if event == "failed":
                    raise _error(answer, exchange.status)
                if kind := by_event.get(event):
                    yield kind.parse(answer)
                if event == "done":
                    return
        raise AgentUnavailableError(
            f"the agent on {self.socket_path} broke off without a word: it crashed or was killed,"
            " and its log may tell why; what has come is kept, and the same request goes on from"
            " there when an agent is back"
        )


def _load(text: bytes, socket_path: str) -> object:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise RemoteProtocolError(f"what answers on {socket_path} does not speak JSON") from exc


def _object(answer: object) -> Mapping[str, object]:
    if not isinstance(answer, dict):
        raise RemoteProtocolError("the agent answers with something that is not a JSON object")
    return cast("dict[str, object]", answer)


def _read_list(answer: object, key: str, kind: type[R]) -> Sequence[R]:
    items = _object(answer).get(key)
    if not isinstance(items, list):
        raise RemoteProtocolError(f"the agent's answer lacks the list {key!r}")
    return [kind.parse(item) for item in cast("list[object]", items)]


def _error(answer: object, status: int) -> DamselflyError:
    """The error that the agent met, of its own class; a class that we do not know is the root."""
    told = _object(answer)
    cls = error_classes().get(str(told.get("error")), DamselflyError)
    message = str(told.get("message") or f"the agent answers with status {status}")
    if cls is UsageError and status in _UNKNOWN_PATH:
        return RemoteProtocolError(f"the agent is of a version without {message.partition(':')[0]}")
    # Some classes build their message from parts, and only the message crossed the socket.
    error = cls.__new__(cls)
    error.args = (message,)
    return error
