"""How much could be stored: exactly what a pull would be granted, and not a byte more."""

import pytest
from hypothesis import given, strategies as st

from damselfly.cache.evict import Candidate, Room, available, choose, evictable, shortage
from damselfly.cache.limits import Limits

SIZES = {number: 10 * number for number in range(1, 7)}


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    return [
        Candidate(
            key,
            f"a{key}",
            draw(st.integers(0, 9)),
            draw(st.frozensets(st.sampled_from(sorted(SIZES)), min_size=1)),
            draw(st.none() | st.just("leased")),
        )
        for key in range(draw(st.integers(0, 5)))
    ]


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    keep = draw(st.integers(0, 50))
    return Limits(
        capacity_bytes=draw(st.none() | st.integers(0, 400)),
        keep_free_bytes=keep,
        free_again_bytes=2 * keep,
        low=0.5,
        high=draw(st.sampled_from([0.5, 0.9, 1.0])),
    )


@given(candidates(), limits(), st.integers(0, 300), st.integers(0, 300))
def test_what_is_available_is_granted_and_a_byte_more_is_not(
    found: list[Candidate], bounds: Limits, own_bytes: int, free_bytes: int
) -> None:
    room = Room(own_bytes=own_bytes, free_bytes=free_bytes)

    most = available(room, evictable(found, SIZES), bounds)

    assert most >= 0
    assert most == 0 or choose(found, SIZES, shortage(room, most, bounds)).is_enough
    assert not choose(found, SIZES, shortage(room, most + 1, bounds)).is_enough


@pytest.mark.parametrize(
    ("capacity", "own", "free", "evictable_bytes", "most"),
    [
        (None, 40, 100, 0, 90),
        (None, 40, 100, 30, 120),
        (None, 40, 5, 0, 0),
        (60, 40, 100, 0, 20),
        (60, 40, 100, 30, 50),
        (60, 80, 100, 0, 0),
    ],
)
def test_the_tighter_of_the_two_bounds_counts(
    capacity: int | None, own: int, free: int, evictable_bytes: int, most: int
) -> None:
    bounds = Limits(capacity_bytes=capacity, keep_free_bytes=10, free_again_bytes=20)

    assert available(Room(own_bytes=own, free_bytes=free), evictable_bytes, bounds) == most
