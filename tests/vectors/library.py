"""The safetensors library's own reader, which has no types, with types."""

from collections.abc import Callable
from typing import TypedDict, cast

import safetensors


class Described(TypedDict):
    """What the library says of a tensor."""

    dtype: str
    shape: list[int]
    data: bytearray


deserialize = cast(Callable[[bytes], list[tuple[str, Described]]], vars(safetensors)["deserialize"])
