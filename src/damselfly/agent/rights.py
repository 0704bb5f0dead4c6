"""What is shown at a place on behalf of whoever asks for a ref.

Rule 1: what the caller gave goes first, and nothing is added to it. A pod gives its own or nothing,
and never has the agent's.

Rule 2: `OWN` is the agent asking for itself: its configuration says what is shown for the ref, and
where it says nothing the origin may look into the environment.

Rule 3: credentials are shown where the ref says they belong (`Ref.is_trusted_with`), and those of a
prefix below that prefix. A plan may come from a peer and name another place; what needs credentials
is not read there at all.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from damselfly.agent.credentials import CredentialsFile, Entry
from damselfly.errors import OriginDeniedError
from damselfly.model.prefix import is_below
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS, OWN, Access

_WEB = frozenset({"http", "https"})


class Rights:
    """Turns who asks for what into what is shown. `work` runs what reads the disk in a worker."""

    def __init__(
        self,
        credentials: CredentialsFile | None = None,
        work: Callable[["partial[Any]"], Awaitable[Any]] | None = None,
    ) -> None:
        self._credentials = credentials
        self._work = work

    def __repr__(self) -> str:
        return f"<Rights by {self._credentials!r}>"

    async def shown(self, ref: Ref, access: Access, place: Ref | None = None) -> Access:
        """What to show at `place`, which is that of the ref itself unless a plan names another.

        Raises:
            OriginDeniedError: there is something to show, and it does not belong there.
        """
        place = ref if place is None else place
        if not {ref.scheme, place.scheme} <= _WEB and ref.scheme != place.scheme:
            raise _elsewhere(ref, place)
        is_trusted = ref.is_trusted_with(place)
        if not access.is_own:
            if is_trusted or access == ANONYMOUS:
                return access
            raise _elsewhere(ref, place)
        entry = await self._found(ref)
        if entry is None:
            return OWN if is_trusted else ANONYMOUS
        if not is_trusted or not is_below(place.location, entry.prefix):
            raise _elsewhere(ref, place)
        return entry.access

    async def _found(self, ref: Ref) -> Entry | None:
        if self._credentials is None:
            return None
        look = partial(self._credentials.find, ref)
        if self._work is None:
            return look()
        found: Entry | None = await self._work(look)
        return found


def _elsewhere(ref: Ref, place: Ref) -> OriginDeniedError:
    return OriginDeniedError(
        f"the files of {ref.safe} are at {place.safe}, which is shown nothing that opens {ref.safe}"
    )
