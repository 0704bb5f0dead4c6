"""Chunks of ours that peers found wrong: are they wrong on our disk?"""

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from damselfly.agent.swarms import Swarms
from damselfly.cache.store import Store
from damselfly.errors import CancelledError, DamselflyError, explain
from damselfly.model.digest import Digest
from damselfly.p2p.swarm import Source

logger = logging.getLogger(__name__)

PENDING_MAX = 64
"""Whoever accuses us has us read a chunk: more than these at once are nobody's honest find."""


class Accusations:
    """Looks into accusations, one at a time, in a thread of its own. Belongs to one event loop."""

    def __init__(
        self, store: Store, swarms: Swarms, corrupt: Callable[[Source], None] = lambda _: None
    ) -> None:
        self._store = store
        self._corrupt = corrupt
        self._swarms = swarms
        self._pending: OrderedDict[Digest, None] = OrderedDict()
        self._come = asyncio.Event()
        self._is_ending = threading.Event()

    def accuse(self, digest: Digest) -> None:
        """Note that somebody found this chunk wrong; forgotten if too many are noted already."""
        is_dropped = len(self._pending) >= PENDING_MAX and digest not in self._pending
        extra = {"digest": str(digest), "dropped": is_dropped}
        logger.warning("chunk.accused", extra=extra)
        if not is_dropped:
            self._pending[digest] = None
            self._come.set()

    async def run(self) -> None:
        """Look into them until cancelled."""
        with ThreadPoolExecutor(1, thread_name_prefix="recheck") as reader:
            try:
                while True:
                    await self._come.wait()
                    self._come.clear()
                    while self._pending:
                        digest = next(iter(self._pending))
                        await self._look(digest, reader)
                        del self._pending[digest]
            finally:
                self._is_ending.set()  # Now the thread does not hold us up for long.

    def _go_on(self, done: int, total: int) -> None:
        if self._is_ending.is_set():
            raise CancelledError("the agent is stopping")

    async def _look(self, digest: Digest, reader: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(reader, self._store.recheck, digest, self._go_on)
        except DamselflyError as exc:
            extra = {"digest": str(digest), "error": explain(exc)}
            logger.warning("chunk.unchecked", extra=extra)
            return
        if found.bad:
            wrong = {bad.expected for bad in found.bad}
            logger.error("chunk.bad", extra={"digest": str(digest), "count": len(wrong)})
            for _ in wrong:
                self._corrupt(Source.STORE)
            await self._swarms.lost(found.degraded, wrong)
