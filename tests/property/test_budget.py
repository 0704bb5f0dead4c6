"""Budgets of hosts, whatever the agents do: no window has too much, and nobody starves."""

from bisect import bisect_left
from collections import defaultdict

from hypothesis import given, settings, strategies as st

from damselfly.p2p.budget import (
    BudgetHome,
    BudgetLimits,
    BudgetMember,
    BudgetQuestion,
    BudgetReply,
    Rates,
)
from damselfly.p2p.messages import AgentID

HOST = "models.example:443"
LIMITS = BudgetLimits()
STEP_S = 0.02


def agent(number: int) -> AgentID:
    return AgentID(f"n{number}:1")


class World:
    """Agents that always want more, each with one question under way, under a virtual clock."""

    def __init__(self, rate: float, agents: int, delays: list[float]) -> None:
        self.now = 100.0
        self.rates = Rates(requests=rate)
        self.home = BudgetHome(self.rates)
        self.members = {n: BudgetMember(self.rates, self.now) for n in range(agents)}
        self.delays = delays
        self.on_the_way: dict[int, tuple[float, BudgetReply]] = {}
        self.left: list[float] = []
        """When requests left."""
        self.left_by: dict[int, list[float]] = defaultdict(list)
        self.died_s: float | None = None

    def step(self, eager: set[int]) -> None:
        for number, member in self.members.items():
            arriving = self.on_the_way.get(number)
            if arriving is not None and arriving[0] <= self.now:
                del self.on_the_way[number]
                member.replied(arriving[1], len(self.members), self.now)
            if number not in eager:
                continue
            slot_s = member.next_slot(self.now)
            if slot_s is not None and slot_s <= self.now:
                member.slot_used()
                self.left.append(self.now)
                self.left_by[number].append(self.now)
            elif slot_s is None and number not in self.on_the_way:
                if member.may_ask(self.now) > self.now:
                    continue
                question = BudgetQuestion(HOST, agent(number), requests=4)
                reply = BudgetReply.parse(self.home.asked(question, self.now).to_json())
                delay_s = self.delays[number % len(self.delays)]
                self.on_the_way[number] = (self.now + delay_s, reply)
        self.now += STEP_S

    def most_in(self, window_s: float) -> int:
        return max(
            (bisect_left(self.left, self.left[i] + window_s) - i for i in range(len(self.left))),
            default=0,
        )


RATES = st.sampled_from([1.0, 3.0, 20.0])
DELAYS = st.lists(st.sampled_from([0.0, 0.05, 0.3]), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(rate=RATES, agents=st.integers(1, 12), delays=DELAYS)
def test_no_window_has_more_than_the_bucket_gives(
    rate: float, agents: int, delays: list[float]
) -> None:
    world = World(rate, agents, delays)

    for _ in range(int(30 / STEP_S)):
        world.step(set(range(agents)))

    burst = max(1.0, rate * LIMITS.burst_s)
    for window_s in (1.0, 5.0, 20.0):
        assert world.most_in(window_s) <= burst + rate * (window_s + LIMITS.lent_s) + 1


@settings(max_examples=40, deadline=None)
@given(rate=RATES, agents=st.integers(1, 12), delays=DELAYS)
def test_the_rate_is_used_and_everybody_has_their_part(
    rate: float, agents: int, delays: list[float]
) -> None:
    world = World(rate, agents, [min(delay, 0.05) for delay in delays])

    for _ in range(int(60 / STEP_S)):
        world.step(set(range(agents)))

    counts = [len(world.left_by[number]) for number in range(agents)]
    assert sum(counts) >= 0.7 * rate * 60
    assert min(counts) >= 0.5 * sum(counts) / agents - 1


def test_one_request_a_second_is_one_request_a_second() -> None:
    world = World(1.0, 1, [0.01])

    for _ in range(int(30 / STEP_S)):
        world.step({0})

    assert 28 <= len(world.left) <= 31


def test_who_is_idle_holds_nothing_up() -> None:
    world = World(10.0, 8, [0.01])
    for _ in range(int(5 / STEP_S)):
        world.step(set(range(8)))
    before = len(world.left)

    for _ in range(int(10 / STEP_S)):
        world.step({3})

    assert len(world.left) - before >= 70


def test_a_home_that_takes_over_begins_carefully() -> None:
    world = World(5.0, 4, [0.01])
    for _ in range(int(10 / STEP_S)):
        world.step(set(range(4)))
    before = len(world.left)

    world.home = BudgetHome(world.rates)
    for member in world.members.values():
        member.dropped()
    for _ in range(int(1 / STEP_S)):
        world.step(set(range(4)))

    assert 1 <= len(world.left) - before <= 6


def test_without_a_home_a_member_helps_itself_to_its_part() -> None:
    rates = Rates(requests=4.0)
    member = BudgetMember(rates, 0.0)
    left: list[float] = []
    now = 0.0
    while now < 20:
        slot_s = member.next_slot(now)
        if slot_s is None:
            member.help_oneself(8, now)
        elif slot_s <= now:
            member.slot_used()
            left.append(now)
        now += STEP_S

    assert 8 <= len(left) <= 11


def test_a_home_that_gives_nothing_is_gone_without() -> None:
    member = BudgetMember(Rates(requests=1.0), 0.0)
    now, asked = 0.0, 0
    while member.next_slot(now) is None and asked < 10_000:
        now = member.may_ask(now)
        member.replied(BudgetReply(retry_after_s=3600.0, limits_requests=True), 2, now)
        asked += 1
        now += STEP_S

    assert member.next_slot(now) is not None
    assert now < 20


def test_what_is_handed_back_goes_to_others() -> None:
    home = BudgetHome(Rates(requests=4.0))
    home.asked(BudgetQuestion(HOST, agent(0)), 0.0)
    lent = home.asked(BudgetQuestion(HOST, agent(0), requests=2), 10.0).slots
    assert len(lent) == 2

    home.asked(BudgetQuestion(HOST, agent(0), returned=2), 10.1)
    again = home.asked(BudgetQuestion(HOST, agent(1), requests=1), 10.1).slots

    assert again[0] <= lent[0] + 0.01


def test_nobody_hands_back_more_than_was_lent() -> None:
    home = BudgetHome(Rates(requests=1.0))
    home.asked(BudgetQuestion(HOST, agent(0), returned=200), 0.0)

    slots = [home.asked(BudgetQuestion(HOST, agent(n), requests=1), 5.0).slots[0] for n in range(5)]

    assert slots == sorted(slots)
    assert slots[-1] >= 3.9


def test_bytes_are_lent_at_their_rate() -> None:
    home = BudgetHome(Rates(bytes=1_000_000.0))
    now, lent = 0.0, 0
    while now < 20:
        reply = home.asked(BudgetQuestion(HOST, agent(0), length=1 << 20), now)
        lent += reply.length
        now += max(0.01, reply.length_in_s, reply.retry_after_s or 0.0)

    assert 17_000_000 <= lent <= 21_000_000


def test_a_rest_is_told_to_everybody_who_asked_of_late() -> None:
    home = BudgetHome(Rates())
    home.asked(BudgetQuestion(HOST, agent(9)), 0.0)
    for number in range(3):
        home.asked(BudgetQuestion(HOST, agent(number)), 100.0)

    home.asked(BudgetQuestion(HOST, agent(1), rests_s=7.0), 101.0)

    told = {action.agent: action.rests_s for action in iter(home.next_action, None)}
    assert told == {agent(0): 7.0, agent(2): 7.0}
    assert home.asked(BudgetQuestion(HOST, agent(5)), 103.0).rests_s == 5.0


def test_a_rest_is_passed_on_at_its_whole_length_and_not_for_long() -> None:
    home = BudgetHome(Rates())
    home.asked(BudgetQuestion(HOST, agent(2)), 0.0)

    home.asked(BudgetQuestion(HOST, agent(1), rests_s=4000.0), 0.0)

    told = {action.agent: action.rests_s for action in iter(home.next_action, None)}
    assert told == {agent(2): 4000.0}
    assert home.asked(BudgetQuestion(HOST, agent(2)), 100.0).rests_s == 3900.0
    assert home.asked(BudgetQuestion(HOST, agent(2)), LIMITS.told_rest_s_max).rests_s == 0.0


def asks_in(member: BudgetMember, home: BudgetHome, seconds: float) -> tuple[int, int]:
    """How often a member that always wants more asks, and how many requests it makes."""
    now, asked, made = 0.0, 0, 0
    while now < seconds:
        slot_s = member.next_slot(now)
        if slot_s is not None and slot_s <= now:
            member.slot_used()
            made += 1
        elif slot_s is not None:
            now = slot_s
        elif member.goes_alone(now, of_bytes=False):
            member.help_oneself(2, now)
        elif (may_ask_s := member.may_ask(now)) > now:
            now = may_ask_s
        else:
            asked += 1
            question = BudgetQuestion(HOST, agent(0), requests=4)
            member.replied(home.asked(question, now), 2, now)
            now += 0.001
    return asked, made


def test_a_home_that_limits_only_bytes_leaves_requests_to_the_member() -> None:
    member = BudgetMember(Rates(requests=2.0), 0.0)

    asked, made = asks_in(member, BudgetHome(Rates(bytes=20e6)), 60.0)

    assert asked <= 60 / LIMITS.alone_s + 1
    assert 55 <= made <= 65  # Its part: there are two agents.


def test_a_home_that_limits_only_requests_leaves_bytes_to_the_member() -> None:
    member = BudgetMember(Rates(bytes=1e6), 0.0)
    home = BudgetHome(Rates(requests=2.0))
    member.read(500_000, 0.0)

    reply = home.asked(BudgetQuestion(HOST, agent(0), length=500_000), 0.0)
    member.replied(reply, 2, 0.0)

    assert member.next_read(0.0) == 1.0  # 500 kB at half of a megabyte a second.


def test_a_member_never_goes_faster_than_its_own_rate() -> None:
    member = BudgetMember(Rates(requests=2.0), 0.0)

    _, made = asks_in(member, BudgetHome(Rates(requests=50.0)), 60.0)

    assert 110 <= made <= 130


def test_bytes_never_come_faster_than_by_the_own_rate() -> None:
    rates = Rates(bytes=1e6)
    member, home = BudgetMember(rates, 0.0), BudgetHome(Rates(bytes=50e6))
    now, read = 0.0, 0
    while now < 60:
        go_s = member.next_read(now)
        if go_s is None:
            question = BudgetQuestion(HOST, agent(0), length=member.debt + 65536)
            now = member.may_ask(now)
            member.replied(home.asked(question, now), 1, now)
        elif go_s > now:
            now = go_s
        else:
            read += 65536
            member.read(65536, now)

    assert 50e6 <= read <= 65e6


def test_whoever_was_given_nothing_does_not_ask_again_at_once() -> None:
    for nothing in (
        BudgetReply(limits_requests=True, limits_bytes=True),
        BudgetReply(slots=(-86_400.0,), limits_requests=True, limits_bytes=True),
    ):
        member = BudgetMember(Rates(requests=1.0, bytes=1e6), 0.0)

        member.replied(nothing, 2, 10.0)

        assert member.may_ask(10.0) == 10.0 + LIMITS.retry_s_min


def test_a_moment_that_is_far_away_is_not_waited_for() -> None:
    member = BudgetMember(Rates(requests=1.0, bytes=1e6), 0.0)
    member.read(100_000, 10.0)

    far = BudgetReply((86_400.0,), 1 << 40, 86_400.0, limits_requests=True, limits_bytes=True)
    member.replied(far, 2, 10.0)

    slot_s, read_s = member.next_slot(10.0), member.next_read(10.0)
    assert slot_s is not None
    assert read_s is not None
    assert max(slot_s, read_s) < 20.0


def test_endless_bytes_that_a_home_lends_are_taken_at_the_own_rate() -> None:
    member = BudgetMember(Rates(bytes=1e6), 0.0)
    member.read(100_000, 10.0)

    member.replied(BudgetReply(length=1 << 50, limits_bytes=True), 2, 10.0)

    assert member.read(2_000_000, 10.0) is None


def test_hosts_and_agents_are_remembered_in_bounds() -> None:
    home = BudgetHome(Rates(requests=1.0), BudgetLimits(hosts_max=5, agents_max=7))

    for number in range(100):
        home.asked(BudgetQuestion(f"h{number}", agent(number), requests=1), float(number) / 100)
        home.asked(BudgetQuestion(HOST, agent(number), requests=1), float(number) / 100)

    assert repr(home) == "<BudgetHome 5 hosts>"
