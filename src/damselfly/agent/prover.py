"""Asks origins whether credentials open a ref, and remembers it. `proof.py` has the rules."""

import asyncio
import logging
from concurrent.futures import Executor
from functools import partial

from damselfly.agent import proof
from damselfly.cache.proofs import Proofs
from damselfly.clock import Clock
from damselfly.errors import OriginDeniedError, OriginUnavailableError
from damselfly.model.plan import Plan
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS, Access
from damselfly.origin.registry import Origins

logger = logging.getLogger(__name__)


class Prover:
    """Belongs to one event loop. Holds no credentials."""

    def __init__(
        self, proofs: Proofs, origins: Origins, workers: Executor, clock: Clock, ttl_s: float
    ) -> None:
        self._proofs = proofs
        self._origins = origins
        self._workers = workers
        self._clock = clock
        self._ttl_s = ttl_s

    def believes(self, ref: Ref, access: Access) -> bool:
        """Whether nothing has to be asked now. Reads the disk: for a worker."""
        if not proof.is_needed(ref):
            return True
        proved_ns = self._proofs.proved_ns(proof.asker_of(self._proofs.key, ref, access))
        return proof.is_believed(proved_ns, self._clock.wall_ns(), self._ttl_s)

    def refused(self, ref: Ref, access: Access) -> None:
        """The origin refuses them: what was proved before counts no more. For a worker."""
        if proof.is_needed(ref):
            self._proofs.drop(proof.asker_of(self._proofs.key, ref, access))

    async def prove(self, ref: Ref, plan: Plan, place: Ref, access: Access) -> None:
        """Make sure that `access` opens `ref`, whose files are those of `plan`, at `place`.

        Raises:
            OriginDeniedError, OriginUnavailableError, OriginNotFoundError: nobody may see them.
        """
        loop = asyncio.get_running_loop()
        if await loop.run_in_executor(self._workers, partial(self.believes, ref, access)):
            return
        asker = proof.asker_of(self._proofs.key, ref, access)
        try:
            assert not access.is_own, "the agent's own word opens nothing for others"
            assert ref.leads_to(place), "what lies elsewhere proves nothing"
            await self._origins.for_ref(ref).prove(place, proof.telling_file(plan), access)
        except OriginDeniedError as exc:
            who = "without credentials" if access == ANONYMOUS else "with the credentials given"
            raise OriginDeniedError(f"{ref.safe} does not open {who}") from exc
        except OriginUnavailableError as exc:
            raise OriginUnavailableError(f"proving who may read {ref.safe}") from exc
        add = partial(self._proofs.add, asker, self._clock.wall_ns())
        await loop.run_in_executor(self._workers, add)
        logger.info("access.proved", extra={"ref": ref.safe, "for_s": self._ttl_s})
