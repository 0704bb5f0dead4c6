"""Hostile safetensors headers: each is refused by its malformation, and nothing else happens.

Whatever the library refuses we refuse. The three places where we are stricter are marked.
"""

import json
from collections.abc import Callable

import pytest
from safetensors import SafetensorError

from damselfly.errors import HeaderError, explain
from damselfly.model import safetensors
from tests.vectors.library import deserialize


def _file(header: bytes, data_bytes: int = 0) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(data_bytes)


def _tensors(data_bytes: int, **tensors: object) -> bytes:
    return _file(json.dumps(tensors).encode(), data_bytes)


def _u8(start: int, stop: int, *shape: int) -> dict[str, object]:
    return {"dtype": "U8", "shape": shape, "data_offsets": [start, stop]}


def _raw(dtype: str = '"U8"', shape: str = "[1]", offsets: str = "[0,1]", more: str = "") -> bytes:
    text = f'{{"a":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{more}}}}}'
    return _file(text.encode(), 1)


ATTACKS: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", "too short"),
    "seven bytes": (b"1234567", "too short"),
    "a header of 2^63 bytes": ((2**63).to_bytes(8, "little") + b"{}", "the limit is"),
    "a header of 2^64-1 bytes": (b"\xff" * 8 + b"{}", "the limit is"),
    "a header just over the limit": ((100_000_001).to_bytes(8, "little") + b"{}", "limit"),
    "a header longer than the file": ((3).to_bytes(8, "little") + b"{}", "in a file of 10"),
    "an empty header": (_file(b""), "start with {"),
    "not JSON": (_file(b"{"), "not strict JSON"),
    "a list": (_file(b"[]"), "start with {"),
    "not UTF-8": (_file(b'{"\xff":1}'), "UTF-8"),
    "a tail of NULs": (_file(b"{}\x00\x00"), "not strict JSON"),
    "two objects": (_file(b"{}{}"), "not strict JSON"),
    "nested a hundred thousand deep": (_file(b'{"a":' + b"[" * 100_000), "nested too deep"),
    "an integer of 5,000 digits": (_raw(shape=f"[{'9' * 5000}]"), "not strict JSON"),
    "a tensor that is null": (_file(b'{"a":null}'), "not described"),
    "a tensor that is text": (_file(b'{"a":"U8"}'), "not described"),
    "no fields": (_file(b'{"a":{}}'), "unknown dtype"),
    "an unknown dtype": (_raw(dtype='"F7"'), "unknown dtype 'F7'"),
    "a dtype that is a number": (_raw(dtype="8"), "unknown dtype"),
    "a shape that is no list": (_raw(shape="1"), "list of sizes"),
    "a negative size": (_raw(shape="[-1]"), "list of sizes"),
    "a size of a fraction": (_raw(shape="[1.0]"), "list of sizes"),
    "a size that is true": (_raw(shape="[true]"), "list of sizes"),
    "a size of 2^64": (_raw(shape="[18446744073709551616,0]"), "list of sizes"),
    "a shape that overflows": (_raw(shape="[1099511627776,1099511627776]"), "overflows"),
    "a shape that overflows before a zero": (
        _raw(shape="[1099511627776,1099511627776,0]"),
        "overflows",
    ),
    "a size in bits that overflows": (
        _raw(dtype='"F64"', shape="[4611686018427387904]"),
        "overflows",
    ),
    "three offsets": (_raw(offsets="[0,1,1]"), "not [start, stop]"),
    "one offset": (_raw(offsets="[0]"), "not [start, stop]"),
    "a negative offset": (_raw(offsets="[-1,0]"), "not [start, stop]"),
    "an offset of 2^64": (_raw(offsets="[0,18446744073709551616]"), "not [start, stop]"),
    "it ends before it starts": (_raw(offsets="[1,0]"), "ends before it starts"),
    "fewer bytes than the shape": (_tensors(3, a=_u8(0, 3, 4)), "has 3 bytes"),
    "more bytes than the shape": (_tensors(5, a=_u8(0, 5, 4)), "has 5 bytes"),
    "half a byte": (
        _tensors(2, a={"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}),
        "3 x 4 bits has 2 bytes",
    ),
    "a hole at the start": (_tensors(8, a=_u8(4, 8, 4)), "leaves a hole"),
    "a hole in the middle": (_tensors(9, a=_u8(0, 4, 4), b=_u8(5, 9, 4)), "leaves a hole"),
    "overlapping tensors": (_tensors(6, a=_u8(0, 4, 4), b=_u8(2, 6, 4)), "overlaps"),
    "the same bytes twice": (_tensors(4, a=_u8(0, 4, 4), b=_u8(0, 4, 4)), "overlaps"),
    "bytes after the last tensor": (_tensors(5, a=_u8(0, 4, 4)), "the tensors end at"),
    "tensors past the end of the file": (_tensors(3, a=_u8(0, 4, 4)), "the tensors end at"),
    "bytes without tensors": (_file(b"{}", 1), "the tensors end at"),
    "metadata that is a list": (_file(b'{"__metadata__":[]}'), "__metadata__ is not"),
    "metadata with a number": (_file(b'{"__metadata__":{"a":1}}'), "other than text"),
    "a control character": (_file(b'{"__metadata__":{"a":"\x01"}}'), "not strict JSON"),
    "half a surrogate pair as a name": (
        _file(b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
        "not Unicode",
    ),
    "half a surrogate pair in metadata": (
        _file(b'{"__metadata__":{"a":"\\udfff"}}'),
        "not Unicode",
    ),
    "not a number": (_raw(more=',"x":NaN'), "NaN"),
    "a number out of range": (_raw(more=',"x":1e999'), "not JSON"),
    "a field twice": (_raw(more=',"dtype":"U8"'), "occurs twice"),
}

STRICTER: dict[str, tuple[bytes, str]] = {
    "a space in front": (_file(b" {}"), "start with {"),
    "a name twice": (
        _file(
            b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
            b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
        ),
        "'a' occurs twice",
    ),
    "a key of the metadata twice": (_file(b'{"__metadata__":{"k":"1","k":"2"}}'), "occurs twice"),
    "a tensor that is a list": (_file(b'{"a":["U8",[0],[0,0]]}'), "not described"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_the_library_refuses_we_refuse_by_name(name: str) -> None:
    data, why = ATTACKS[name]

    with pytest.raises(SafetensorError):
        deserialize(data)
    with pytest.raises(HeaderError) as caught:
        safetensors.parse(data, len(data))

    assert why in explain(caught.value)
    assert explain(caught.value).isprintable()


@pytest.mark.parametrize("name", STRICTER)
def test_what_readers_read_differently_we_refuse(name: str) -> None:
    data, why = STRICTER[name]

    deserialize(data)
    with pytest.raises(HeaderError) as caught:
        safetensors.parse(data, len(data))

    assert why in explain(caught.value)


def test_a_git_lfs_pointer_is_called_one() -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5000000000\n"

    with pytest.raises(HeaderError, match="Git LFS pointer"):
        safetensors.header_bytes(pointer[:8], len(pointer))


@pytest.mark.parametrize(
    "make",
    [
        lambda: _tensors(0, **{"evil\n\x1b[31m" + "x" * 10_000: 1}),
        lambda: _raw(dtype=json.dumps("\x1b" * 10_000)),
        lambda: _file(b'{"' + b"k" * 10_000 + b'":1,"' + b"k" * 10_000 + b'":2}'),
    ],
)
def test_a_hostile_name_does_not_flood_the_message(make: Callable[[], bytes]) -> None:
    data = make()

    with pytest.raises(HeaderError) as caught:
        safetensors.parse(data, len(data))

    assert explain(caught.value).isprintable()
    assert len(explain(caught.value)) < 600
