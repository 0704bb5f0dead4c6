"""A driver that says what a test wants it to: to see what a kubelet does about it.

It answers NodeGetCapabilities, NodeGetInfo and GetInfo by itself. `publish` and `unpublish` are the
test's: they get the request and the call's context.
"""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from damselfly.csi.proto import csi_pb2, registration_pb2

Publish = Callable[[csi_pb2.NodePublishVolumeRequest, grpc.ServicerContext], None]
Unpublish = Callable[[csi_pb2.NodeUnpublishVolumeRequest, grpc.ServicerContext], None]


def make_target(request: csi_pb2.NodePublishVolumeRequest, _context: object) -> None:
    """Do of a publish what a kubelet can see."""
    Path(request.target_path).mkdir(exist_ok=True)


def remove_target(request: csi_pb2.NodeUnpublishVolumeRequest, _context: object) -> None:
    """Undo it."""
    target = Path(request.target_path)
    if target.exists():
        target.rmdir()


class ScriptedDriver:
    """See the module. A context; `counts` are calls by method, `told` what Notify said."""

    def __init__(
        self,
        root: Path,
        *,
        name: str = "csi.damselfly.dev",
        socket_name: str = "csi",
        publish: Publish = make_target,
        unpublish: Unpublish = remove_target,
    ) -> None:
        self.name = name
        self.publish = publish
        self.unpublish = unpublish
        self.info = registration_pb2.PluginInfo(
            type="CSIPlugin", name=name, supported_versions=["1.0.0"]
        )
        self.counts: Counter[str] = Counter()
        self.told: list[tuple[bool, str]] = []
        self.socket = root / "plugins" / name / f"{socket_name}.sock"
        self.registration = root / "plugins_registry" / f"{name}-{socket_name}.sock"
        self._lock = threading.Lock()
        self._servers: list[grpc.Server] = []

    def __enter__(self) -> Self:
        self.socket.parent.mkdir(parents=True, exist_ok=True)
        self.registration.parent.mkdir(parents=True, exist_ok=True)
        self.info.endpoint = str(self.socket)
        node: dict[str, tuple[Any, Any]] = {
            "NodeGetInfo": (csi_pb2.NodeGetInfoRequest, self._get_info),
            "NodeGetCapabilities": (csi_pb2.NodeGetCapabilitiesRequest, self._get_capabilities),
            "NodePublishVolume": (csi_pb2.NodePublishVolumeRequest, self._publish),
            "NodeUnpublishVolume": (csi_pb2.NodeUnpublishVolumeRequest, self._unpublish),
        }
        registration: dict[str, tuple[Any, Any]] = {
            "GetInfo": (registration_pb2.InfoRequest, self._who),
            "NotifyRegistrationStatus": (registration_pb2.RegistrationStatus, self._notified),
        }
        self._serve(self.socket, "csi.v1.Node", node)
        self._serve(self.registration, "pluginregistration.Registration", registration)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in self._servers:
            server.stop(grace=None).wait()
        self.socket.unlink(missing_ok=True)
        self.registration.unlink(missing_ok=True)

    def _serve(self, socket: Path, service: str, methods: dict[str, tuple[Any, Any]]) -> None:
        server = grpc.server(ThreadPoolExecutor(max_workers=16))
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            method: grpc.unary_unary_rpc_method_handler(
                self._counted(method, answer),
                request_deserializer=kind.FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
            for method, (kind, answer) in methods.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        server.add_insecure_port(f"unix://{socket}")
        server.start()
        self._servers.append(server)

    def _counted(self, method: str, answer: Any) -> Any:
        def counted(request: Any, context: grpc.ServicerContext) -> Any:
            with self._lock:
                self.counts[method] += 1
            return answer(request, context)

        return counted

    def _who(self, _request: object, _context: object) -> registration_pb2.PluginInfo:
        return self.info

    def _get_info(self, _request: object, _context: object) -> csi_pb2.NodeGetInfoResponse:
        return csi_pb2.NodeGetInfoResponse(node_id="node-1")

    def _get_capabilities(
        self, _request: object, _context: object
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        return csi_pb2.NodeGetCapabilitiesResponse()

    def _publish(
        self, request: csi_pb2.NodePublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodePublishVolumeResponse:
        self.publish(request, context)
        return csi_pb2.NodePublishVolumeResponse()

    def _unpublish(
        self, request: csi_pb2.NodeUnpublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        self.unpublish(request, context)
        return csi_pb2.NodeUnpublishVolumeResponse()

    def _notified(
        self, request: registration_pb2.RegistrationStatus, _context: object
    ) -> registration_pb2.RegistrationStatusResponse:
        self.told.append((request.plugin_registered, request.error))
        return registration_pb2.RegistrationStatusResponse()
