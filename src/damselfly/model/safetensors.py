"""Headers of safetensors files: where each tensor lies.

    8 bytes        N, little-endian
    N bytes        JSON: {NAME: {"dtype": ..., "shape": [...], "data_offsets": [start, stop]}, ...}
    to the end     the tensors, without holes or overlaps, to the last byte of the file

Everything here comes from somebody we do not trust; every rule of the format is checked before one
number is used. The rules are those of the safetensors library 0.7 and 0.8, which the tests hold us
against, and stricter in three places where readers differ: the JSON starts at its first byte, no
key occurs twice, and a tensor is an object.
"""

import json
from dataclasses import dataclass
from typing import cast

from damselfly.errors import HeaderError
from damselfly.model import canonical

PREFIX_BYTES = 8
HEADER_BYTES_MAX = 100_000_000
"""The library's own limit on N."""
HEADER_VALUES_MAX = 2 << 20
"""200,000 tensors of ten values each; the largest models have half as many, in 100 files."""

DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
_INTEGER_MAX = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: bytes `[start, stop)` of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """A header that keeps the rules: its own length, and the tensors in file order."""

    length: int
    tensors: tuple[Tensor, ...]
    metadata: dict[str, str]


def header_bytes(prefix: bytes, file_bytes: int) -> int:
    """Say how many bytes of the file are header, from its first 8.

    Raises:
        HeaderError: the file is too short, or the length cannot be true.
    """
    if file_bytes < PREFIX_BYTES or len(prefix) < PREFIX_BYTES:
        raise HeaderError(f"a file of {file_bytes} bytes is too short for a safetensors header")
    length = int.from_bytes(prefix[:PREFIX_BYTES], "little")
    if length > HEADER_BYTES_MAX:
        if prefix.startswith(b"version "):
            raise HeaderError("this is a Git LFS pointer, not the file it points to")
        raise HeaderError(f"a header of {length} bytes: the limit is {HEADER_BYTES_MAX}")
    if length > file_bytes - PREFIX_BYTES:
        raise HeaderError(f"a header of {length} bytes in a file of {file_bytes}")
    return PREFIX_BYTES + length


def parse(data: bytes, file_bytes: int) -> Header:
    """Read the header of a file of `file_bytes`; `data` starts with all of it.

    Raises:
        HeaderError: it breaks a rule of the format.
    """
    length = header_bytes(data, file_bytes)
    assert len(data) >= length, "the caller reads what header_bytes says"
    text = data[PREFIX_BYTES:length]
    if not text.startswith(b"{"):
        raise HeaderError("the header does not start with {")
    try:
        entries = cast("dict[str, object]", canonical.decode(text, values_max=HEADER_VALUES_MAX))
    except ValueError as exc:
        raise HeaderError("the header is not strict JSON in UTF-8") from exc
    metadata = _metadata(entries.pop("__metadata__", None))
    tensors = [_tensor(name, entry, length) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    end = length
    for tensor in tensors:
        if tensor.start != end:
            kind = "overlaps its neighbour" if tensor.start < end else "leaves a hole before it"
            raise HeaderError(f"the tensor {_shown(tensor.name)} {kind}")
        end = tensor.stop
    if end != file_bytes:
        raise HeaderError(f"the tensors end at byte {end}, the file at {file_bytes}")
    return Header(length, tuple(tensors), metadata)


def _tensor(name: str, entry: object, base: int) -> Tensor:
    _check_text(name)
    if not isinstance(entry, dict):
        raise HeaderError(f"the tensor {_shown(name)} is not described by an object")
    fields = cast("dict[str, object]", entry)
    dtype, shape, offsets = (fields.pop(key, None) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise HeaderError(f"the tensor {_shown(name)} has the unknown dtype {str(dtype)[:40]!r}")
    sizes = _naturals(shape)
    if sizes is None:
        raise HeaderError(f"the shape of the tensor {_shown(name)} is not a list of sizes")
    bounds = _naturals(offsets)
    if bounds is None or len(bounds) != 2:
        raise HeaderError(f"the data_offsets of the tensor {_shown(name)} are not [start, stop]")
    if fields:
        _check_extras(name, fields)
    start, stop = bounds
    if start > stop:
        raise HeaderError(f"the tensor {_shown(name)} ends before it starts")
    bits = DTYPE_BITS[dtype]
    elements = 1
    for size in sizes:
        elements *= size
        if elements > _INTEGER_MAX:
            raise HeaderError(f"the shape of the tensor {_shown(name)} overflows")
    if elements * bits > _INTEGER_MAX:
        raise HeaderError(f"the shape of the tensor {_shown(name)} overflows")
    if elements * bits != (stop - start) * 8:
        raise HeaderError(
            f"the tensor {_shown(name)} of {elements} x {bits} bits has {stop - start} bytes"
        )
    return Tensor(name, dtype, tuple(sizes), base + start, base + stop)


def _naturals(value: object) -> list[int] | None:
    if not isinstance(value, list):
        return None
    numbers = cast("list[object]", value)
    for number in numbers:
        if type(number) is not int or not 0 <= number <= _INTEGER_MAX:
            return None
    return cast("list[int]", numbers)


def _metadata(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise HeaderError("__metadata__ is not an object")
    for key, text in cast("dict[str, object]", value).items():
        if not isinstance(text, str):
            raise HeaderError(f"__metadata__ has something other than text at {_shown(key)}")
        _check_text(key)
        _check_text(text)
    return cast("dict[str, str]", value)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise HeaderError(f"the header has text that is not Unicode: {_shown(text)}") from None


def _check_extras(name: str, fields: dict[str, object]) -> None:
    # Fields we do not know are let pass, as the library does, as long as they are sound JSON.
    try:
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as exc:
        raise HeaderError(f"the tensor {_shown(name)} has fields that are not JSON") from exc


def _shown(name: str) -> str:
    return ascii(name[:80])
