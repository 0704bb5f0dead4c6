"""CreateVolume's promises: the same name is the same volume, or a conflict."""

import pytest

from damselfly.csi.created import Created, Range, create
from damselfly.csi.status import ConflictError, RangeError

GIB = 1 << 30
PARAMETERS = {"model": "https://h/m/", "csi.storage.k8s.io/pvc/name": "claim"}


def made(before: Created | None = None, required: int = GIB, limit: int = 0) -> Created:
    return create("pvc-1", "pvc-1", PARAMETERS, Range(required, limit), before, now_ns=1)


def test_a_volume_has_the_size_that_was_asked_for() -> None:
    assert made().capacity_bytes == GIB
    assert made(required=0).capacity_bytes == 0


def test_the_same_again_is_the_same() -> None:
    first = made()

    assert made(first) is first
    assert made(first, required=GIB // 2, limit=2 * GIB) is first


def test_what_kubernetes_says_about_the_claim_is_no_part_of_it() -> None:
    first = made()

    assert (
        create("pvc-1", "pvc-1", {"model": "https://h/m/"}, Range(GIB, 0), first, now_ns=2) is first
    )


@pytest.mark.parametrize(("required", "limit"), [(2 * GIB, 0), (0, GIB // 2)])
def test_another_size_is_a_conflict(required: int, limit: int) -> None:
    first = made()

    with pytest.raises(ConflictError):
        made(first, required=required, limit=limit)


def test_another_model_is_a_conflict() -> None:
    first = made()

    with pytest.raises(ConflictError):
        create("pvc-1", "pvc-1", {"model": "https://h/other/"}, Range(GIB, 0), first, now_ns=2)


@pytest.mark.parametrize(("required", "limit"), [(2, 1), (-1, 0), (0, -1)])
def test_a_size_that_cannot_be_is_out_of_range(required: int, limit: int) -> None:
    with pytest.raises(RangeError):
        made(required=required, limit=limit)


def test_a_record_comes_back_as_it_was() -> None:
    first = made()

    read = Created.parse({**first.to_json(), "attributes": list(first.attributes)})

    assert read == first
    assert made(read) is read


def test_a_signature_is_compared_and_not_written_down() -> None:
    signed = {"model": "https://h/m/?X-Signature=hidden"}
    first = create("pvc-1", "pvc-1", signed, Range(GIB, 0), None, now_ns=1)

    assert create("pvc-1", "pvc-1", signed, Range(GIB, 0), first, now_ns=2) is first
    assert "hidden" not in str(first.to_json())
    with pytest.raises(ConflictError):
        create(
            "pvc-1",
            "pvc-1",
            {"model": "https://h/m/?X-Signature=other"},
            Range(GIB, 0),
            first,
            now_ns=2,
        )
