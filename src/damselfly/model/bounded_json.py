"""JSON from strangers, bounded before a single value of it is built.

A few megabytes of `[[],[],...` become gigabytes of lists, and the limit on an answer's bytes does
not see it. So what would be built is counted in the bytes first, at the speed of `memchr`: at most
one value for each comma and each opening bracket (those inside of strings count too, and the limits
leave room for them). Nesting is measured by what is left when everything but brackets outside of
strings is taken away, and then pair by pair.
"""

import json
from collections.abc import Callable
from typing import Any, NoReturn, cast

VALUES_MAX = 1 << 19
"""A page of a listing, or an index of so many tensors: the largest models have 100,000. Reading
them keeps other threads waiting for a tenth of a second."""
CHUNKS_VALUES_MAX = 4 << 20
"""A manifest of 1,000,000 chunks that all differ in length has 3,000,000, and so has a plan."""
DEPTH_MAX = 64
INTEGER_DIGITS_MAX = 20
"""As many as 2**64 has. Reading a number costs the square of its digits, and holds up all else."""
FLOAT_CHARS_MAX = 32
"""The longest that says one of 64 bits exactly enough has 24."""

_STRUCTURE = b'"[]{}'
_ELSE = bytes(set(range(256)) - set(_STRUCTURE))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
"""Which bracket it is does not matter to the depth; the parser refuses pairs that do not match."""


def loads(
    data: bytes,
    *,
    values_max: int = VALUES_MAX,
    depth_max: int = DEPTH_MAX,
    object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    parse_constant: Callable[[str], Any] | None = None,
    has_floats: bool = True,
) -> object:
    """Read JSON in UTF-8; without `has_floats` every number is an integer.

    Raises:
        ValueError: it is none, or has more values, deeper ones or longer numbers than may be.
    """
    opened = data.count(b"[") + data.count(b"{")
    if data.count(b",") + opened + 1 > values_max:
        raise ValueError(f"more than {values_max} values")
    if opened > depth_max and not _is_shallow(data, depth_max):
        raise ValueError(f"nested too deep: more than {depth_max}, or a bracket without a match")
    try:
        return cast(
            object,
            json.loads(
                data.decode(),
                object_pairs_hook=object_pairs_hook,
                parse_constant=parse_constant,
                parse_int=_integer,
                parse_float=_float if has_floats else _no_float,
            ),
        )
    except RecursionError:
        raise ValueError("nested too deep") from None


def _integer(text: str) -> int:
    if len(text) > INTEGER_DIGITS_MAX and len(text.removeprefix("-")) > INTEGER_DIGITS_MAX:
        raise ValueError(f"an integer of {len(text)} digits: it has at most {INTEGER_DIGITS_MAX}")
    return int(text)


def _float(text: str) -> float:
    if len(text) > FLOAT_CHARS_MAX:
        raise ValueError(f"a number of {len(text)} characters: at most {FLOAT_CHARS_MAX} may be")
    return float(text)


def _no_float(text: str) -> NoReturn:
    raise ValueError(f"{text[:FLOAT_CHARS_MAX]} is no integer")


def _is_shallow(data: bytes, depth_max: int) -> bool:
    # An escaped quote ends no string. Backslashes pair from the left, so those pairs go first.
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Two quotes side by side: an empty string, or two strings that nothing separates.
    left = plain.translate(_ONE_KIND, _ELSE).replace(b'""', b"")
    left = b"".join(left.split(b'"')[::2])
    for _ in range(depth_max):
        if not left:
            return True
        left = left.replace(b"[]", b"")  # Every innermost pair, and none around it.
    return not left
