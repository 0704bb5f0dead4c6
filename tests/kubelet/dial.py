"""One connection per call, as the kubelet makes them, and calls that share a deadline.

Nothing is kept between calls: a mount is 3 connections (inline) or 5 (a persistent volume). A
call whose deadline passes is cancelled on the wire, and the driver's handler may well run on.
"""

import threading
import time
from pathlib import Path
from typing import TypeVar, cast

import grpc
from google.protobuf.message import Message

from damselfly.csi.proto import csi_pb2

R = TypeVar("R", bound=Message)

_OPTIONS = (
    ("grpc.default_authority", "localhost"),
    ("grpc.use_local_subchannel_pool", 1),  # No connection is shared, not even with ourselves.
)


def dial(socket: Path) -> grpc.Channel:
    """A connection of its own."""
    return grpc.insecure_channel(f"unix://{socket}", options=_OPTIONS)


def ask(channel: grpc.Channel, method: str, request: Message, kind: type[R], seconds: float) -> R:
    """Say `/package.Service/Method` on a connection; at most that many seconds of ours.

    Raises:
        grpc.RpcError: whatever was not OK; its `code()` and `details()` tell.
    """
    say = channel.unary_unary(
        method,
        request_serializer=type(request).SerializeToString,
        response_deserializer=kind.FromString,
    )
    answer = say(request, timeout=max(seconds, 0.001))
    assert isinstance(answer, kind)
    return answer


def call(socket: Path, method: str, request: Message, kind: type[R], seconds: float) -> R:
    """Dial, ask, hang up.

    Raises:
        grpc.RpcError: as `ask`.
    """
    with dial(socket) as channel:
        return ask(channel, method, request, kind, seconds)


class Attempt:
    """Calls to one driver under one deadline."""

    def __init__(self, socket: Path, seconds: float) -> None:
        self._socket = socket
        self._deadline_s = time.monotonic() + seconds
        self.connections = 0
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._is_over = False

    def node(self, method: str, request: Message, kind: type[R]) -> R:
        """Ask the Node service."""
        with dial(self._socket) as channel:
            with self._lock:
                self._channel = channel
                if self._is_over:
                    channel.close()
            self.connections += 1
            left_s = self._deadline_s - time.monotonic()
            return ask(channel, f"/csi.v1.Node/{method}", request, kind, left_s)

    def hang_up(self) -> None:
        """Cut the call off that is under way, and every later one."""
        with self._lock:
            self._is_over = True
            if self._channel is not None:
                self._channel.close()

    def capabilities(self) -> frozenset[int]:
        """Ask what the node can do: the kubelet does before nearly everything."""
        answer = self.node(
            "NodeGetCapabilities",
            csi_pb2.NodeGetCapabilitiesRequest(),
            csi_pb2.NodeGetCapabilitiesResponse,
        )
        return frozenset(each.rpc.type for each in answer.capabilities)


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    """The status of a call that failed."""
    return cast("grpc.Call", error).code()


def details_of(error: grpc.RpcError) -> str:
    """What the driver said about it."""
    return str(cast("grpc.Call", error).details())
