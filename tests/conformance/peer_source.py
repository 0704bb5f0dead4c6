"""What every source of peers does: tells what is listed, and every change, once.

A subclass gives the fixture `listing`: a source, and how to change what it lists. One that never
changes leaves `TestChanging` out.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

from damselfly.p2p.discovery import PeerSource

ONE = frozenset({"127.0.0.1:7460"})
TWO = frozenset({"127.0.0.1:7460", "127.0.0.2:7460"})
OTHER = frozenset({"127.0.0.3:7460"})
PATIENCE_S = 10.0


async def _nothing() -> None:
    """An outage that a source cannot have."""


@dataclass
class Listing:
    """A source that lists `ONE`, and its world."""

    source: PeerSource
    put: Callable[[frozenset[str]], Awaitable[None]]
    """Make it list exactly these."""
    fail: Callable[[], Awaitable[None]] = _nothing
    """Take away what it reads, until the next `put`."""


@dataclass
class Followed:
    """Everything that a source told."""

    told: list[frozenset[str]] = field(default_factory=list[frozenset[str]])
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, addresses: frozenset[str]) -> None:
        """Wait until the latest that was told is `addresses`."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.told or self.told[-1] != addresses:
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def followed(source: PeerSource) -> AsyncIterator[Followed]:
    """Follow a source; it must not end by an error."""
    found = Followed()

    async def follow() -> None:
        async with aclosing(source.changes()) as changes:
            async for addresses in changes:
                found.told.append(addresses)
                found.news.set()

    task = asyncio.create_task(follow())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled() or task.exception() is None, task.exception()


class PeerSourceConformance:
    """For every source."""

    async def test_what_is_listed_is_told_first(self, listing: Listing) -> None:
        async with followed(listing.source) as found:
            await found.until(ONE)

        assert found.told == [ONE]

    async def test_whoever_asks_again_is_told_again(self, listing: Listing) -> None:
        async with followed(listing.source) as found:
            await found.until(ONE)

        async with followed(listing.source) as again:
            await again.until(ONE)


class ChangingPeerSourceConformance(PeerSourceConformance):
    """For sources whose list can change."""

    async def test_every_change_is_told(self, listing: Listing) -> None:
        async with followed(listing.source) as found:
            await found.until(ONE)

            await listing.put(TWO)
            await found.until(TWO)
            await listing.put(OTHER)
            await found.until(OTHER)

        assert found.told == [ONE, TWO, OTHER]

    async def test_the_last_one_may_leave(self, listing: Listing) -> None:
        async with followed(listing.source) as found:
            await found.until(ONE)

            await listing.put(frozenset())

            await found.until(frozenset())

    async def test_an_outage_keeps_the_last_list(self, listing: Listing) -> None:
        async with followed(listing.source) as found:
            await found.until(ONE)

            await listing.fail()
            await asyncio.sleep(0.2)  # Time to do wrong: nothing shall happen.
            during = list(found.told)
            await listing.put(TWO)
            await found.until(TWO)

        assert during == [ONE]
        assert found.told == [ONE, TWO]

    async def test_after_an_outage_the_same_list_is_not_told_again(self, listing: Listing) -> None:
        async with followed(listing.source) as found:
            await found.until(ONE)

            await listing.fail()
            await listing.put(ONE)
            await asyncio.sleep(0.2)
            await listing.put(TWO)
            await found.until(TWO)

        assert found.told == [ONE, TWO]
