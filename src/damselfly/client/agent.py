"""The agent's client: one method per question, records for answers, our errors for failures."""

import json
import os
from collections.abc import Iterator, Sequence
from typing import cast
from urllib.parse import quote

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
from damselfly.client.exchange import Exchange
from damselfly.client.record import Record
from damselfly.client.socket_path import find_socket
from damselfly.errors import (
    AgentUnavailableError,
    DamselflyError,
    RemoteProtocolError,
    error_classes,
)

ANSWER_PATIENCE_S = 60.0
STREAM_PATIENCE_S = 60.0  # the agent says at least `still here` every 5 s


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

    def pull(self, request: PullRequest) -> Iterator[Progress | Pulled]:
        """Start or join a pull, and watch it; the last item is `Pulled`.

        Raises:
            DamselflyError: The pull failed, or was cancelled.
        """
        for item in self._stream("/v1/pulls", request.to_json(), (Progress, Pulled)):
            assert isinstance(item, Progress | Pulled)
            yield item

    def pulls(self) -> Sequence[Progress]:
        """The pulls that run."""
        return self._list("/v1/pulls", "pulls", Progress)

    def cancel(self, target: str) -> Sequence[Cancelled]:
        """Stop the pulls of a ref or an artifact."""
        answer = self._ask("POST", "/v1/cancel", {"target": target})
        return _read_list(answer, "cancelled", Cancelled)

    def artifacts(self) -> Sequence[HeldArtifact]:
        """What the store holds."""
        return self._list("/v1/artifacts", "artifacts", HeldArtifact)

    def status(self) -> Status:
        """The agent at a glance."""
        return Status.parse(self._ask("GET", "/v1/status"))

    def verify(
        self, artifact: str | None = None, *, repair: bool = False
    ) -> Iterator[VerifyProgress | BadChunk | Verified]:
        """Re-read and re-hash one artifact, or all; the last item is `Verified`."""
        question = {"artifact": artifact, "repair": repair}
        kinds = (VerifyProgress, BadChunk, Verified)
        for item in self._stream("/v1/verify", question, kinds):
            assert isinstance(item, VerifyProgress | BadChunk | Verified)
            yield item

    def remove(self, artifact: str) -> Removed:
        """Take an artifact out of the store."""
        return Removed.parse(self._ask("POST", "/v1/rm", {"artifact": artifact}))

    def pin(self, artifact: str) -> HeldArtifact:
        """Keep an artifact from eviction."""
        return HeldArtifact.parse(self._ask("POST", "/v1/pin", {"artifact": artifact}))

    def unpin(self, artifact: str) -> HeldArtifact:
        """Let an artifact be evicted again."""
        return HeldArtifact.parse(self._ask("POST", "/v1/unpin", {"artifact": artifact}))

    def gc(self) -> Collected:
        """Remove what no artifact refers to."""
        return Collected.parse(self._ask("POST", "/v1/gc", {}))

    def doctor(self) -> Diagnosis:
        """What the agent finds when it looks at itself."""
        return Diagnosis.parse(self._ask("GET", "/v1/doctor"))

    # --- how it is asked ----------------------------------------------------------------------

    def _begin(self, method: str, target: str, question: object, patience_s: float) -> Exchange:
        body = b"" if question is None else json.dumps(question).encode()
        return Exchange.begin(
            self.socket_path, method, quote(target, safe="/"), body, patience_s=patience_s
        )

    def _ask(self, method: str, target: str, question: object = None) -> object:
        with self._begin(method, target, question, ANSWER_PATIENCE_S) as exchange:
            answer = _load(exchange.read(), self.socket_path)
        if exchange.status != 200:
            raise _error(answer, exchange.status)
        return answer

    def _list[R: Record](self, target: str, key: str, kind: type[R]) -> Sequence[R]:
        return _read_list(self._ask("GET", target), key, kind)

    def _stream(
        self, target: str, question: object, kinds: Sequence[type[Record]]
    ) -> Iterator[Record]:
        with self._begin("POST", target, question, STREAM_PATIENCE_S) as exchange:
            if exchange.status != 200:
                raise _error(_load(exchange.read(), self.socket_path), exchange.status)
            by_event = {kind.event: kind for kind in kinds}
            for line in exchange.lines():
                answer = _load(line, self.socket_path)
                event = answer.get("event") if isinstance(answer, dict) else None
                if event == "failed":
                    raise _error(answer, exchange.status)
                if kind := by_event.get(event):
                    yield kind.parse(answer)
                if event == "done":
                    return
        raise AgentUnavailableError(
            f"the agent on {self.socket_path} stopped while it answered (what it does goes on when"
            " it is back and asked again)"
        )
