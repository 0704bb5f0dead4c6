"""What a signature says about files: exactly those, but for what it leaves out."""

import pytest

from damselfly.errors import SignatureError
from damselfly.model.statement import Statement

FILES = {"a": "1" * 64, "d/b": "2" * 64}
IGNORED = ("model.sig", ".git", "./notes/", ".gitattributes")
STATEMENT = Statement(FILES, IGNORED)


@pytest.mark.parametrize(
    "extra", [{}, {".gitattributes": "3" * 64}, {"notes/x/y": "3" * 64}, {".git/x": "3" * 64}]
)
def test_what_it_covers_and_what_it_leaves_out_passes(extra: dict[str, str]) -> None:
    STATEMENT.check(FILES | extra, ["model.sig"], is_whole=True)


def test_a_part_passes_and_nothing_but_the_choice_is_missing() -> None:
    STATEMENT.check({"a": FILES["a"]}, ["d/b"], is_whole=True)
    STATEMENT.check({"a": FILES["a"]}, [], is_whole=False)


def test_notes_that_are_no_files_of_an_artifact_are_not_missed() -> None:
    statement = Statement(FILES | {"damselfly-manifest.json": "3" * 64, ".cache/x": "4" * 64}, ())

    statement.check(FILES, [], is_whole=True)


@pytest.mark.parametrize(
    ("digests", "others", "reason"),
    [
        (FILES | {"a": "3" * 64}, [], "'a' is not what was signed"),
        (FILES | {"x": "3" * 64}, [], "'x' was not signed"),
        (FILES, ["x"], "'x' was not signed"),
        (FILES | {"notes": "3" * 64, "notes2": "3" * 64}, [], "'notes2' was not signed"),
        (FILES | {"d/.git/x": "3" * 64}, [], "'d/.git/x' was not signed"),
        ({"a": FILES["a"]}, [], "'d/b' was signed and is missing"),
        (
            FILES | {str(number): "3" * 64 for number in range(5)},
            [],
            r"'0', '1', '2' \(and 2 more\) was not signed",
        ),
    ],
)
def test_what_differs_is_named(digests: dict[str, str], others: list[str], reason: str) -> None:
    with pytest.raises(SignatureError, match=reason):
        STATEMENT.check(digests, others, is_whole=True)


@pytest.mark.parametrize("everything", ["", ".", "./", "a/../", "/"])
def test_one_that_leaves_out_everything_signs_nothing(everything: str) -> None:
    statement = Statement(FILES, (everything,))

    with pytest.raises(SignatureError, match=r"ignores every file|was not signed"):
        statement.check(FILES | {"x": "3" * 64}, [], is_whole=True)


def test_one_that_covers_none_of_the_files_signs_nothing() -> None:
    statement = Statement({}, ("d",))

    with pytest.raises(SignatureError, match="covers none"):
        statement.check({"d/b": "2" * 64}, [], is_whole=True)
