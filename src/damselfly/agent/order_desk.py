"""Where peers give orders: the only requests of the peer plane that make a node read an origin.

    POST /v1/warm          an order -> 200 and a line per second, the last one says how it ended
    POST /v1/warm/cancel   an order -> {"cancelled": true|false}

An order is taken if the administrator accepts its ref (`warm.accept`); 403 says what would. 503
means `not now`: ask again. 421 means that an agent asks itself. Hanging up leaves the order going.

Lines are those of the agent's own API: `{"event": "progress", ...}`, and at last a `done`, or
`{"event": "failed", "error": CLASS, "message": TEXT}`. A stream without such an end broke off.
"""

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from damselfly.agent.accept import Accept
from damselfly.agent.fault import fault_of
from damselfly.agent.orders import Orders, Running
from damselfly.errors import DamselflyError, DeniedError, UnavailableError
from damselfly.model.ref import Ref
from damselfly.p2p.orders import Order
from damselfly.p2p.transport import Request, Response

logger = logging.getLogger(__name__)


class OrderDesk:
    """Answers peers who order. Belongs to one event loop; `boot` is our own."""

    def __init__(self, orders: Orders, accept: Accept, boot: str) -> None:
        self._orders = orders
        self._accept = accept
        self._boot = boot
        self._stream_count = 0

    def __repr__(self) -> str:
        return f"<OrderDesk accepts {self._accept}, {self._stream_count} streams, {self._orders!r}>"

    async def __call__(self, request: Request) -> Response:
        """Take an order, or cancel one.

        Raises:
            RemoteProtocolError: what was sent is no order.
        """
        order, boot = Order.parse(await request.read())
        if boot == self._boot:
            return Response(421)
        peer = request.remote[0]
        try:
            self._check(order)
            if request.path.endswith("/cancel"):
                return Response.json({"cancelled": await self._orders.cancel(order)})
            if self._stream_count >= self._orders.limits.streams_max:
                raise UnavailableError("too many others watch their orders")
            running = self._orders.take(order)
        except DamselflyError as exc:
            if not request.path.endswith("/cancel"):
                self._orders.refused()
            logger.warning("order.refused", extra={"peer": peer, "error": str(exc)})
            return Response.json(_told(exc), _status_of(exc))
        logger.info("order.taken", extra={"peer": peer, "ref": running.progress.ref})
        return Response(200, (("content-type", "application/x-ndjson"),), self._lines(running))

    def _check(self, order: Order) -> None:
        ref = Ref.parse(order.ref)
        if self._accept.allows(ref.location):
            return
        if ref.scheme == "file" or ref.query:
            kind = "of its own disk" if ref.scheme == "file" else "with queries"
            raise DeniedError(f"no node takes orders from peers for refs {kind} ({ref.safe})")
        what = "none" if str(self._accept) == "none" else f"only {self._accept}"
        raise DeniedError(
            f"the node takes no orders from peers for {ref.safe} (it accepts {what}): its agent"
            f" would with --warm-accept {ref.safe}, or a prefix of it"
        )

    async def _lines(self, running: Running) -> AsyncGenerator[bytes]:
        self._stream_count += 1
        try:
            async with aclosing(self._orders.watch(running)) as items:
                async for progress in items:
                    yield _line(progress.event, progress.to_json())
            if running.pulled is not None:
                yield _line(running.pulled.event, running.pulled.to_json())
            elif running.failure is not None and not self._orders.is_stopping:
                yield _line("failed", _told(running.failure))
        finally:
            self._stream_count -= 1


def _status_of(error: DamselflyError) -> int:
    match error:
        case UnavailableError():
            return 503
        case DeniedError():
            return 403
        case _:
            return 400


def _told(error: DamselflyError) -> dict[str, object]:
    fault = fault_of(error)
    return {"error": fault.error, "message": fault.message}


def _line(event: str, fields: dict[str, object]) -> bytes:
    return json.dumps({"event": event, **fields}, separators=(",", ":")).encode() + b"\n"
