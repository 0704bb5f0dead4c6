"""What moves when a node that has a model pulls one that is nearly the same?

A model of 32 layers in four shards is pulled by every agent; then, one after the other, a fine-tune
that changes 2 of the 32 layers, the same tensors in three other files, new metadata in every
header, and a LoRA beside the weights. Each is pulled by every agent in two ways:

    pushed    `damselfly push` left a manifest: every digest is known before the first byte, so only
              chunks that differ move. Bound: 2/32 of the layers, and a header per file.
    listed    a web server's listing: nobody knows a digest before somebody has read the bytes. The
              origin is read once by all agents together, and each agent copies out of its store
              what the others read, as soon as it is told the digest.

`moved_ratio` is what came from the origin and from peers, of all that every agent ended up with.
No time is measured, so it may run on a busy machine.

    python -m bench.finetune --size 512MiB
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

from bench.agents import Agent, BenchError, Fleet, end_on_sigterm, free_addresses, same_tree
from damselfly.agent.quantities import parse_bytes
from damselfly.client.answers import Pulled, PullRequest

LAYERS = 32
CHANGED = (7, 23)
WAYS = ("pushed", "listed")
_NORM_BYTES = 4096
_LORA_SHARE = 100
_Tensors = dict[str, np.ndarray[tuple[int], np.dtype[np.uint8]]]


@dataclass(frozen=True)
class Moved:
    """What one case took, all agents together."""

    bench: str
    case: str
    way: str
    agents: int
    model_bytes: int
    bytes_from_origin: int
    bytes_from_peers: int
    bytes_from_store: int
    origin_ratio: float
    """Bytes read from the origin, of the model."""
    moved_ratio: float
    is_same: bool
    """Every agent shows the very files of the origin."""


def _noise(rng_seed: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.random.default_rng(rng_seed).integers(0, 256, count, dtype=np.uint8)


def _tensors(size_bytes: int) -> _Tensors:
    per_layer = max(1, min(4, size_bytes // (LAYERS << 20)))
    tensor_bytes = size_bytes // (LAYERS * per_layer + 2)
    found: _Tensors = {"embed": _noise(1, tensor_bytes), "head": _noise(2, tensor_bytes)}
    for layer in range(LAYERS):
        found[f"layer.{layer:02}.norm"] = _noise(1000 + layer, _NORM_BYTES)
        for number in range(per_layer):
            rng_seed = 10_000 + layer * 10 + number
            found[f"layer.{layer:02}.weight.{number}"] = _noise(rng_seed, tensor_bytes)
    return found


def _write(path: Path, tensors: _Tensors, shard_count: int, note: str = "base") -> None:
    path.mkdir(parents=True)
    names = sorted(tensors)
    share = -(-len(names) // shard_count)
    weight_map: dict[str, str] = {}
    for number in range(shard_count):
        file = f"model-{number + 1:05}-of-{shard_count:05}.safetensors"
        inside = names[number * share : (number + 1) * share]
        save_file({name: tensors[name] for name in inside}, path / file, {"note": note})
        weight_map |= dict.fromkeys(inside, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text('{"model_type": "llama"}\n')


def _changed(tensors: _Tensors) -> _Tensors:
    parts = tuple(f"layer.{layer:02}." for layer in CHANGED)
    return {
        name: data ^ np.uint8(1) if name.startswith(parts) else data
        for name, data in tensors.items()
    }


def _write_lora(path: Path, tensors: _Tensors, size_bytes: int) -> None:
    _write(path, tensors, 4)
    save_file({"lora": _noise(5, size_bytes // _LORA_SHARE)}, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text('{"peft_type": "LORA"}\n')


def cases(size_bytes: int) -> dict[str, Callable[[Path], None]]:
    """What writes each model, by its name; the first is the one that is there before."""
    tensors = _tensors(size_bytes)
    return {
        "base": lambda path: _write(path, tensors, 4),
        "2-of-32-layers": lambda path: _write(path, _changed(tensors), 4),
        "resharded": lambda path: _write(path, tensors, 3),
        "new-metadata": lambda path: _write(path, tensors, 4, "written by somebody else"),
        "lora-added": lambda path: _write_lora(path, tensors, size_bytes),
    }


def measure(folder: Path, size_bytes: int, agent_count: int) -> Iterator[Moved]:
    """Run every case in every way, with stores and models in `folder`."""
    models = cases(size_bytes)
    for name, write in models.items():
        write(folder / "listed" / name)
    shutil.copytree(folder / "listed", folder / "pushed")
    for name in models:
        place = str(folder / "pushed" / name)
        command = (sys.executable, "-m", "damselfly", "push", place, place, "--quiet")
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for way in WAYS:
        yield from _measure(folder / way, way, list(models), agent_count)


def _measure(folder: Path, way: str, names: list[str], agent_count: int) -> Iterator[Moved]:
    addresses = free_addresses(agent_count)
    with Fleet(folder.with_name(f"{way}-fleet")) as fleet:
        origin = fleet.start_origin(folder, free_addresses(1)[0])
        agents = [
            fleet.start_agent(f"n{number}", address, addresses, "--store-keep-free", "1MiB")
            for number, address in enumerate(addresses)
        ]
        fleet.wait_until_met()
        for name in names:
            pulled = _pulled(agents, f"{origin.url}{name}/")
            if name != names[0]:
                yield _moved(folder.with_name("listed") / name, name, way, pulled)


def _pulled(agents: list[Agent], ref: str) -> list[Pulled]:
    def pull(agent: Agent) -> Pulled:
        *_, last = agent.client.pull(PullRequest(ref=ref))
        if not isinstance(last, Pulled):
            raise BenchError(f"{agent.name} does not end its pull of {ref}")
        return last

    with ThreadPoolExecutor(len(agents)) as threads:
        return list(threads.map(pull, agents))


def _moved(model: Path, case: str, way: str, pulled: list[Pulled]) -> Moved:
    size = pulled[0].bytes
    from_origin = sum(one.bytes_from_origin for one in pulled)
    from_peers = sum(one.bytes_from_peers for one in pulled)
    return Moved(
        bench="finetune",
        case=case,
        way=way,
        agents=len(pulled),
        model_bytes=size,
        bytes_from_origin=from_origin,
        bytes_from_peers=from_peers,
        bytes_from_store=sum(one.bytes_from_store for one in pulled),
        origin_ratio=round(from_origin / size, 4),
        moved_ratio=round((from_origin + from_peers) / (size * len(pulled)), 4),
        is_same=all(same_tree(Path(one.path), model) for one in pulled),
    )


def main() -> int:
    """Print a JSON object for each case and way."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.finetune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", type=parse_bytes, default=512 << 20, help="such as 512MiB")
    parser.add_argument("--agents", type=int, default=2)
    options = parser.parse_args()
    end_on_sigterm()
    is_well = True
    with tempfile.TemporaryDirectory(prefix="damselfly-finetune-") as folder:
        for one in measure(Path(folder), options.size, options.agents):
            is_well &= one.is_same
            print(json.dumps(asdict(one)), flush=True)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
