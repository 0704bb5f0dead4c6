"""Safetensors headers: ours against the library's own reader and writer."""

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save

from damselfly.errors import HeaderError
from damselfly.model import safetensors
from damselfly.model.safetensors import DTYPE_BITS, Tensor
from tests.vectors.library import deserialize


def _file(header: object, data_bytes: int) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data_bytes)


def _entry(start: int, stop: int, shape: list[int], dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_what_the_library_writes_is_read_alike() -> None:
    arrays: dict[str, NDArray[np.generic]] = {
        "weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "bias": np.ones(5, dtype=np.float16),
        "scalar": np.array(7, dtype=np.int64),
        "nothing": np.zeros((0, 9), dtype=np.uint8),
        "größe": np.array([True, False]),
    }
    data = save(arrays, metadata={"format": "np"})

    header = safetensors.parse(data, len(data))

    assert header.metadata == {"format": "np"}
    theirs = {name: (found["dtype"], tuple(found["shape"])) for name, found in deserialize(data)}
    assert {tensor.name: (tensor.dtype, tensor.shape) for tensor in header.tensors} == theirs
    for tensor in header.tensors:
        assert data[tensor.start : tensor.stop] == arrays[tensor.name].tobytes()


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_dtype_has_the_librarys_size(dtype: str) -> None:
    size = DTYPE_BITS[dtype]
    right = _file({"a": _entry(0, size, [8], dtype)}, size)
    wrong = _file({"a": _entry(0, size + 1, [8], dtype)}, size + 1)

    assert safetensors.parse(right, len(right)).tensors[0].dtype == dtype
    deserialize(right)
    with pytest.raises(SafetensorError):
        deserialize(wrong)
    with pytest.raises(HeaderError):
        safetensors.parse(wrong, len(wrong))


GOOD = {
    "no tensors": _file({}, 0),
    "spaces after": _file(b"{}   ", 0),
    "metadata null": _file({"__metadata__": None}, 0),
    "metadata empty": _file({"__metadata__": {}}, 0),
    "a scalar": _file({"a": _entry(0, 1, [])}, 1),
    "no elements": _file({"a": _entry(0, 0, [0, 3], "F32")}, 0),
    "no elements of much": _file({"a": _entry(0, 0, [0, 2**40, 2**40])}, 0),
    "an empty name": _file({"": _entry(0, 2, [2])}, 2),
    "a name that needs escapes": _file({'\x00"\\': _entry(0, 2, [2])}, 2),
    "fields nobody knows": _file({"a": {**_entry(0, 1, [1]), "x": {"y": [1.5, -2]}}}, 1),
    "out of order": _file({"b": _entry(3, 5, [2]), "a": _entry(0, 3, [3])}, 5),
    "empty ones in between": _file(
        {"y": _entry(4, 4, [0]), "a": _entry(0, 4, [4]), "z": _entry(0, 0, [0])}, 4
    ),
    "half bytes that add up": _file({"a": _entry(0, 3, [2, 3], "F4")}, 3),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_is_good_for_both(name: str) -> None:
    data = GOOD[name]

    theirs = deserialize(data)
    header = safetensors.parse(data, len(data))

    assert {(tensor.name, tensor.shape) for tensor in header.tensors} == {
        (found, tuple(described["shape"])) for found, described in theirs
    }


def test_only_the_header_is_needed() -> None:
    data = _file({"a": _entry(0, 1000, [1000])}, 1000)
    length = safetensors.header_bytes(data[:8], len(data))

    header = safetensors.parse(data[:length], len(data))

    assert header.length == length
    assert header.tensors == (Tensor("a", "U8", (1000,), length, length + 1000),)


def test_tensors_come_in_file_order() -> None:
    data = GOOD["out of order"]

    names = [tensor.name for tensor in safetensors.parse(data, len(data)).tensors]

    assert names == ["a", "b"]
