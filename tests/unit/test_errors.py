"""Errors: a tree that is documented, exit codes that tell, chains that are told once."""

import ast
import inspect
import re

import pytest

from damselfly import errors
from damselfly.errors import (
    DamselflyError,
    DigestMismatchError,
    OriginUnavailableError,
    UnavailableError,
    error_classes,
    explain,
)

ROW = re.compile(r"^( *)([A-Z]\w+Error)\b(.*?)\b(\d+)\b", re.MULTILINE)


def documented() -> dict[str, tuple[str | None, int, bool]]:
    """The docstring's tree: each class with its parent, its exit code, whether it is retryable."""
    found: dict[str, tuple[str | None, int, bool]] = {}
    above: list[tuple[int, str]] = []
    assert errors.__doc__ is not None
    for indent, name, middle, code in ROW.findall(errors.__doc__):
        while above and above[-1][0] >= len(indent):
            above.pop()
        found[name] = (above[-1][1] if above else None, int(code), "retryable" in middle)
        above.append((len(indent), name))
    return found


def test_every_class_is_in_the_tree_with_its_parent_and_exit_code() -> None:
    tree = documented()

    assert set(tree) == set(error_classes())
    for name, cls in error_classes().items():
        parent, code, _ = tree[name]
        assert cls.exit_code == code, name
        assert parent == (None if cls is DamselflyError else cls.__mro__[1].__name__), name


def test_exit_codes_are_distinct_and_leave_room_for_the_shells() -> None:
    codes = [cls.exit_code for cls in error_classes().values()]

    assert len(set(codes)) == len(codes)
    assert all(0 < code < 126 for code in codes)


def test_only_what_is_unavailable_is_worth_another_try() -> None:
    for cls in error_classes().values():
        assert cls.retryable == issubclass(cls, UnavailableError)


def test_every_class_says_what_it_means() -> None:
    for cls in error_classes().values():
        assert inspect.getdoc(cls)


def test_a_chain_is_told_once_from_the_outside_in() -> None:
    error = OriginUnavailableError("asking 10.0.0.7 for chunk 3")
    error.__cause__ = ConnectionResetError("reset by peer")

    assert explain(error) == "asking 10.0.0.7 for chunk 3: reset by peer"


def test_an_error_without_words_is_told_by_its_class() -> None:
    error = OriginUnavailableError("asking the origin")
    error.__cause__ = TimeoutError()

    assert explain(error) == "asking the origin: TimeoutError"


def test_a_chain_that_bites_its_tail_is_told_once() -> None:
    error = OriginUnavailableError("first")
    error.__cause__ = ExceptionGroup("many", [error])

    assert explain(error) == "first"


def test_a_group_speaks_through_its_first_member() -> None:
    group = ExceptionGroup("many", [OriginUnavailableError("first"), OSError("second")])

    assert explain(group) == "first"


def test_a_mismatch_says_all_three() -> None:
    error = DigestMismatchError("blake3:aa", "blake3:bb", "10.0.0.3:7460")

    assert (error.expected, error.actual, error.source) == (
        "blake3:aa",
        "blake3:bb",
        "10.0.0.3:7460",
    )
    assert all(part in str(error) for part in ("blake3:aa", "blake3:bb", "10.0.0.3:7460"))


def test_all_of_them_are_defined_in_one_file() -> None:
    tree = ast.parse(inspect.getsource(errors))
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}

    assert defined == set(error_classes())


@pytest.mark.parametrize("cls", error_classes().values(), ids=lambda cls: cls.__name__)
def test_names_end_as_errors_do(cls: type[DamselflyError]) -> None:
    assert cls.__name__.endswith("Error")
