"""Leases, names, limits: the small values of the store."""

import pytest
from hypothesis import given, strategies as st

from damselfly.cache.layout import FULL_VIEW, check_lease_id, view_name
from damselfly.cache.lease import Lease, encode, parse
from damselfly.cache.limits import Limits
from damselfly.cache.report import Reconciled
from damselfly.cache.room import human
from damselfly.errors import UsageError


@given(st.none() | st.integers(0, 2**63), st.integers(0, 2**63))
def test_a_lease_reads_as_it_was_written(expires_ns: int | None, now_ns: int) -> None:
    lease = parse("l", encode(expires_ns, 1))

    assert lease == Lease("l", expires_ns)
    assert lease.is_over(now_ns) == (expires_ns is not None and expires_ns <= now_ns)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_a_lease_that_cannot_be_read_holds_for_ever(data: bytes) -> None:
    assert not parse("l", data).is_over(2**63)


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b"{}",
        b"null",
        b'{"expires_ns": true}',
        b'{"expires_ns": "1"}',
        b'{"expires_ns": 1.5}',
    ],
)
def test_a_lease_of_another_shape_holds_for_ever(text: bytes) -> None:
    assert parse("l", text) == Lease("l", None)


@pytest.mark.parametrize("lease_id", ["csi-1", "pod.a_b", "_", "a" * 200])
def test_a_lease_id_can_be_a_files_name(lease_id: str) -> None:
    assert check_lease_id(lease_id) == lease_id


@pytest.mark.parametrize("lease_id", ["", ".", "..", ".x", "a/b", "a\n", "a\0", "é", "a" * 201])
def test_what_cannot_be_a_files_name_is_no_lease_id(lease_id: str) -> None:
    with pytest.raises(UsageError, match="cannot name a lease"):
        check_lease_id(lease_id)


def test_the_same_selection_has_one_view() -> None:
    assert view_name(None) == FULL_VIEW
    assert view_name([3, 1]) == view_name([1, 3])
    assert len({view_name(None), view_name([]), view_name([1]), view_name([11])}) == 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"high": 0.5, "low": 0.6},
        {"high": 1.1},
        {"keep_free_bytes": 5, "free_again_bytes": 4},
        {"open_files_max": 0},
    ],
)
def test_limits_that_contradict_each_other_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(AssertionError):
        Limits(**wrong)


def test_a_start_that_had_nothing_to_do_is_clean() -> None:
    assert Reconciled().is_clean
    assert not Reconciled(files_lost=1).is_clean


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (14_210_000_000, "14.2 GB"),
        (2 * 10**12, "2.0 TB"),
    ],
)
def test_bytes_are_told_for_a_person(count: int, told: str) -> None:
    assert human(count) == told
