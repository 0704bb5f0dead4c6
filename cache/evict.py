"""Which artifacts have to go. Pure: facts in, a choice out.

    own bytes, free bytes, capacity ──> shortage() ──> how much must go, how much should
    candidates, oldest first ─────────> choose() ────> victims, or why there are not enough

Rule 1: a candidate goes whole. Half an artifact helps nobody and cannot be told from damage.

Rule 2: oldest use first, and what nobody can ask for by name (the leftovers of interrupted pulls)
in the same order: a pull that will be resumed soon is as dear as an artifact that will be.

Rule 3: a file goes with the last candidate that names it. Files shared with one that stays free
nothing, so they count for nothing.

Rule 4: nothing goes in vain. If all that may go is not enough, all of it stays; and who would free
nothing, because others keep its files, stays.

Rule 5: above the high mark we free down to the low mark, so that not every pull pays for an
eviction; but only what *must* go makes a pull fail.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from damselfly.cache.limits import Limits


@dataclass(frozen=True, kw_only=True)
class Room:
    """How full the store and its file system are."""

    own_bytes: int
    """Promised to files."""
    free_bytes: int
    """On the file system, less what is promised and not yet allocated."""


@dataclass(frozen=True, kw_only=True)
class Shortage:
    """What has to be freed for a pull."""

    must: int
    should: int


@dataclass(frozen=True)
class Candidate:
    """An artifact, or a leftover file, that might go."""

    key: int
    """Artifact row, or for a leftover the negated file row."""
    name: str
    used_ns: int
    files: frozenset[int]
    held_by: str | None = None
    """Why it may not go: a lease, a pin, a pull, a chunk being served."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Who goes; `is_enough` False: nobody would be enough, so nobody goes."""

    is_enough: bool
    victims: tuple[Candidate, ...]
    evictable_bytes: int


def shortage(room: Room, need: int, limits: Limits) -> Shortage:
    """How much must, and should, be freed before `need` more bytes are promised.

    Who needs nothing is never refused, however full it is.
    """
    must = max(0, need + limits.keep_free_bytes - room.free_bytes) if need else 0
    should = must
    if must:
        should = max(must, need + limits.free_again_bytes - room.free_bytes)
    if limits.capacity_bytes is not None:
        after = room.own_bytes + need
        if need:
            must = max(must, after - limits.capacity_bytes)
        if after > limits.high * limits.capacity_bytes:
            should = max(should, after - int(limits.low * limits.capacity_bytes))
    return Shortage(must=must, should=max(must, should))


def choose(candidates: Sequence[Candidate], sizes: Mapping[int, int], wanted: Shortage) -> Choice:
    """Take the candidates in order of use until enough would be free.

    `sizes` has every file that would be freed with its last candidate; a file that a pull is using
    is not in it.
    """
    naming = Counter(file for candidate in candidates for file in candidate.files)
    needed = naming.copy()
    freed = 0
    total = 0
    victims: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda one: (one.used_ns, one.key)):
        if candidate.held_by is not None:
            continue
        if total < wanted.should:
            victims.append(candidate)
        for file in candidate.files:
            needed[file] -= 1
            if not needed[file]:
                freed += sizes.get(file, 0)
        if victims and victims[-1] is candidate:
            total = freed
    if freed < wanted.must:
        return Choice(is_enough=False, victims=(), evictable_bytes=freed)
    going = Counter(file for victim in victims for file in victim.files)
    useful = tuple(
        victim
        for victim in victims
        if any(sizes.get(file) and going[file] == naming[file] for file in victim.files)
    )
    return Choice(is_enough=True, victims=useful, evictable_bytes=freed)


def evictable(candidates: Sequence[Candidate], sizes: Mapping[int, int]) -> int:
    """How much would be free if everybody went who may."""
    return choose(candidates, sizes, Shortage(must=0, should=0)).evictable_bytes


def available(room: Room, evictable_bytes: int, limits: Limits) -> int:
    """The most that `shortage` and `choose` would let somebody promise now; never negative.

    The watermarks are no bound: they say when an eviction begins and ends, not what is refused.
    """
    most = room.free_bytes - limits.keep_free_bytes
    if limits.capacity_bytes is not None:
        most = min(most, limits.capacity_bytes - room.own_bytes)
    return max(0, most + evictable_bytes)
