"""A model directory to pull: laid out like a Llama of some size, written once, the same every time.

Four shards of bf16 tensors from hundreds of MB (embeddings) down to 4 KB (norms), written by the
`safetensors` library itself; their index, the config, a tokenizer of a few MB, an empty file, and a
folder. The bytes are pseudo-random, so no chunk is like another and nothing compresses.

    python -m bench.model DIR --size 1GiB
"""

import argparse
import ctypes
import json
import mmap
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from blake3 import blake3
from safetensors import TensorSpec, serialize_file

from damselfly.agent.quantities import parse_bytes

SHARD_COUNT = 4
CACHE = Path(__file__).parent.parent / ".demo"
"""Where models are kept between runs; `make clean` removes it."""
_ELEMENT_BYTES = 2  # bf16
_POOL_BYTES = 64 << 20
_SLICE_BYTES = 1 << 20
_STEP_BYTES = 2_654_434  # Twice an odd number: no offset repeats before 2^25 slices (32 TiB).
_TOKENS = 32_000


@dataclass(frozen=True, slots=True)
class Tensor:
    """A bf16 tensor: its name in the shard, and its shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """The size of its data."""
        count = _ELEMENT_BYTES
        for length in self.shape:
            count *= length
        return count


@dataclass(frozen=True)
class Shape:
    """A Llama's dimensions, chosen so that its tensors take about `bytes`."""

    hidden: int
    layers: int
    vocabulary: int

    @classmethod
    def for_size(cls, size_bytes: int) -> "Shape":
        """Scale a Llama: as wide as four layers still fit in, the rest in layers and vocabulary."""
        hidden = 64
        while cls(hidden * 2, 1, 0).layer_bytes * 4 <= size_bytes * 3 // 4 and hidden < 4096:
            hidden *= 2
        layer_bytes = cls(hidden, 1, 0).layer_bytes
        layers = max(1, size_bytes * 4 // 5 // layer_bytes)
        rest_bytes = max(0, size_bytes - layers * layer_bytes)
        return cls(hidden, layers, max(256, rest_bytes // (2 * hidden * _ELEMENT_BYTES)))

    @property
    def intermediate(self) -> int:
        """The width of the MLP."""
        return self.hidden * 4

    @property
    def key_value(self) -> int:
        """The width of keys and values: grouped-query attention, four queries to a key."""
        return self.hidden // 4

    @cached_property
    def layer_bytes(self) -> int:
        """The size of one layer's tensors."""
        return sum(tensor.bytes for tensor in self.layer(0))

    def layer(self, number: int) -> Iterator[Tensor]:
        """The tensors of one layer."""
        name = f"model.layers.{number}"
        yield Tensor(f"{name}.input_layernorm.weight", (self.hidden,))
        yield Tensor(f"{name}.mlp.down_proj.weight", (self.hidden, self.intermediate))
        yield Tensor(f"{name}.mlp.gate_proj.weight", (self.intermediate, self.hidden))
        yield Tensor(f"{name}.mlp.up_proj.weight", (self.intermediate, self.hidden))
        yield Tensor(f"{name}.post_attention_layernorm.weight", (self.hidden,))
        yield Tensor(f"{name}.self_attn.k_proj.weight", (self.key_value, self.hidden))
        yield Tensor(f"{name}.self_attn.o_proj.weight", (self.hidden, self.hidden))
        yield Tensor(f"{name}.self_attn.q_proj.weight", (self.hidden, self.hidden))
        yield Tensor(f"{name}.self_attn.v_proj.weight", (self.key_value, self.hidden))

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor, in the order of a checkpoint."""
        yield Tensor("model.embed_tokens.weight", (self.vocabulary, self.hidden))
        for number in range(self.layers):
            yield from self.layer(number)
        yield Tensor("model.norm.weight", (self.hidden,))
        yield Tensor("lm_head.weight", (self.vocabulary, self.hidden))

    def shards(self) -> list[list[Tensor]]:
        """The tensors in order, in shards of about equal size."""
        tensors = list(self.tensors())
        total_bytes = sum(tensor.bytes for tensor in tensors)
        shards: list[list[Tensor]] = [[] for _ in range(SHARD_COUNT)]
        before_bytes = 0
        for tensor in tensors:
            middle = before_bytes + tensor.bytes // 2
            shards[middle * SHARD_COUNT // total_bytes].append(tensor)
            before_bytes += tensor.bytes
        return shards


@dataclass(frozen=True)
class Model:
    """A model directory on disk, complete."""

    path: Path
    sizes: dict[str, int]

    @property
    def bytes(self) -> int:
        """The sizes of all files together."""
        return sum(self.sizes.values())


class _Noise:
    """Pseudo-random bytes as fast as memory copies: slices of one pool, no two from one place."""

    def __init__(self, rng_seed: int) -> None:
        stream = blake3(b"damselfly bench model %d" % rng_seed)
        self._pool = memoryview(stream.digest(length=_POOL_BYTES))
        self._slices = 0

    def fill(self, view: memoryview) -> None:
        """Fill `view`, slice by slice from its start."""
        for start in range(0, len(view), _SLICE_BYTES):
            length = min(_SLICE_BYTES, len(view) - start)
            offset = self._slices * _STEP_BYTES % _POOL_BYTES
            self._slices += 1
            head = min(length, _POOL_BYTES - offset)
            view[start : start + head] = self._pool[offset : offset + head]
            view[start + head : start + length] = self._pool[: length - head]


def write_model(path: Path, size_bytes: int, *, rng_seed: int = 1) -> Model:
    """Make the model of `size_bytes` at `path`, or find it there from an earlier time.

    What it was made of is noted beside the directory, last: half a model is no model.
    """
    note = path.with_name(path.name + ".json")
    wanted = {"format": 1, "size_bytes": size_bytes, "rng_seed": rng_seed}
    found = _find(path, note, wanted)
    if found is not None:
        return found
    note.unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    _write_tokenizer(path, large=size_bytes >= 64 << 20)
    shape = Shape.for_size(size_bytes - sum(_sizes(path).values()))
    _write_configs(path, shape)
    _write_weights(path, shape, rng_seed)
    model = Model(path, _sizes(path))
    note.write_text(json.dumps({"made_of": wanted, "sizes": model.sizes}))
    return model


def cached_model(size_bytes: int, cache: Path = CACHE) -> Model:
    """The model of that size in a cache, this checkout's without one; written if not there yet."""
    return write_model(cache / f"model-{size_bytes}", size_bytes)


def _find(path: Path, note: Path, wanted: dict[str, int]) -> Model | None:
    try:
        noted = json.loads(note.read_text())
    except (OSError, ValueError):
        return None
    sizes = _sizes(path)
    if noted != {"made_of": wanted, "sizes": sizes}:
        return None
    return Model(path, sizes)


def _sizes(path: Path) -> dict[str, int]:
    return {
        file.relative_to(path).as_posix(): file.stat().st_size
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _write_configs(path: Path, shape: Shape) -> None:
    _write_json(
        path / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "max_position_embeddings": 8192,
            "model_type": "llama",
            "num_attention_heads": max(4, shape.hidden // 64),
            "num_hidden_layers": shape.layers,
            "num_key_value_heads": max(1, shape.hidden // 256),
            "rms_norm_eps": 1e-05,
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": shape.vocabulary,
        },
    )
    _write_json(
        path / "generation_config.json",
        {"bos_token_id": 1, "eos_token_id": 2, "do_sample": True, "temperature": 0.6},
    )
    (path / "original").mkdir()
    _write_json(path / "original" / "params.json", {"dim": shape.hidden, "n_layers": shape.layers})
    (path / "_SUCCESS").touch()  # what batch writers leave in buckets: a file of no bytes


def _write_tokenizer(path: Path, *, large: bool) -> None:
    count = _TOKENS if large else 2_000
    letters = blake3(b"damselfly bench tokenizer").digest(length=count * 8).hex()
    tokens = [letters[at * 16 : at * 16 + 3 + at % 11] + f"{at:x}" for at in range(count)]
    _write_json(
        path / "tokenizer.json",
        {
            "version": "1.0",
            "model": {
                "type": "BPE",
                "vocab": {token: number for number, token in enumerate(tokens)},
                "merges": [f"{token[:2]} {token[2:]}" for token in tokens],
            },
        },
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    _write_json(path / "special_tokens_map.json", special)
    _write_json(
        path / "tokenizer_config.json",
        {**special, "model_max_length": 8192, "tokenizer_class": "PreTrainedTokenizerFast"},
    )


def _write_weights(path: Path, shape: Shape, rng_seed: int) -> None:
    noise = _Noise(rng_seed)
    weight_map: dict[str, str] = {}
    total_bytes = 0
    shards = shape.shards()
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(path / name, tensors, noise)
        weight_map |= {tensor.name: name for tensor in tensors}
        total_bytes += sum(tensor.bytes for tensor in tensors)
    _write_json(
        path / "model.safetensors.index.json",
        {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))},
    )


def _write_shard(path: Path, tensors: list[Tensor], noise: _Noise) -> None:
    """Write one shard from one anonymous mapping: a shard is what this takes of memory."""
    with mmap.mmap(-1, sum(tensor.bytes for tensor in tensors)) as memory:
        first = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(first)
        specs: dict[str, TensorSpec] = {}
        start = 0
        with memoryview(memory) as whole:
            for tensor in tensors:
                with whole[start : start + tensor.bytes] as view:
                    noise.fill(view)
                specs[tensor.name] = TensorSpec(
                    dtype="bfloat16",
                    shape=tensor.shape,
                    data_ptr=address + start,
                    data_len=tensor.bytes,
                )
                start += tensor.bytes
        serialize_file(specs, path, metadata={"format": "pt"})
        del first  # It points into the mapping, which cannot be closed while it lives.


def main() -> int:
    """Write a model where the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size", type=parse_bytes, default=1 << 30, help="such as 1GiB")
    parser.add_argument("--rng-seed", type=int, default=1)
    options = parser.parse_args()
    start_s = time.monotonic()
    model = write_model(options.directory, options.size, rng_seed=options.rng_seed)
    seconds = time.monotonic() - start_s
    print(
        json.dumps(
            {
                "path": str(model.path),
                "bytes": model.bytes,
                "files": len(model.sizes),
                "seconds": round(seconds, 3),
                "shape": asdict(Shape.for_size(options.size)),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
