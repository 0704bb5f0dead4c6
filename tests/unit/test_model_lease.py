"""Leases: what their files say, and what they may be called."""

import pytest
from hypothesis import given, strategies as st

from damselfly.errors import UsageError
from damselfly.model.digest import Digest
from damselfly.model.lease import Lease, check_lease_id, encode, lease_path, parse


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


def test_a_lease_lies_below_its_artifact() -> None:
    artifact = Digest.of(b"x")

    assert lease_path(artifact, "csi-1") == f"leases/{artifact.hex}/csi-1"
    with pytest.raises(UsageError, match="cannot name a lease"):
        lease_path(artifact, "../x")


def test_a_lease_nested_too_deep_to_read_holds_for_ever() -> None:
    assert parse("l", b"[" * 4000) == Lease("l", None)
