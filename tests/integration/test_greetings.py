"""Greetings that no agent of ours would send: they cost who sends them, and nobody else."""

import asyncio
from functools import partial

import pytest

from damselfly.clock import SystemClock
from damselfly.errors import RemoteProtocolError
from damselfly.p2p.agents import Agents, hello_bytes, parse_hello
from damselfly.p2p.discovery import StaticPeers
from damselfly.p2p.membership import Hello
from damselfly.p2p.messages import AgentID
from damselfly.p2p.transport import PeerPool, Request, Response
from tests.fakes.peers import address_of, serving, until

ME = Hello(AgentID("127.0.0.1:1"), "boot-me", "")
DEEP = b"[" * 60_000


@pytest.mark.parametrize(
    "data",
    [
        DEEP,
        b"",
        b"[]",
        b"{}",
        b'{"protocol":1}',
        b'{"protocol":2,"agent":"a:1","boot":"b"}',
        b'{"protocol":true,"agent":"a:1","boot":"b"}',
        b'{"protocol":1,"agent":"nobody","boot":"b"}',
        b'{"protocol":1,"agent":"a:1","boot":"b","zone":7}',
        b'{"protocol":1,"agent":"a:1","boot":"b","more":"' + b"x" * 5000 + b'"}',
    ],
)
def test_what_is_no_greeting_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_hello(data)


@pytest.mark.parametrize("knows_you", [True, False])
def test_greetings_survive_the_wire(knows_you: bool) -> None:
    assert parse_hello(hello_bytes(ME, "test", knows_you)) == (ME, knows_you)


def test_an_older_agent_says_less() -> None:
    assert parse_hello(b'{"protocol":1,"agent":"127.0.0.1:1","boot":"boot-me"}') == (ME, True)


async def test_who_greets_with_nonsense_is_passed_over_and_the_others_are_met() -> None:
    greeted = 0
    friend = Hello(AgentID("127.0.0.1:2"), "boot-friend", "")

    async def nonsense(_: Request) -> Response:
        nonlocal greeted
        greeted += 1
        return Response(200, (), DEEP)

    async def sense(_: Request) -> Response:
        return Response(200, (), partial(hello_bytes, friend, "test")(knows_you=True))

    async with serving(nonsense) as liar, serving(sense) as honest, asyncio.timeout(20):
        pool = PeerPool()
        listed = frozenset({address_of(liar), address_of(honest)})
        agents = Agents(ME, StaticPeers(listed), pool, SystemClock())
        running = asyncio.create_task(agents.run())

        await until(lambda: greeted >= 3 and len(agents.view) == 2)

        assert not running.done()
        assert set(agents.view) == {ME.agent, friend.agent}
        running.cancel()
        await asyncio.wait({running})
        await pool.close()
