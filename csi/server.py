"""gRPC on a unix socket. No method is known here: services bring a table of theirs.

Served by the event loop rather than by a pool of threads. A publish may wait for a hundred seconds,
and fifty of them for the same model: as coroutines they are fifty futures, while a pool of any size
has a number of waiting publishes that leaves no thread for Probe, upon which a liveness probe kills
the driver.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from damselfly.csi.calls import Calls
from damselfly.errors import ConfigError

FAREWELL_S = 2.0
"""How long a stop waits for calls that are being answered. Waiting publishes are called again."""
REQUEST_BYTES_MAX = 1024 * 1024
"""CSI allows 4 KiB for a map; a secret of Kubernetes has 1 MiB at most."""


def service(descriptor: ServiceDescriptor, methods: object, calls: Calls) -> grpc.GenericRpcHandler:
    """The methods of a service that `methods` has; gRPC answers UNIMPLEMENTED to the others."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in descriptor.methods:
        if (answer := getattr(methods, method.name, None)) is None:
            continue
        handlers[method.name] = grpc.unary_unary_rpc_method_handler(
            calls.answering(method.name, answer),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)


class SocketServer:
    """Answers on a unix socket while the context is entered; the file is gone afterwards.

    The socket is made under another name and renamed: it is there from the moment on in which
    somebody answers, with its permissions, and an old one is replaced without a gap.
    """

    def __init__(self, path: Path, services: Iterable[grpc.GenericRpcHandler]) -> None:
        self._path = path
        self._services = list(services)
        self._server: grpc.aio.Server | None = None
        self._identity: tuple[int, int] | None = None

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            ConfigError: The socket cannot be made.
        """
        server = grpc.aio.server(
            handlers=self._services,
            options=[("grpc.max_receive_message_length", REQUEST_BYTES_MAX)],
        )
        aside = self._path.with_name(f".{os.getpid():x}")
        before = os.umask(0o077)  # Whoever may open the socket may mount: root alone.
        try:
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            aside.unlink(missing_ok=True)
            server.add_insecure_port(f"unix://{aside}")
            await server.start()
            status = aside.lstat()
            aside.rename(self._path)
        except (OSError, RuntimeError) as exc:
            aside.unlink(missing_ok=True)
            raise ConfigError(f"making the socket {self._path}") from exc
        finally:
            os.umask(before)
        self._server = server
        self._identity = (status.st_dev, status.st_ino)
        return self

    @property
    def is_there(self) -> bool:
        """Whoever opens the path reaches us."""
        try:
            status = self._path.lstat()
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        if self.is_there:  # And not a successor's.
            self._path.unlink(missing_ok=True)
        await self._server.stop(FAREWELL_S)
