"""Rendezvous hashing (Thaler and Ravishankar, 1998): who is first for a key.

Every agent ranks the agents it knows by a hash over key and agent id. Equal views give equal
ranks, and an agent that leaves moves only the keys it was first for.
"""

from collections.abc import Iterable

from blake3 import blake3

from damselfly.p2p.messages import AgentID


def score(key: str, agent: AgentID) -> int:
    """How strongly `key` is drawn to `agent`: 64 bits that look random."""
    return int.from_bytes(blake3(f"{key}\0{agent}".encode()).digest(length=8), "big")


def ranked(key: str, agents: Iterable[AgentID]) -> list[AgentID]:
    """The agents in the order in which `key` prefers them; first is the home of `key`."""
    return sorted(agents, key=lambda agent: (-score(key, agent), agent))


def home_of(key: str, agents: Iterable[AgentID]) -> AgentID | None:
    """Who is home for `key`, if there is any agent."""
    return min(agents, key=lambda agent: (-score(key, agent), agent), default=None)


def pair_score(one: AgentID, other: AgentID) -> int:
    """How strongly two agents are drawn to each other; the same from both sides."""
    first, second = sorted((one, other))
    return score(first, second)
