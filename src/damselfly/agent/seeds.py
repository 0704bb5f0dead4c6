"""What we seed has to be here: eviction takes artifacts, and disks take chunks, untold."""

from functools import partial

from damselfly.agent.pull import Workshop
from damselfly.cache.report import ArtifactState

SOUND = (ArtifactState.COMPLETE, ArtifactState.PARTIAL)


async def leave_unsound(shop: Workshop) -> None:
    """Leave the swarms of artifacts that have gone, or lack a chunk of a file they had."""
    seeded = shop.swarms.seeded()  # Before looking: what is pulled meanwhile is no loss.
    infos = await shop.work(partial(shop.store.artifacts))
    sound = {info.artifact for info in infos if info.state in SOUND}
    await shop.swarms.lost(seeded - sound, ())
