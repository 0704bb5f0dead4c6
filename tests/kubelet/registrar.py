"""The sidecar that most drivers have, node-driver-registrar, as far as a kubelet can see it.

It asks the driver for its name, then answers the kubelet's plugin watcher in the driver's place.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from damselfly.csi.proto import csi_pb2, registration_pb2
from tests.kubelet.dial import call


class Registrar:
    """See the module. A context; `told` is what the kubelet said."""

    def __init__(self, driver_socket: Path, root: Path) -> None:
        self._driver_socket = driver_socket
        self._registry = root / "plugins_registry"
        self._server: grpc.Server | None = None
        self.told: list[tuple[bool, str]] = []
        self._name = ""

    @property
    def socket(self) -> Path:
        """Where the kubelet finds it."""
        return self._registry / f"{self._name}-reg.sock"

    def __enter__(self) -> Self:
        info = call(
            self._driver_socket,
            "/csi.v1.Identity/GetPluginInfo",
            csi_pb2.GetPluginInfoRequest(),
            csi_pb2.GetPluginInfoResponse,
            10.0,
        )
        self._name = info.name
        methods: dict[str, tuple[Any, Any]] = {
            "GetInfo": (registration_pb2.InfoRequest, self._get_info),
            "NotifyRegistrationStatus": (registration_pb2.RegistrationStatus, self._notified),
        }
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(
                answer,
                request_deserializer=kind.FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
            for name, (kind, answer) in methods.items()
        }
        service = "pluginregistration.Registration"
        server = grpc.server(ThreadPoolExecutor(max_workers=2))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self._registry.mkdir(parents=True, exist_ok=True)
        server.add_insecure_port(f"unix://{self.socket}")
        server.start()
        self._server = server
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.stop(grace=None).wait()
        self.socket.unlink(missing_ok=True)

    def _get_info(self, _request: object, _context: object) -> registration_pb2.PluginInfo:
        return registration_pb2.PluginInfo(
            type="CSIPlugin",
            name=self._name,
            endpoint=str(self._driver_socket),
            supported_versions=["1.0.0"],
        )

    def _notified(
        self, request: registration_pb2.RegistrationStatus, _context: object
    ) -> registration_pb2.RegistrationStatusResponse:
        self.told.append((request.plugin_registered, request.error))
        return registration_pb2.RegistrationStatusResponse()
