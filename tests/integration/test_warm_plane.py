"""Orders between two agents over real HTTP/2: the desk that takes them, and who gives them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

import pytest

from damselfly.agent.accept import Accept
from damselfly.agent.order_client import OrderClient, OurselvesError
from damselfly.agent.order_desk import OrderDesk
from damselfly.agent.orders import OrderLimits, Orders
from damselfly.agent.warm import Fault
from damselfly.client.answers import Progress, Pulled
from damselfly.errors import (
    OriginDeniedError,
    PeerUnavailableError,
    RemoteProtocolError,
    UnavailableError,
)
from damselfly.p2p.orders import Order
from damselfly.p2p.transport import PeerPool, PeerServer, Request, Response
from tests.fakes.puller import FakePuller

ORDER = Order(ref="https://host/models/x/")
THEIRS, OURS = "1" * 32, "2" * 32


@dataclass
class Pair:
    """A node that takes orders below `https://host/models/`, and somebody who gives them."""

    node: FakePuller
    orders: Orders
    desk: OrderDesk
    server: PeerServer
    pool: PeerPool
    counted: list[str]

    @property
    def client(self) -> OrderClient:
        return OrderClient(self.pool, OURS)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    async def told(self, order: Order = ORDER) -> list[Progress | Pulled | Fault]:
        """Everything that is said of an order."""
        async with asyncio.timeout(20):
            return [item async for item in self.client.watch(self.address, order)]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    counted: list[str] = []
    async with AsyncExitStack() as stack:
        node = FakePuller()
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        stack.callback(node.release)
        limits = OrderLimits(orders_max=4, streams_max=2, tell_interval_s=0.01)
        orders = Orders(node, tasks, counted.append, limits)
        desk = OrderDesk(orders, Accept(prefixes=("https://host/models/",)), THEIRS)
        server = PeerServer(desk)
        await server.start("127.0.0.1", 0)
        stack.push_async_callback(server.close)
        pool = PeerPool()
        stack.push_async_callback(pool.close)
        yield Pair(node, orders, desk, server, pool, counted)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def test_an_order_is_carried_out_and_told_of_to_its_end(pair: Pair) -> None:
    watching = asyncio.create_task(pair.told())
    await until(lambda: pair.node.pull_count == 1)
    pair.node.release()

    *moments, last = await watching

    assert all(isinstance(moment, Progress) for moment in moments)
    assert isinstance(last, Pulled)
    assert last.bytes == 10
    assert pair.counted == ["completed"]


async def test_hanging_up_leaves_the_order_going(pair: Pair) -> None:
    async with aclosing(pair.client.watch(pair.address, ORDER)) as items:
        await anext(items)
    await until(lambda: "0 streams" in repr(pair.desk))

    pair.node.release()
    last = (await pair.told())[-1]

    assert isinstance(last, Pulled)


async def test_what_fails_there_is_told_here_by_its_class(pair: Pair) -> None:
    pair.node.failure = OriginDeniedError("host says no to https://host/x?key=secret")
    pair.node.release()

    last = (await pair.told())[-1]

    assert isinstance(last, Fault)
    assert last.error == "OriginDeniedError"
    assert "host says no" in last.message
    assert "secret" not in last.message


@pytest.mark.parametrize(
    ("ref", "error", "reason"),
    [
        ("https://host/others/", "DeniedError", "accepts only https://host/models/"),
        ("https://host/models/x?key=secret", "DeniedError", "refs with queries"),
        ("file:///etc/", "DeniedError", "refs of its own disk"),
        ("gopher://host/models/", "DeniedError", "accepts only https://host/models/"),
    ],
)
async def test_what_is_not_accepted_is_refused_and_counted(
    pair: Pair, ref: str, error: str, reason: str
) -> None:
    (fault,) = await pair.told(Order(ref=ref))
    cancelled = await pair.client.cancel(pair.address, Order(ref=ref))

    assert isinstance(fault, Fault)
    assert fault.error == error
    assert reason in fault.message
    assert "secret" not in fault.message
    assert cancelled == fault
    assert pair.counted == ["refused"]
    assert pair.node.pull_count == 0


async def test_a_node_that_is_busy_or_starts_is_asked_again_later(pair: Pair) -> None:
    pair.node.state = "starting"

    with pytest.raises(UnavailableError, match="starting"):
        await pair.told()


async def test_no_more_watch_than_allowed(pair: Pair) -> None:
    async with (
        aclosing(pair.client.watch(pair.address, ORDER)) as one,
        aclosing(pair.client.watch(pair.address, ORDER)) as two,
    ):
        await anext(one)
        await anext(two)

        with pytest.raises(UnavailableError, match="watch"):
            await pair.told()


async def test_an_order_is_cancelled_for_all_who_watch(pair: Pair) -> None:
    watching = asyncio.create_task(pair.told())
    await until(lambda: pair.node.pull_count == 1)

    first = await pair.client.cancel(pair.address, ORDER)
    again = await pair.client.cancel(pair.address, ORDER)
    last = (await watching)[-1]

    assert (first, again) == (True, False)
    assert isinstance(last, Fault)
    assert last.error == "CancelledError"


async def test_an_agent_that_stops_breaks_off_rather_than_to_say_that_it_failed(
    pair: Pair,
) -> None:
    watching = asyncio.create_task(pair.told())
    await until(lambda: pair.node.pull_count == 1)

    pair.node.drain()

    with pytest.raises(PeerUnavailableError, match="broke off"):
        await watching


async def test_an_agent_that_asks_itself_finds_out(pair: Pair) -> None:
    itself = OrderClient(pair.pool, THEIRS)

    with pytest.raises(OurselvesError):
        await anext(itself.watch(pair.address, ORDER))
    with pytest.raises(OurselvesError):
        await itself.cancel(pair.address, ORDER)


async def test_a_body_that_is_no_order_is_refused(pair: Pair) -> None:
    for body in (b"", b"[]", b'{"ref": 7}', b"\xff"):
        reply = await pair.pool.request(
            pair.address, "POST", "/v1/warm", body=body, deadline_s=10.0
        )
        assert reply.status == 400
    assert pair.node.pull_count == 0


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (Response(404), RemoteProtocolError),
        (Response(200, body=b"garbage\n"), RemoteProtocolError),
        (Response(200, body=b"[1]\n"), RemoteProtocolError),
        (Response(200, body=b'{"event": "progress"}\n'), RemoteProtocolError),
        (Response(200, body=b'{"event": "done", "bytes": -1}\n'), RemoteProtocolError),
        (Response(200, body=b'{"event": "newer"}\n'), PeerUnavailableError),
        (Response(200), PeerUnavailableError),
        (Response(403, body=b"no"), RemoteProtocolError),
        (Response(500), RemoteProtocolError),
        (Response(503), UnavailableError),
        (Response(403, body=b"x" * 100_000), RemoteProtocolError),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_whatever_a_peer_answers_is_an_error_of_ours(
    pair: Pair, response: Response, error: type[Exception]
) -> None:
    async def answer(_: Request) -> Response:
        return response

    pair.server.handler = answer

    with pytest.raises(error):
        await pair.told()


async def test_an_error_that_we_do_not_know_is_the_root_of_all(pair: Pair) -> None:
    async def answer(_: Request) -> Response:
        return Response.json({"error": "NewerError", "message": "m" * 1000}, 400)

    pair.server.handler = answer

    (fault,) = await pair.told()

    assert isinstance(fault, Fault)
    assert fault.error == "DamselflyError"
    assert len(fault.message) == 400
