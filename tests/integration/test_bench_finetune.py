"""What moves between revisions that share tensors: asserted on bytes and contents, not on time."""

import pytest

from bench.finetune import Moved, measure

SIZE = 48 << 20
AGENTS = 2


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Moved]:
    rows = list(measure(tmp_path_factory.mktemp("finetune"), SIZE, AGENTS))
    assert len(rows) == 8
    return {(row.case, row.way): row for row in rows}


def test_everybody_ends_with_the_very_files_and_every_byte_is_accounted_for(
    moved: dict[tuple[str, str], Moved],
) -> None:
    for row in moved.values():
        assert row.is_same, row
        came = row.bytes_from_origin + row.bytes_from_peers + row.bytes_from_store
        assert came == AGENTS * row.model_bytes, row


@pytest.mark.parametrize(
    ("case", "ratio"),
    [("2-of-32-layers", 0.09), ("resharded", 0.09), ("new-metadata", 0.03), ("lora-added", 0.03)],
)
def test_of_what_was_pushed_only_what_differs_moves(
    moved: dict[tuple[str, str], Moved], case: str, ratio: float
) -> None:
    row = moved[case, "pushed"]

    assert row.moved_ratio <= ratio, row
    assert row.origin_ratio <= ratio, row
    assert row.bytes_from_store >= (1 - ratio) * AGENTS * row.model_bytes


@pytest.mark.parametrize("case", ["2-of-32-layers", "resharded", "new-metadata", "lora-added"])
def test_what_is_only_listed_is_read_once_and_copied_where_it_is_held(
    moved: dict[tuple[str, str], Moved], case: str
) -> None:
    row = moved[case, "listed"]

    assert row.origin_ratio <= 1.01, row
    assert row.bytes_from_peers <= 0.09 * row.model_bytes, row
