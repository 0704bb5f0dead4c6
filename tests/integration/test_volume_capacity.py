"""Capacity of a real store: what may go counts, what is held does not, what is here always does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from damselfly.cache.limits import Limits
from damselfly.cache.store import Store
from damselfly.errors import ArtifactNotFoundError, StoreFullError
from damselfly.model.digest import Digest
from tests.conformance.store import HandClock, Sample, model, noise, pull, sample

CAPACITY = 1 << 20


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def store(tmp_path: Path, clock: HandClock) -> Iterator[Store]:
    limits = Limits(capacity_bytes=CAPACITY, keep_free_bytes=0, free_again_bytes=0)
    with Store.open(tmp_path / "store", limits, clock) as store:
        yield store


def size_of(of: Sample) -> int:
    return of.plan.bytes


def test_an_empty_store_has_its_capacity(store: Store) -> None:
    assert store.room_for().available_bytes == CAPACITY


def test_what_may_be_evicted_is_available(store: Store) -> None:
    pull(store, model(1))

    assert store.room_for().available_bytes == CAPACITY


@pytest.mark.parametrize("how", ["lease", "pin", "pull"])
def test_what_is_held_is_not(store: Store, how: str) -> None:
    one = model(1)
    artifact = pull(store, one)
    match how:
        case "lease":
            store.lease(artifact, "v1")
        case "pin":
            store.pin(artifact)
        case _:
            store.ingest(one.plan, one.digests, one.everything)

    assert store.room_for().available_bytes == CAPACITY - size_of(one)


def test_a_lease_that_is_over_holds_nothing(store: Store, clock: HandClock) -> None:
    store.lease(pull(store, model(1)), "v1", ttl_s=5)
    clock.now_s += 10

    assert store.room_for().available_bytes == CAPACITY
    assert store.usage().lease_count == 0


def test_what_is_here_of_an_artifact_counts_for_it_though_it_is_held(store: Store) -> None:
    one = model(1)
    artifact = pull(store, one)
    store.lease(artifact, "v1")

    found = store.room_for(artifact)

    assert found.available_bytes == CAPACITY
    assert found.bytes == found.bytes_held == size_of(one)


def test_what_is_evictable_counts_once(store: Store) -> None:
    one, other = model(1), model(2)
    artifact = pull(store, one)
    pull(store, other)

    assert store.room_for(artifact).available_bytes == CAPACITY


def test_a_selection_has_its_own_size(store: Store) -> None:
    one = model(1)
    artifact = pull(store, one, files=frozenset({0}))

    selected = store.room_for(artifact, frozenset({0}))
    whole = store.room_for(artifact)

    assert selected.bytes == selected.bytes_held == one.plan.files[0].bytes
    assert (whole.bytes, whole.bytes_held) == (size_of(one), one.plan.files[0].bytes)


def test_as_much_as_is_available_can_be_pulled(store: Store) -> None:
    store.lease(pull(store, model(1)), "v1")
    most = store.room_for().available_bytes
    chunks = [noise(min(1 << 16, most - start), start) for start in range(0, most, 1 << 16)]

    with pytest.raises(StoreFullError):
        pull(store, sample({"a": [*chunks, b"x"]}))
    artifact = pull(store, sample({"a": chunks}))

    assert store.holds(artifact)
    assert store.room_for(artifact).available_bytes == most


def test_what_is_not_known_is_said_by_name(store: Store) -> None:
    with pytest.raises(ArtifactNotFoundError):
        store.room_for(Digest.of(b"none"))


def test_the_usage_counts_leases_and_pins(store: Store, tmp_path: Path) -> None:
    one, other = pull(store, model(1)), pull(store, model(2))
    for lease in ("v1", "v2"):
        store.lease(one, lease)
    store.lease(other, "v1")
    store.pin(one)
    (tmp_path / "store" / "leases" / "not an artifact").mkdir()

    usage = store.usage()

    assert (usage.lease_count, usage.pin_count) == (3, 1)


def test_making_a_lease_says_whether_it_is_new(store: Store) -> None:
    artifact = pull(store, model(1))

    assert store.lease(artifact, "v1")
    assert not store.lease(artifact, "v1")
    assert store.release(artifact, "v1")
    assert store.lease(artifact, "v1")


def test_holding_is_having_every_file_whole(store: Store) -> None:
    one = model(1)
    artifact = pull(store, one, files=frozenset({0, 2}))

    assert store.holds(artifact, frozenset({0, 2}))
    assert store.holds(artifact, frozenset())
    assert not store.holds(artifact)
    assert not store.holds(Digest.of(b"none"))
