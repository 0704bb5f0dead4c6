"""Who goes when room is needed: the pure choice."""

from hypothesis import given, strategies as st

from damselfly.cache.evict import Candidate, Room, Shortage, choose, shortage
from damselfly.cache.limits import Limits

GB = 1_000_000_000


def candidate(
    key: int, files: set[int], *, used_ns: int = 0, held_by: str | None = None
) -> Candidate:
    return Candidate(key, f"artifact {key}", used_ns, frozenset(files), held_by)


def test_nothing_has_to_go_while_there_is_room() -> None:
    limits = Limits(capacity_bytes=100 * GB, keep_free_bytes=GB, free_again_bytes=2 * GB)

    wanted = shortage(Room(own_bytes=50 * GB, free_bytes=60 * GB), 40 * GB, limits)

    assert wanted == Shortage(must=0, should=0)


def test_above_the_high_mark_it_should_and_above_the_capacity_it_must() -> None:
    limits = Limits(capacity_bytes=100 * GB, high=0.9, low=0.8, keep_free_bytes=0)
    room = Room(own_bytes=50 * GB, free_bytes=500 * GB)

    assert shortage(room, 40 * GB, limits) == Shortage(must=0, should=0)
    assert shortage(room, 41 * GB, limits) == Shortage(must=0, should=11 * GB)
    assert shortage(room, 60 * GB, limits) == Shortage(must=10 * GB, should=30 * GB)


def test_the_file_systems_free_space_counts_as_well() -> None:
    limits = Limits(keep_free_bytes=2 * GB, free_again_bytes=5 * GB)
    room = Room(own_bytes=50 * GB, free_bytes=10 * GB)

    assert shortage(room, 8 * GB, limits) == Shortage(must=0, should=0)
    assert shortage(room, 9 * GB, limits) == Shortage(must=GB, should=4 * GB)


def test_who_needs_nothing_is_never_refused() -> None:
    limits = Limits(capacity_bytes=GB, keep_free_bytes=2 * GB)

    wanted = shortage(Room(own_bytes=5 * GB, free_bytes=0), 0, limits)

    assert wanted.must == 0


def test_the_oldest_goes_first_and_no_more_than_should() -> None:
    candidates = [candidate(key, {key}, used_ns=100 - key) for key in range(4)]

    choice = choose(candidates, dict.fromkeys(range(4), 10), Shortage(must=1, should=15))

    assert [victim.key for victim in choice.victims] == [3, 2]
    assert choice.evictable_bytes == 40


def test_a_shared_file_goes_with_the_last_that_names_it() -> None:
    sizes = {1: 10, 2: 1, 3: 1}
    both = [candidate(1, {1, 2}, used_ns=1), candidate(2, {1, 3}, used_ns=2)]
    one_held = [both[0], candidate(2, {1, 3}, used_ns=2, held_by="pinned")]

    assert choose(both, sizes, Shortage(must=5, should=5)).victims == tuple(both)
    assert not choose(one_held, sizes, Shortage(must=5, should=5)).is_enough
    assert choose(one_held, sizes, Shortage(must=1, should=1)).victims == (both[0],)


def test_who_would_free_nothing_stays() -> None:
    sizes = {1: 10, 2: 10}
    candidates = [
        candidate(1, {1}, used_ns=1),
        candidate(2, {2}, used_ns=2),
        candidate(3, {1}, used_ns=3, held_by="leased by pod"),
    ]

    choice = choose(candidates, sizes, Shortage(must=10, should=10))

    assert [victim.key for victim in choice.victims] == [2]


files = st.sets(st.integers(0, 6), max_size=4)
reasons = st.sampled_from([None, None, "pinned"])
worlds = st.lists(st.tuples(st.integers(0, 9), files, reasons), max_size=7)


@given(worlds, st.lists(st.integers(0, 50), min_size=7, max_size=7), st.data())
def test_what_is_chosen_is_enough_held_ones_stay_and_none_goes_in_vain(
    world: list[tuple[int, set[int], str | None]], bytes_of: list[int], data: st.DataObject
) -> None:
    candidates = [
        candidate(key, names, used_ns=used_ns, held_by=held_by)
        for key, (used_ns, names, held_by) in enumerate(world)
    ]
    sizes = {file: size for file, size in enumerate(bytes_of) if size}
    must = data.draw(st.integers(0, 200))
    wanted = Shortage(must=must, should=must + data.draw(st.integers(0, 100)))

    choice = choose(candidates, sizes, wanted)

    def freed(victims: set[int]) -> int:
        kept = {file for one in candidates if one.key not in victims for file in one.files}
        gone = {file for one in candidates if one.key in victims for file in one.files}
        return sum(sizes.get(file, 0) for file in gone - kept)

    free_ones = {one.key for one in candidates if one.held_by is None}
    chosen = {one.key for one in choice.victims}
    assert choice.evictable_bytes == freed(free_ones)
    assert choice.is_enough == (freed(free_ones) >= wanted.must)
    assert chosen <= free_ones
    if not choice.is_enough:
        assert not chosen
    else:
        assert freed(chosen) >= min(wanted.should, freed(free_ones))
        for one in choice.victims:
            assert freed(chosen - {one.key}) < freed(chosen)
    newest = max(((one.used_ns, one.key) for one in choice.victims), default=(0, 0))
    older = [one for one in candidates if (one.used_ns, one.key) < newest and one.held_by is None]
    for one in older:
        assert one.key in chosen or freed(chosen | {one.key}) == freed(chosen)
