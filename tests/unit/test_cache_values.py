"""Names, limits: the small values of the store."""

import pytest

from damselfly.cache.layout import FULL_VIEW, view_name
from damselfly.cache.limits import Limits
from damselfly.cache.report import Reconciled
from damselfly.cache.room import human


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
