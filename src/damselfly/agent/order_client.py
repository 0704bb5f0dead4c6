"""Giving orders to peers: our side of what `order_desk` answers."""

import json
from collections.abc import AsyncGenerator, Mapping
from typing import cast

from damselfly.agent.warm import MESSAGE_CHARS_MAX, Fault
from damselfly.client.answers import Progress, Pulled
from damselfly.errors import (
    DamselflyError,
    PeerUnavailableError,
    RemoteProtocolError,
    UnavailableError,
    error_classes,
)
from damselfly.p2p.orders import Order
from damselfly.p2p.transport import PeerPool

STALL_S = 20.0
"""A peer that has taken an order says something every second."""
CANCEL_S = 10.0
REFUSAL_BYTES_MAX = 64 * 1024


class OurselvesError(DamselflyError):
    """The address is one of our own."""


class OrderClient:
    """Gives orders over a pool of its own: a stream to every target would leave others nothing."""

    def __init__(self, pool: PeerPool, boot: str) -> None:
        self._pool = pool
        self._boot = boot

    async def watch(self, agent: str, order: Order) -> AsyncGenerator[Progress | Pulled | Fault]:
        """Give an order, or join it; the last item is `Pulled`, or what the node says went wrong.

        Raises:
            UnavailableError: the node cannot be reached, hung up, or takes no order just now.
            RemoteProtocolError: it answers with what no agent says.
            OurselvesError: we would ask ourselves.
        """
        async with self._pool.stream(
            agent, "POST", "/v1/warm", body=order.to_json(self._boot), stall_s=STALL_S
        ) as reply:
            if reply.status != 200:
                body = bytearray()
                async for block in reply.blocks():
                    body += block
                    if len(body) > REFUSAL_BYTES_MAX:
                        raise RemoteProtocolError(f"{agent} refuses an order at too great length")
                yield _refusal(agent, reply.status, bytes(body))
                return
            async for line in reply.lines():
                told = _object(agent, line)
                match told.get("event"):
                    case Progress.event:
                        yield Progress.parse(told)
                    case Pulled.event:
                        yield Pulled.parse(told)
                        return
                    case "failed":
                        yield _fault(told)
                        return
                    case _:
                        pass  # A newer agent may say more.
        raise PeerUnavailableError(f"{agent} broke off while it carried out an order")

    async def cancel(self, agent: str, order: Order) -> bool | Fault:
        """Have an order cancelled; tells whether there was one, or why the node does not do it.

        Raises:
            UnavailableError: the node cannot be reached.
            RemoteProtocolError: it answers with what no agent says.
            OurselvesError: we would ask ourselves.
        """
        reply = await self._pool.request(
            agent,
            "POST",
            "/v1/warm/cancel",
            body=order.to_json(self._boot),
            deadline_s=CANCEL_S,
        )
        if reply.status != 200:
            return _refusal(agent, reply.status, reply.body)
        return _object(agent, reply.body).get("cancelled") is True


def _refusal(agent: str, status: int, body: bytes) -> Fault:
    match status:
        case 421:
            raise OurselvesError(f"{agent} is this agent")
        case 404:
            raise RemoteProtocolError(f"{agent} knows no orders: it runs an older agent than ours")
        case 503:
            told = _fault(_object(agent, body)).message if body else f"{agent} is starting"
            raise UnavailableError(told)
        case _:
            return _fault(_object(agent, body))


def _object(agent: str, data: bytes) -> Mapping[str, object]:
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise RemoteProtocolError(f"{agent} does not answer an order in JSON") from exc
    if not isinstance(value, dict):
        raise RemoteProtocolError(f"{agent} answers an order with something that is no object")
    return cast("dict[str, object]", value)


def _fault(told: Mapping[str, object]) -> Fault:
    """What a node says went wrong; an error that we do not know is the root of all."""
    name = str(told.get("error"))
    known = name if name in error_classes() else DamselflyError.__name__
    return Fault(known, str(told.get("message"))[:MESSAGE_CHARS_MAX])
