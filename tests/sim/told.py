"""A world that tells what is said in it, a line for each word, for traces and for people.

    0.0012 n2 -> n1   report wants 0-2, room 16
    0.0031 n1 -> n2   reply grants 0, members n3

Agents are called n1, n2, ... in the order of the world's list; chunks by their numbers.
"""

from collections.abc import Callable
from typing import Any

from damselfly.model.bitmap import indexes_of
from damselfly.p2p.actions import (
    Action,
    Ask,
    CancelAsk,
    CancelOrigin,
    CloseLive,
    FetchOrigin,
    Finish,
    Follow,
    GiveUp,
    OpenLive,
    SendReport,
    TellCorrupt,
    Unfollow,
)
from damselfly.p2p.messages import AgentID, HaveLine, LiveLine, Reply, Report
from tests.sim.world import Node, Scenario, World


def chunks(indexes: Any) -> str:
    """Numbers, consecutive ones together: 0-2,5; of a bitmap or of a sequence of numbers."""
    numbers = sorted(indexes_of(indexes) if isinstance(indexes, int) else indexes)
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{a}-{b}" if b > a else str(a) for a, b in runs) or "nothing"


class ToldWorld(World):
    """A world that hands every word to `tell`."""

    def __init__(self, scenario: Scenario, rng_seed: int, tell: Callable[[str], None]) -> None:
        super().__init__(scenario, rng_seed)
        self._tell_line = tell
        self._names = {agent: f"n{number}" for number, agent in enumerate(self.nodes, start=1)}

    def _say(self, who: str, text: str) -> None:
        self._tell_line(f"{self.events.now:8.4f} {who:10} {text}")

    def _name(self, agent: AgentID) -> str:
        return self._names[agent]

    def _do(self, node: Node, action: Action) -> None:
        me = self._name(node.agent)
        match action:
            case SendReport(home, report):
                self._say(f"{me} -> {self._name(home)}", f"report {self._report(report)}")
            case OpenLive(home):
                self._say(f"{me} -> {self._name(home)}", "listens to the live stream")
            case CloseLive(home):
                self._say(f"{me} -> {self._name(home)}", "listens no more")
            case Follow(peer):
                self._say(f"{me} -> {self._name(peer)}", "follows")
            case Unfollow(peer):
                self._say(f"{me} -> {self._name(peer)}", "follows no more")
            case Ask():
                self._say(f"{me} -> {self._name(action.peer)}", f"asks for {action.index}")
            case CancelAsk():
                self._say(f"{me} -> {self._name(action.peer)}", f"wants {action.index} no more")
            case FetchOrigin(_, run):
                self._say(f"{me} -> origin", f"reads {chunks(run.bits)}")
            case CancelOrigin():
                self._say(f"{me} -> origin", "reads no more of a run")
            case TellCorrupt():
                self._say(f"{me} -> {self._name(action.peer)}", f"{action.index} is wrong")
            case Finish():
                self._say(me, "has everything")
            case GiveUp(reason):
                self._say(me, f"gives up: {reason.value}")
        super()._do(node, action)

    def _reply_arrives(self, node: Node, action: SendReport, reply: Reply) -> None:
        self._say(f"{self._name(action.home)} -> {self._name(node.agent)}", self._reply(reply))
        super()._reply_arrives(node, action, reply)

    def _live_line(self, node: Node, home: AgentID, line: LiveLine) -> None:
        parts: list[str] = []
        if line.digests:
            parts.append(f"digests of {chunks(line.digests)}")
        if line.joined:
            parts.append("joined " + ",".join(self._name(m.agent) for m in line.joined))
        if line.left:
            parts.append("left " + ",".join(map(self._name, line.left)))
        if line.has_claims:
            parts.append("there are claims")
        told = "; ".join(parts) or "nothing new"
        self._say(f"{self._name(home)} -> {self._name(node.agent)}", f"live {told}")
        super()._live_line(node, home, line)

    def _have_line(self, peer: AgentID, followers: tuple[AgentID, ...], line: HaveLine) -> None:
        told = f"got {chunks(line.got)}" if line.have is None else f"has {chunks(line.have)}"
        to = ",".join(map(self._name, followers))
        self._say(f"{self._name(peer)} -> {to}", told)
        super()._have_line(peer, followers, line)

    def _kill(self, node: Node) -> None:
        self._say(self._name(node.agent), "dies")
        super()._kill(node)

    def _report(self, report: Report) -> str:
        parts: list[str] = []
        if report.state is not None:
            parts.append(f"wants {chunks(report.state.wanted)}, has {chunks(report.state.have)}")
        if report.done:
            parts.append(f"read {chunks([index for index, _ in report.done])}")
        if report.got:
            parts.append(f"got {chunks(report.got)}")
        if report.open:
            bits = [index for entry in report.open for index in indexes_of(entry.run.bits)]
            parts.append(f"reading {chunks(bits)}")
        parts += [f"returns {chunks(r.run.bits)}: {r.reason.value}" for r in report.returned]
        if report.dead:
            parts.append("dead " + ",".join(map(self._name, report.dead)))
        if report.corrupt:
            parts.append("corrupt " + ",".join(map(self._name, report.corrupt)))
        if report.lacking:
            parts.append(f"lacks {chunks([lack.index for lack in report.lacking])}")
        parts.append(f"room {report.room}")
        return ", ".join(parts)

    def _reply(self, reply: Reply) -> str:
        parts: list[str] = []
        if reply.need_state:
            parts.append("tell me everything")
        if reply.grants:
            parts.append("grants " + " ".join(chunks(run.bits) for run in reply.grants))
        if reply.revoked:
            parts.append("revokes " + " ".join(chunks(run.bits) for run in reply.revoked))
        if reply.members is not None:
            members = ",".join(self._name(member.agent) for member in reply.members) or "nobody"
            parts.append(f"members {members}")
        if reply.holders:
            parts.append(f"holders of {chunks([index for index, _ in reply.holders])}")
        if reply.retry_after_s is not None:
            parts.append(f"again in {reply.retry_after_s:.2f} s")
        if not reply.has_hope:
            parts.append("nobody can help")
        return "reply " + (", ".join(parts) or "noted")
