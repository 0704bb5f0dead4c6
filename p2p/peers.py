"""The peers a member follows: what they hold, how busy they are with us, how far to trust them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from damselfly.model.bitmap import indexes_of
from damselfly.p2p.messages import AgentID, HaveLine


@dataclass(slots=True, eq=False)
class Peer:
    """One agent we follow, or followed."""

    agent: AgentID
    is_near: bool
    """In our zone."""
    order: int
    """Ties between peers are broken by this; it differs from member to member."""
    have: int = 0
    avoided: int = 0
    """Chunks not to be asked here: the bytes were wrong, or not there."""
    offered: int = 0
    """`have` without `avoided`, zero while the peer is quarantined."""
    asks: int = 0
    is_followed: bool = False
    """Its have stream is open."""
    rests_until_s: float = 0.0
    """Busy, or not reachable: not asked before."""
    failures: int = 0
    busies: int = 0
    """Times in a row that it was busy."""
    corrupt: int = 0
    """Chunks whose bytes were wrong."""
    quarantined_until_s: float = 0.0
    quarantines: int = 0
    is_dead: bool = False
    """It could not be reached the last time we tried."""


class Peers:
    """The peers of one member in one swarm, and how many of them hold each chunk."""

    def __init__(self, chunk_count: int) -> None:
        self._full = (1 << chunk_count) - 1
        self._peers: dict[AgentID, Peer] = {}
        self.copies = [0] * chunk_count
        """Of each chunk among the followed peers, except those who hold everything."""

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._peers.values())

    def __len__(self) -> int:
        return len(self._peers)

    def get(self, agent: AgentID) -> Peer | None:
        """What we know of an agent."""
        return self._peers.get(agent)

    def meet(self, agent: AgentID, *, is_near: bool, order: int) -> Peer:
        """Know an agent from now on."""
        peer = self._peers.get(agent)
        if peer is None:
            peer = self._peers[agent] = Peer(agent, is_near, order)
        return peer

    def part(self, agent: AgentID) -> None:
        """Know an agent no more."""
        peer = self._peers.pop(agent, None)
        if peer is not None:
            self._recount(peer, 0)

    def told(self, peer: Peer, line: HaveLine) -> int:
        """A peer says what it holds; returns the chunks it offers that it did not before."""
        have = peer.have if line.have is None else line.have
        if line.have is None and not line.lost and have != self._full:
            fresh = self._count_got(have, line.got)
            peer.have = have | fresh
            if peer.have == self._full:
                self._count(peer.have, -1)
            if not peer.quarantined_until_s:
                peer.offered |= fresh & ~peer.avoided
            return fresh & peer.offered
        for index in line.got:
            have |= 1 << index
        for index in line.lost:
            have &= ~(1 << index)
        self._recount(peer, have)
        before = peer.offered
        self.refresh(peer)
        return peer.offered & ~before

    def forget_chunks(self, peer: Peer) -> None:
        """What the peer holds is not known any more: its stream ended."""
        self._recount(peer, 0)
        self.refresh(peer)

    def avoid(self, peer: Peer, index: int) -> None:
        """Ask this peer for this chunk no more."""
        peer.avoided |= 1 << index
        self.refresh(peer)

    def refresh(self, peer: Peer) -> None:
        """Work out anew what a peer offers."""
        peer.offered = 0 if peer.quarantined_until_s else peer.have & ~peer.avoided

    def _count_got(self, have: int, got: Iterable[int]) -> int:
        fresh = 0
        for index in got:
            bit = 1 << index
            if not (have | fresh) & bit:
                fresh |= bit
                self.copies[index] += 1
        return fresh

    def _recount(self, peer: Peer, have: int) -> None:
        """Replace what a peer holds. Who holds everything counts nowhere: it tells none apart."""
        if peer.have != self._full:
            self._count(peer.have & ~have if have != self._full else peer.have, -1)
            if have != self._full:
                self._count(have & ~peer.have, 1)
        elif have != self._full:
            self._count(have, 1)
        peer.have = have

    def _count(self, bits: int, step: int) -> None:
        copies = self.copies
        for index in indexes_of(bits):
            copies[index] += step


def rarest(candidates: int, copies: list[int], start: int, span: int, salt: int) -> int:
    """The candidate with the fewest copies within `span` chunks from `start` on, around the end.

    Order matters little for the makespan, and a window in file order lets readers start early.
    Equally rare ones are told apart by `salt`, so that members do not all ask for the same.
    """
    assert candidates, "something to choose from"
    ahead = candidates >> start
    base = start if ahead else 0
    pool = ahead or candidates
    skip = (pool & -pool).bit_length() - 1
    base += skip
    window = (pool >> skip) & ((1 << span) - 1)
    best = base
    best_key = None
    while window:
        low = window & -window
        index = base + low.bit_length() - 1
        window ^= low
        key = copies[index] << 20 | ((index + salt) * 0x9E3779B1 >> 8 & 0xFFFFF)
        if best_key is None or key < best_key:
            best_key = key
            best = index
    return best
