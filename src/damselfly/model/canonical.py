"""Canonical JSON: one value, one spelling, so that bytes can be hashed and compared.

UTF-8, keys in code-point order, no spaces, no escapes but those that JSON demands, integers only.
Reading is strict: a key twice, NaN, a lone surrogate or nesting past any sense is an error, never a
guess; it is bounded before anything is built (`model/bounded_json.py`).
"""

import json
from itertools import groupby
from typing import Any, NoReturn, TypeVar, cast

from damselfly.model.bounded_json import VALUES_MAX, loads

_T = TypeVar("_T")


def encode(value: object) -> bytes:
    """Write `value` the one way."""
    return json.dumps(
        value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
    ).encode()


def decode(data: bytes, *, values_max: int = VALUES_MAX, has_floats: bool = True) -> object:
    """Read JSON from somebody we do not trust; without `has_floats` numbers are integers.

    Raises:
        ValueError: this is not JSON, or JSON that two readers would read differently, or so much
            of it that it is meant to harm.
    """
    return loads(
        data,
        values_max=values_max,
        object_pairs_hook=_unique,
        parse_constant=_no_number,
        has_floats=has_floats,
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:90]!r} occurs twice")
            seen.add(key)
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def runs_of(lengths: tuple[int, ...]) -> list[list[int]]:
    """Write lengths as runs `[length, count]`: 35,000 chunks of a model take a few hundred."""
    return [[length, sum(1 for _ in run)] for length, run in groupby(lengths)]


def lengths_of(runs: object, length_max: int, count_max: int) -> tuple[int, ...]:
    """Read what `runs_of` wrote, without building more than `count_max` lengths.

    Raises:
        ValueError: not runs, a length outside of `[1, length_max]`, too many, or runs that
            should have been one.
    """
    lengths: list[int] = []
    previous = 0
    for run in cast("list[object]", expect(runs, list, "lengths")):
        match run:
            case [int(length), int(count)] if type(length) is int and type(count) is int:
                pass
            case _:
                raise ValueError("a run of lengths is not [length, count]")
        if not 1 <= length <= length_max:
            raise ValueError(f"a chunk of {length} bytes: it has 1 to {length_max}")
        if length == previous or count < 1:
            raise ValueError("a run of lengths is empty or continues the one before it")
        if count > count_max - len(lengths):
            raise ValueError(f"more than {count_max} chunks")
        lengths.extend([length] * count)
        previous = length
    return tuple(lengths)


def expect(value: object, kind: type[_T], what: str) -> _T:
    """Let `value` pass if it is a `kind` and nothing derived from it (`True` is no integer).

    Raises:
        ValueError: it is something else.
    """
    if type(value) is not kind:
        raise ValueError(f"{what}: expected {kind.__name__}, not {type(value).__name__}")
    return value
