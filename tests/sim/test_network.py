"""The simulator's links: rates are max-min fair, and what is approximate stays near them."""

import math
from itertools import pairwise

from hypothesis import given, strategies as st

from tests.sim.network import Events, Flow, Link, Network


def fair_rates(flows: list[Flow], links: list[Link]) -> dict[Flow, float]:
    """Progressive filling (Bertsekas and Gallager, §6.5.2): slow, and plainly right."""
    rates = dict.fromkeys(flows, 0.0)
    growing = set(flows)
    while growing:
        steps = [flow.cap - rates[flow] for flow in growing]
        for link in links:
            through = [flow for flow in flows if link in (flow.source, flow.sink)]
            count = sum(flow in growing for flow in through)
            if count:
                steps.append((link.cap - sum(rates[flow] for flow in through)) / count)
        step = min(steps)
        for flow in growing:
            rates[flow] += step
        full = {
            link
            for link in links
            if sum(rates[flow] for flow in flows if link in (flow.source, flow.sink))
            >= link.cap * (1 - 1e-9)
        }
        growing = {
            flow
            for flow in growing
            if rates[flow] < flow.cap * (1 - 1e-9) and not {flow.source, flow.sink} & full
        }
    return rates


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[Link], list[tuple[int, int, float]]]:
    count = draw(st.integers(2, 6))
    caps = st.sampled_from([1.0, 2.0, 5.0, 10.0, 40.0])
    links = [Link(draw(caps)) for _ in range(2 * count)]
    node = st.integers(0, count - 1)
    pairs = draw(
        st.lists(
            st.tuples(node, node, st.sampled_from([0.3, 3.0, math.inf])), min_size=1, max_size=14
        )
    )
    return links, pairs


def started(network: Network, links: list[Link], pairs: list[tuple[int, int, float]]) -> list[Flow]:
    flows: list[Flow] = []
    for source, sink, cap in pairs:
        flow = Flow(links[2 * source], links[2 * sink + 1], cap)
        network.send(flow, 1e6, lambda: None)
        flows.append(flow)
    return flows


@given(networks())
def test_rates_are_max_min_fair(drawn: tuple[list[Link], list[tuple[int, int, float]]]) -> None:
    links, pairs = drawn

    flows = started(Network(Events()), links, pairs)

    expected = fair_rates(flows, links)
    for flow in flows:
        assert math.isclose(flow.rate, expected[flow], rel_tol=1e-6)


@given(networks(), st.integers(0, 13))
def test_rates_are_fair_again_when_a_flow_has_ended(
    drawn: tuple[list[Link], list[tuple[int, int, float]]], ended: int
) -> None:
    links, pairs = drawn
    network = Network(Events())
    flows = started(network, links, pairs)
    gone = flows.pop(ended % len(flows))

    network.cancel(gone, gone.queue[0])

    expected = fair_rates(flows, links)
    for flow in flows:
        assert math.isclose(flow.rate, expected[flow], rel_tol=1e-6)


@given(networks())
def test_approximate_rates_never_exceed_a_link_by_much(
    drawn: tuple[list[Link], list[tuple[int, int, float]]],
) -> None:
    links, pairs = drawn

    flows = started(Network(Events(), tolerance=0.1, visits_max=16), links, pairs)

    for link in links:
        through = sum(flow.rate for flow in flows if link in (flow.source, flow.sink))
        assert through <= 1.5 * link.cap


def test_a_transfer_takes_its_bytes_over_its_rate_and_the_next_one_follows() -> None:
    events = Events()
    network = Network(events)
    flow = Flow(Link(10.0), Link(4.0))
    ends: list[float] = []
    network.send(flow, 20.0, lambda: ends.append(events.now))
    network.send(flow, 8.0, lambda: ends.append(events.now))

    while events.step():
        pass

    assert [round(end, 6) for end in ends] == [5.0, 7.0]
    assert network.moved_bytes == 28.0


def test_bytes_that_had_arrived_are_counted_when_a_transfer_is_cancelled() -> None:
    events = Events()
    network = Network(events)
    flow = Flow(Link(10.0), Link(10.0))
    transfer = network.send(flow, 100.0, lambda: None)
    arrived: list[float] = []
    events.at(3.0, lambda: arrived.append(network.cancel(flow, transfer)))

    while events.step():
        pass

    assert arrived == [30.0]
    assert network.moved_bytes == 0.0


def test_things_happen_in_the_order_of_their_times() -> None:
    events = Events()
    seen: list[float] = []
    for when_s in (3.0, 1.0, 2.0, 1.0):
        events.at(when_s, lambda: seen.append(events.now))

    while events.step():
        pass

    assert all(before <= after for before, after in pairwise(seen))
    assert len(seen) == 4
