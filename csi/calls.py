"""What surrounds every call: errors become statuses, one line is logged, one duration observed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from damselfly.clock import Clock
from damselfly.csi.status import Code, code_of, shortened
from damselfly.errors import DamselflyError, explain
from damselfly.log import HIDDEN, redact
from damselfly.metrics import DriverMetrics

logger = logging.getLogger(__name__)

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Context = grpc.aio.ServicerContext[Any, Any]

QUIET = frozenset({"Probe", "GetInfo", "GetPluginInfo", "GetPluginCapabilities"}) | {
    f"{service}GetCapabilities" for service in ("Node", "Controller")
}
"""Asked every few seconds, and the same each time."""

SECRET_CHARS_MIN = 4
"""A value so short is no secret, and hiding each `a` of a message would hide the message."""

_STATUS = {code.value[0]: code for code in grpc.StatusCode}


class Calls:
    """Wraps the methods of every service. Used by one event loop."""

    def __init__(self, metrics: DriverMetrics, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock

    def answering(
        self, method: str, answer: Callable[[Request, Context], Awaitable[Response]]
    ) -> Callable[[Request, Context], Awaitable[Response]]:
        """`answer` as gRPC may call it: what it raises becomes a status and a line in the log."""

        async def answered(request: Request, context: Context) -> Response:
            began_s = self._clock.monotonic_s()

            def account(code: Code, error: Exception | None = None) -> None:
                self._account(method, request, code, error, self._clock.monotonic_s() - began_s)

            try:
                response = await answer(request, context)
            except asyncio.CancelledError:
                account(Code.CANCELLED)  # The caller has hung up; what it began goes on.
                raise
            except Exception as exc:
                code = code_of(exc)
                account(code, exc)
                await context.abort(_STATUS[code.value], _message(exc, request))
                raise AssertionError("abort raises") from exc
            account(Code.OK)
            return response

        return answered

    def _account(
        self, method: str, request: Message, code: Code, error: Exception | None, seconds: float
    ) -> None:
        self._metrics.operation_ended(method, code.name, seconds)
        fields: dict[str, object] = {
            "method": method,
            "code": code.name,
            "duration_s": round(seconds, 4),
            **_told(request),
        }
        if error is not None:
            fields["error"] = _message(error, request)
        if code is Code.OK:
            level = logging.DEBUG if method in QUIET else logging.INFO
        else:
            level = logging.WARNING if code is not Code.INTERNAL else logging.ERROR
        # A bug of ours is told with its traceback; what has a name is told by it.
        is_bug = error is not None and not isinstance(error, DamselflyError)
        logger.log(level, "call.answered", extra=fields, exc_info=error if is_bug else None)


def _message(error: Exception, request: Message) -> str:
    """What went wrong, for the log and for the pod's event, without what the request keeps secret.

    No error repeats a secret; this is for the one that does it by mistake.
    """
    text = redact(explain(error))
    secrets: Mapping[str, str] = getattr(request, "secrets", {})
    for value in secrets.values():
        if len(value) >= SECRET_CHARS_MIN:
            text = text.replace(value, HIDDEN)
    return shortened(text)


def _told(request: Message) -> dict[str, object]:
    """What of a request may be logged: who it is about. Contexts and secrets never are."""
    found: dict[str, object] = {}
    for field in ("volume_id", "target_path", "volume_path", "name", "plugin_registered", "error"):
        if value := getattr(request, field, None):
            # `name` is taken by the logging library, `error` by what we answer.
            found[{"name": "volume_name", "error": "told"}.get(field, field)] = value
    return found
