"""The model that demo and benchmarks pull: what a loader expects, and the same every time."""

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bench.model import Shape, write_model

SIZE = 8 << 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "llama", SIZE).path


def header(shard: Path) -> dict[str, Any]:
    data = shard.read_bytes()
    length = int.from_bytes(data[:8], "little")
    found: dict[str, Any] = json.loads(data[8 : 8 + length])
    assert found.pop("__metadata__") == {"format": "pt"}
    return found


def read_all(path: Path) -> dict[str, bytes]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file()
    }


def test_the_index_names_every_tensor_and_the_shard_that_has_it(model: Path) -> None:
    index = json.loads((model / "model.safetensors.index.json").read_text())

    found = {name: shard.name for shard in model.glob("*.safetensors") for name in header(shard)}

    assert index["weight_map"] == found
    assert len(set(found.values())) == 4


def test_tensors_are_bf16_of_mixed_sizes(model: Path) -> None:
    tensors = [tensor for shard in model.glob("*.safetensors") for tensor in header(shard).values()]

    sizes = sorted(tensor["data_offsets"][1] - tensor["data_offsets"][0] for tensor in tensors)

    assert {tensor["dtype"] for tensor in tensors} == {"BF16"}
    assert sizes[0] < 4096
    assert sizes[-1] > 500_000


@pytest.mark.parametrize("size", [1 << 20, 64 << 20, 1 << 30, 2 << 30, 4 << 30])
def test_a_shape_is_of_about_the_size_that_was_asked_for(size: int) -> None:
    shape = Shape.for_size(size)

    total = sum(tensor.bytes for tensor in shape.tensors())

    assert abs(total - size) < 0.1 * size
    assert all(shape.shards())


def test_shards_keep_the_order_of_tensors_and_lose_none() -> None:
    shape = Shape.for_size(SIZE)

    shards = shape.shards()

    assert [tensor for shard in shards for tensor in shard] == list(shape.tensors())


def test_there_is_an_empty_file_and_a_folder(model: Path) -> None:
    assert (model / "_SUCCESS").stat().st_size == 0
    assert (model / "original" / "params.json").is_file()


def test_the_same_numbers_make_the_same_bytes(model: Path, tmp_path: Path) -> None:
    again = write_model(tmp_path / "again", SIZE)
    other = write_model(tmp_path / "other", SIZE, rng_seed=2)

    assert read_all(again.path) == read_all(model)
    assert read_all(other.path) != read_all(model)


def test_no_part_is_like_another(model: Path) -> None:
    parts = [
        data[start : start + 65536]
        for path, data in read_all(model).items()
        if path.endswith(".safetensors")
        for start in range(0, len(data), 65536)
    ]

    assert not any(one == other for one, other in pairwise(sorted(parts)))


def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    first = write_model(tmp_path / "model", 1 << 20)
    config = first.path / "config.json"
    os.utime(config, ns=(1, 1))

    second = write_model(tmp_path / "model", 1 << 20)

    assert second == first
    assert config.stat().st_mtime_ns == 1


def test_half_a_model_is_no_model(tmp_path: Path) -> None:
    whole = write_model(tmp_path / "model", 1 << 20)
    expected = read_all(whole.path)
    shard = next(whole.path.glob("*.safetensors"))
    os.truncate(shard, 1000)

    write_model(tmp_path / "model", 1 << 20)

    assert read_all(whole.path) == expected
