"""`damselfly csi` as a process, with a fleet's agent behind it, and calls to it over its socket."""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from bench.agents import DAMSELFLY, READY_PATIENCE_S, Agent, BenchError, Fleet, Process
from damselfly.csi.proto import csi_pb2

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)

NAME = "csi.damselfly.dev"
CALL_PATIENCE_S = 120.0
"""The kubelet's."""


class Driver:
    """A driver on one node: the kubelet's directory, the agent's socket, and a process or none.

    It may be ended and started again; sockets, state and mounts stay where they are.
    """

    def __init__(
        self,
        fleet: Fleet,
        root: Path,
        agent: Agent,
        *options: str,
        node_id: str = "node-1",
        name: str = NAME,
        prefix: Sequence[str] = (),
    ) -> None:
        self.root = root
        self.name = name
        self.node_id = node_id
        self.socket = root / "plugins" / name / "csi.sock"
        self.state = root / "plugins" / name / "volumes"
        self.options = options
        self._prefix = prefix
        self._fleet = fleet
        self._agent_socket = agent.client.socket_path
        self._process: Process | None = None

    @property
    def process(self) -> Process:
        """The process that was started last."""
        assert self._process is not None, "the driver was never started"
        return self._process

    def start(self, *options: str) -> None:
        """Start it, and wait until it says that it is ready.

        Raises:
            BenchError: it ended instead, or takes too long.
        """
        for folder in ("pods", "plugins_registry", f"plugins/{self.name}"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        command = [
            *self._prefix,
            *(*DAMSELFLY, "csi"),
            *("--endpoint", f"unix://{self.socket}"),
            *("--agent-socket", self._agent_socket),
            *("--node-id", self.node_id),
            *("--kubelet-root", str(self.root)),
            *("--driver-name", self.name),
            *("--state", str(self.state)),
            *("--log-format", "json"),
            *self.options,
            *options,
        ]
        self._process = self._fleet.start(f"csi-{self.node_id}", command)
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + READY_PATIENCE_S
        while True:
            try:
                answer = self.call(
                    "Identity/Probe", csi_pb2.ProbeRequest(), csi_pb2.ProbeResponse, 1.0
                )
                if answer.ready.value:
                    return
            except grpc.RpcError:
                pass
            if not self.process.is_alive:
                raise BenchError(self.process.last_words())
            if time.monotonic() > deadline_s:
                raise BenchError(f"the driver is not ready; {self.process.last_words()}")
            time.sleep(0.01)

    def call(
        self, method: str, request: Message, kind: type[R], patience_s: float = CALL_PATIENCE_S
    ) -> R:
        """Call `Service/Method` on a connection of its own, as the kubelet does.

        Raises:
            grpc.RpcError: it was not OK, or nobody answered in time.
        """
        with self._dialled() as channel:
            return _method(channel, method, request, kind)(request, timeout=patience_s)

    def _dialled(self) -> grpc.Channel:
        options = (
            ("grpc.default_authority", "localhost"),
            ("grpc.use_local_subchannel_pool", 1),
        )
        return grpc.insecure_channel(f"unix://{self.socket}", options=options)

    def target_of(self, pod_uid: str, volume: str = "weights") -> Path:
        """Where a pod has a volume."""
        return self.root / "pods" / pod_uid / "volumes/kubernetes.io~csi" / volume / "mount"

    def publish(
        self,
        volume_id: str,
        target: Path,
        attributes: Mapping[str, str],
        *,
        secrets: Mapping[str, str] | None = None,
        patience_s: float = CALL_PATIENCE_S,
    ) -> None:
        """Publish an inline volume; the target's parent is made, as the kubelet does.

        Raises:
            grpc.RpcError: it was not OK.
        """
        request = _publish_request(volume_id, target, attributes, secrets or {})
        self.call("Node/NodePublishVolume", request, csi_pb2.NodePublishVolumeResponse, patience_s)

    @contextmanager
    def begin_publish(
        self, volume_id: str, target: Path, attributes: Mapping[str, str]
    ) -> Generator["grpc.Future[csi_pb2.NodePublishVolumeResponse]"]:
        """Begin a publish without a deadline, to be cancelled; it is when this is left."""
        request = _publish_request(volume_id, target, attributes, {})
        kind = csi_pb2.NodePublishVolumeResponse
        with self._dialled() as channel:
            yield _method(channel, "Node/NodePublishVolume", request, kind).future(request)

    def unpublish(self, volume_id: str, target: Path) -> None:
        """Unpublish a volume.

        Raises:
            grpc.RpcError: it was not OK.
        """
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(target))
        self.call("Node/NodeUnpublishVolume", request, csi_pb2.NodeUnpublishVolumeResponse)


def _method(
    channel: grpc.Channel, method: str, request: Q, kind: type[R]
) -> "grpc.UnaryUnaryMultiCallable[Q, R]":
    return channel.unary_unary(
        f"/csi.v1.{method}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=kind.FromString,
    )


def _publish_request(
    volume_id: str, target: Path, attributes: Mapping[str, str], secrets: Mapping[str, str]
) -> csi_pb2.NodePublishVolumeRequest:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    return csi_pb2.NodePublishVolumeRequest(
        volume_id=volume_id,
        target_path=str(target),
        volume_capability=mount_capability(),
        volume_context={**attributes, "csi.storage.k8s.io/ephemeral": "true"},
        secrets=secrets,
    )


def mount_capability(mode: str = "SINGLE_NODE_WRITER") -> csi_pb2.VolumeCapability:
    """A volume to mount, by the name of its access mode; the kubelet's inline ones are writers."""
    return csi_pb2.VolumeCapability(
        mount=csi_pb2.VolumeCapability.MountVolume(),
        access_mode=csi_pb2.VolumeCapability.AccessMode(
            mode=csi_pb2.VolumeCapability.AccessMode.Mode.Value(mode)
        ),
    )
