"""The budgets of origins' hosts, shared with the other agents: shell around `budget`.

Whoever asks an origin here (`origin/gate.py`) has its turns, its bytes and its rests from the home
of the host, which may be ourselves. A home that does not answer within `ANSWER_S` is gone without
for `WITHOUT_S`: nobody waits long for permission to be polite.
"""

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, Protocol

from damselfly.clock import Clock
from damselfly.errors import DamselflyError, LocalProtocolError, RemoteProtocolError
from damselfly.p2p.agents import Agents
from damselfly.p2p.budget import (
    HOST_PATTERN,
    BudgetHome,
    BudgetLimits,
    BudgetMember,
    BudgetQuestion,
    BudgetReply,
    Rates,
)
from damselfly.p2p.messages import AgentID
from damselfly.p2p.rendezvous import home_of
from damselfly.p2p.transport import PeerPool

logger = logging.getLogger(__name__)

ANSWER_S: Final = 1.0
"""A home answers at once; longer only where its machine is in trouble."""
WITHOUT_S: Final = 5.0
JOIN_S: Final = 20.0
"""A home tells of rests who asked within a minute: so often who reads a host asks."""
LOOK_S: Final = 1.0
"""Whoever waits for a moment far ahead looks so often whether its home is still the same."""
RENEW_S: Final = 90.0
"""A rest that is longer than others believe is told again."""
SLOTS_ASKED_MAX: Final = 64
DESKS_MAX: Final = 1024


class Rests(Protocol):
    """Who keeps the rests of hosts on this node."""

    def told_to_rest(self, host: str, rest_s: float) -> None:
        """Another agent says that the host asks for rest."""
        ...

    def own_rest_s(self, host: str) -> float:
        """How long the host wants rest from now on, as it told ourselves."""
        ...


@dataclass(slots=True)
class _Desk:
    """What we know of one host's budget."""

    member: BudgetMember
    home: AgentID | None = None
    asked_s: float = float("-inf")
    without_until_s: float = float("-inf")
    waiting: int = 0
    turns: asyncio.Lock = field(default_factory=asyncio.Lock)
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    joining: asyncio.Lock = field(default_factory=asyncio.Lock)


class Budgets:
    """The budgets of all hosts, as a member and as a home. Belongs to one event loop."""

    def __init__(
        self,
        agents: Agents,
        pool: PeerPool,
        clock: Clock,
        rates: Rates,
        rests: Rests,
        tasks: asyncio.TaskGroup,
        limits: BudgetLimits | None = None,
    ) -> None:
        self._agents = agents
        self._pool = pool
        self._clock = clock
        self._rates = rates
        self._rests = rests
        self._tasks = tasks
        self._limits = limits or BudgetLimits()
        self._home = BudgetHome(rates, self._limits)
        self._desks: OrderedDict[str, _Desk] = OrderedDict()
        self._running: set[asyncio.Task[None]] = set()
        self._is_stopped = False

    def __repr__(self) -> str:
        return f"<Budgets {len(self._desks)} hosts, {self._home!r}>"

    # --- as a home -----------------------------------------------------------------------------

    def answer(self, question: BudgetQuestion) -> BudgetReply:
        """Answer an agent that asks us as the home of a host, or hear a home tell of a rest.

        Raises:
            RemoteProtocolError: whoever asks is not in our view, or calls itself by our name.
        """
        if question.agent == self._agents.me.agent or question.agent not in self._agents.view:
            raise RemoteProtocolError(f"{question.agent} asks for a budget, and nobody knows it")
        if question.rests_s:
            self._rests.told_to_rest(question.host, question.rests_s)
        return self._answer(question)

    def _answer(self, question: BudgetQuestion) -> BudgetReply:
        me = self._agents.me.agent
        if self._home_of(question.host) != me and not (question.requests or question.length):
            return BudgetReply()  # News for us, or from somebody who sees other agents.
        reply = self._home.asked(question, self._clock.monotonic_s())
        self._pump()
        return reply

    def _pump(self) -> None:
        while (action := self._home.next_action()) is not None:
            news = BudgetQuestion(action.host, self._agents.me.agent, rests_s=action.rests_s)
            self._start(action.agent, news)

    # --- as a member: what the gate asks for -----------------------------------------------------

    @property
    def counts_bytes(self) -> bool:
        """Whether bytes are shared out."""
        return self._rates.bytes is not None

    async def joined(self, host: str) -> None:
        """Be known to the home as one who reads there, so that it tells us of rests."""
        desk = self._desk(host)
        if desk is None or not self._is_stale(desk):
            return
        async with desk.joining:
            if self._is_stale(desk):
                await self._ask(host, desk)

    async def turn(self, host: str) -> None:
        """Wait until one more request is within the budget."""
        desk = self._desk(host)
        if desk is None or self._rates.requests is None:
            return
        desk.waiting += 1
        try:
            async with desk.turns:
                await self._its_moment(host, desk)
                desk.member.slot_used()
        finally:
            desk.waiting -= 1
            if not desk.waiting and desk.member.spare:
                self._start_asking(host, desk)  # Whoever needs no more gives back.

    async def took(self, host: str, length: int) -> None:
        """So many bytes came; wait until more are within the budget."""
        desk = self._desk(host)
        if desk is None or self._rates.bytes is None:
            return
        if desk.member.read(length, self._now()) is not None and not desk.reading.locked():
            return
        async with desk.reading:
            while True:
                now = self._now()
                go_s = desk.member.next_read(now)
                if go_s is not None and go_s <= now:
                    return
                if go_s is None:
                    go_s = desk.member.may_ask(now)
                if go_s <= now:
                    await self._ask(host, desk, length=desk.member.debt + length)
                else:
                    await asyncio.sleep(min(go_s - now, LOOK_S))

    def rested(self, host: str, rest_s: float) -> None:
        """The host told us that it wants rest: everybody shall know."""
        desk = self._desk(host)
        if desk is not None:
            self._start_asking(host, desk)
            if rest_s > RENEW_S:
                asyncio.get_running_loop().call_later(RENEW_S, self._renew, host)

    def _renew(self, host: str) -> None:
        left_s = self._rests.own_rest_s(host)
        if left_s > 0 and not self._is_stopped:
            self.rested(host, left_s)

    # --- asking the home -------------------------------------------------------------------------

    async def _its_moment(self, host: str, desk: _Desk) -> None:
        while True:
            wait_s = await self._slot_in(host, desk)
            if wait_s <= 0:
                return
            await asyncio.sleep(min(wait_s, LOOK_S))

    async def _slot_in(self, host: str, desk: _Desk) -> float:
        """In how many seconds the next request may leave; asks the home when it has to."""
        while True:
            self._mind_home(host, desk)
            now = self._now()
            slot_s = desk.member.next_slot(now)
            if slot_s is not None:
                return slot_s - now
            may_ask_s = desk.member.may_ask(now)
            if may_ask_s > now:
                return may_ask_s - now
            await self._ask(host, desk, requests=min(desk.waiting, SLOTS_ASKED_MAX))

    async def _ask(self, host: str, desk: _Desk, *, requests: int = 0, length: int = 0) -> None:
        self._mind_home(host, desk)
        member, home = desk.member, desk.home
        count = len(self._agents.view)
        now = self._now()
        desk.asked_s = now
        is_asking = bool(requests or length)
        is_alone = is_asking and member.goes_alone(now, of_bytes=bool(length))
        if now < desk.without_until_s or home is None or is_alone:
            member.help_oneself(count, now)
            return
        returned = 0 if requests or desk.waiting else member.give_back()
        me = self._agents.me.agent
        logger.debug("budget.asked", extra={"home": home, "host": host})
        question = BudgetQuestion(
            host, me, requests, length, returned, self._rests.own_rest_s(host)
        )
        try:
            reply = await self._asked(home, question)
        except DamselflyError as exc:
            logger.info("budget.unheard", extra={"home": home, "host": host, "error": str(exc)})
            self._agents.suspect(home)
            desk.without_until_s = self._now() + WITHOUT_S
            if is_asking:
                member.help_oneself(count, self._now())
            return
        if reply.rests_s and home != me:
            self._rests.told_to_rest(host, reply.rests_s)
        if is_asking and desk.home == home:
            member.replied(reply, count, self._now())

    async def _asked(self, home: AgentID, question: BudgetQuestion) -> BudgetReply:
        if home == self._agents.me.agent:
            return self._answer(question)
        answer = await self._pool.request(
            home, "POST", "/v1/budget", body=question.to_json(), deadline_s=ANSWER_S
        )
        if answer.status != 200:
            raise RemoteProtocolError(f"home {home} answers with {answer.status}")
        return BudgetReply.parse(answer.body)

    def _mind_home(self, host: str, desk: _Desk) -> None:
        home = self._home_of(host)
        if home != desk.home:
            desk.home = home
            desk.asked_s = desk.without_until_s = float("-inf")
            desk.member.dropped()

    def _home_of(self, host: str) -> AgentID | None:
        return home_of(f"origin:{host}", self._agents.view)

    def _is_stale(self, desk: _Desk) -> bool:
        return self._now() - desk.asked_s > JOIN_S

    # --- telling ---------------------------------------------------------------------------------

    def _start_asking(self, host: str, desk: _Desk) -> None:
        """Tell the home what it should know, and wait for nobody."""
        if self._is_stopped:
            return
        self._keep(self._tasks.create_task(self._told(host, desk)))

    async def _told(self, host: str, desk: _Desk) -> None:
        try:
            await self._ask(host, desk)
        except Exception:
            logger.exception("budget.broken", extra={"host": host})

    def _start(self, agent: AgentID, news: BudgetQuestion) -> None:
        if self._is_stopped:
            return
        self._keep(self._tasks.create_task(self._tell(agent, news)))

    async def _tell(self, agent: AgentID, news: BudgetQuestion) -> None:
        try:
            await self._asked(agent, news)
        except DamselflyError as exc:
            logger.debug("rest.unheard", extra={"peer": agent, "error": str(exc)})
        except Exception as exc:
            logger.exception("budget.broken", exc_info=LocalProtocolError.found("telling", exc))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def stop(self) -> None:
        """Tell nobody anything any more."""
        self._is_stopped = True
        for task in self._running:
            task.cancel()

    def _desk(self, host: str) -> _Desk | None:
        """None for a host whose name no peer would take: it is read without sharing."""
        if not HOST_PATTERN.fullmatch(host):
            return None
        desk = self._desks.get(host)
        if desk is None:
            if len(self._desks) >= DESKS_MAX:
                self._forget_idle()
            member = BudgetMember(self._rates, self._now(), self._limits)
            desk = self._desks[host] = _Desk(member)
        self._desks.move_to_end(host)
        self._mind_home(host, desk)
        return desk

    def _forget_idle(self) -> None:
        for host, desk in list(self._desks.items()):
            is_busy = desk.waiting or desk.reading.locked() or desk.joining.locked()
            if not is_busy and self._is_stale(desk):
                del self._desks[host]

    def _now(self) -> float:
        return self._clock.monotonic_s()
