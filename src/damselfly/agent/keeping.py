"""A lease of a client that copies out of the store, for as long as it listens."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from functools import partial

from damselfly.agent.pull import Workshop
from damselfly.model.digest import Digest

TTL_S = 60.0
"""What is left of a lease whose agent was killed ends by itself."""
RENEWAL_S = 20.0


@asynccontextmanager
async def kept(shop: Workshop, artifact: Digest) -> AsyncGenerator[Coroutine[None, None, None]]:
    """Lease an artifact; await what is given to keep the lease, for ever."""
    lease_id = f"client-{secrets.token_hex(8)}"
    lease = partial(shop.store.lease, artifact, lease_id, TTL_S)

    async def keep() -> None:
        while True:
            await asyncio.sleep(RENEWAL_S)
            await shop.work(lease)

    keeping = keep()
    try:
        await shop.work(lease)
        yield keeping
    finally:
        keeping.close()
        await asyncio.shield(shop.work(partial(shop.store.release, artifact, lease_id)))
