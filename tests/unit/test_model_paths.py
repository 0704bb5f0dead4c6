"""Paths inside an artifact: what a file may be called."""

import pytest

from damselfly.errors import ManifestError
from damselfly.model.paths import check_path, check_tree, is_bookkeeping


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "config.json",
        ".gitattributes",
        "original/größe 1.bin",
        "a/..b/...",
        "e\u0301",
        "😀" * 63,
        "/".join("a" * 32),
        "-rf",
        "~",
        "%2e%2e",
    ],
)
def test_what_a_file_may_be_called(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "empty"),
        ("/etc/passwd", "absolute"),
        ("..", "component '..'"),
        ("../a", "component '..'"),
        ("a/../b", "component '..'"),
        ("a/..", "component '..'"),
        (".", "component '.'"),
        ("./a", "component '.'"),
        ("a//b", "component ''"),
        ("a/", "component ''"),
        ("a\\b", "contains"),
        ("a\x00b", "contains"),
        ("a\nb", "contains"),
        ("a\x7f", "contains"),
        ("a\x85", "contains"),
        ("a\u2028b", "contains"),
        ("exe.\u202egnp", "contains"),
        ("a\ud800", "not Unicode"),
        ("a" * 256, "over 255"),
        ("ä" * 128, "over 255"),
        ("a/" * 512 + "b", "more than 1024"),
        ("/".join("a" * 33), "more than 32"),
    ],
)
def test_what_a_file_may_not_be_called(path: str, why: str) -> None:
    with pytest.raises(ManifestError, match=why):
        check_path(path)


def test_a_refusal_is_one_readable_line() -> None:
    with pytest.raises(ManifestError) as caught:
        check_path("a\n\x1b[31m" + "b" * 500)

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_case_and_normal_form_make_different_files() -> None:
    check_tree(["A", "a", "\u00e9", "e\u0301"])


def test_a_path_occurs_once() -> None:
    with pytest.raises(ManifestError, match="twice"):
        check_tree(["a", "b", "a"])


@pytest.mark.parametrize("paths", [["a", "a/b"], ["a/b/c/d", "a-b", "a/b"], ["x/y", "x"]])
def test_a_file_is_not_a_directory_too(paths: list[str]) -> None:
    with pytest.raises(ManifestError, match="is a file, and the directory of"):
        check_tree(paths)


def test_neighbours_in_spelling_are_no_conflict() -> None:
    check_tree(["a", "a-b", "a.b/c", "ab/a", "b/a"])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("damselfly-manifest.json", True),
        ("original/damselfly-manifest.json", False),
        (".git", True),
        (".git/HEAD", True),
        ("a/.cache/huggingface/x.lock", True),
        (".damselfly-push/file", True),
        (".gitattributes", False),
        (".gitignore", False),
        ("cache", False),
    ],
)
def test_bookkeeping_is_told_from_files(path: str, *, expected: bool) -> None:
    assert is_bookkeeping(path) is expected
