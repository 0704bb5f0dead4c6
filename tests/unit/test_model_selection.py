"""Glob filters."""

import pytest

from damselfly.model.selection import selects


@pytest.mark.parametrize(
    ("path", "include", "exclude", "expected"),
    [
        ("a.bin", [], [], True),
        ("a.bin", ["*.bin"], [], True),
        ("deep/er/a.bin", ["*.bin"], [], True),
        ("deep/er/a.bin", ["a.bin"], [], True),
        ("deep/er/a.bin", ["deep/*"], [], True),
        ("deep/er/a.bin", ["er/*"], [], False),
        ("deep/er/a.bin", ["deep/"], [], True),
        ("deeper/a.bin", ["deep/"], [], False),
        ("a.bin", ["*.txt", "*.bin"], [], True),
        ("a.bin", ["*.BIN"], [], False),
        ("a.bin", [], ["*.bin"], False),
        ("a.bin", ["a.*"], ["*.bin"], False),
        ("original/a.pth", [], ["original/"], False),
        ("model-1.bin", ["model-[0-9].bin"], [], True),
        ("model-x.bin", ["model-[0-9].bin"], [], False),
        ("a[1].bin", ["a[1].bin"], [], False),
        ("a[1].bin", ["a[[]1].bin"], [], True),
    ],
)
def test_filters_let_through(
    path: str, include: list[str], exclude: list[str], *, expected: bool
) -> None:
    assert selects(path, include, exclude) is expected
