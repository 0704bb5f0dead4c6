"""Does a pod read its volume as fast as the node reads the file in the store?

Back of the envelope: a bind mount is another way to the same inode and the same pages; the kernel
looks at the mount once, when a file is opened. So the answer is 1, and less than 0.98 would mean
that something stands between a pod and its bytes.

    python -m bench.volume --size 1GiB --passes 7

Every weight file is read through the mount and in the store, by turns, and who begins changes from
pass to pass. Cold: its pages are dropped from the page cache before. `read`: read(2) into one
buffer of 1 MiB; `mmap`: a mapping of which one byte of every page is touched. Figures are medians
of a whole pass over all files.
"""

import argparse
import json
import mmap
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import grpc

from bench import machine
from bench.agents import BenchError, end_on_sigterm
from bench.model import Model, cached_model
from bench.mounts import why_not
from bench.node import running_node
from damselfly.agent.quantities import parse_bytes
from damselfly.errors import DamselflyError, explain

_BUFFER_BYTES = 1 << 20


def read_file(path: Path) -> None:
    """Read a file from its first byte to its last."""
    buffer = bytearray(_BUFFER_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def walk_file(path: Path) -> None:
    """Touch every page of a file, as who maps weights does."""
    with (
        path.open("rb", buffering=0) as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages,
        memoryview(pages) as view,
        view[:: mmap.PAGESIZE] as touched,
    ):
        touched.tobytes()


def drop_pages(path: Path) -> None:
    """Take a file out of the page cache; what is not on the disk yet is written first."""
    with path.open("rb", buffering=0) as file:
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


WAYS: dict[str, Callable[[Path], None]] = {"read": read_file, "mmap": walk_file}


def seconds_of(way: Callable[[Path], None], files: Sequence[Path], *, cold: bool) -> float:
    """How long reading all files takes."""
    if cold:
        for file in files:
            drop_pages(file)
    start_s = time.monotonic()
    for file in files:
        way(file)
    return time.monotonic() - start_s


def measure(model: Model, passes: int, folder: Path) -> dict[str, Any]:
    """Publish a model, and read it on both ways."""
    with running_node(folder, model.path) as node:
        target = node.driver.target_of("pod")
        node.driver.publish("volume", target, {"model": node.origin.url})
        (held,) = node.agent.client.artifacts()
        assert held.path is not None
        names = sorted(path.name for path in target.glob("*.safetensors"))
        places = {"mount": target, "store": Path(held.path)}
        files = {place: [root / name for name in names] for place, root in places.items()}
        figures: dict[str, Any] = {}
        for name, way in WAYS.items():
            for cold in (True, False):
                times = _alternate(way, files, passes, cold=cold)
                medians = {place: statistics.median(found) for place, found in times.items()}
                figures[f"{name}_{'cold' if cold else 'warm'}"] = {
                    "mount_of_store": round(medians["store"] / medians["mount"], 4),
                    **{f"{place}_s": round(median, 4) for place, median in medians.items()},
                }
        node.driver.unpublish("volume", target)
        return figures


def _alternate(
    way: Callable[[Path], None], files: dict[str, list[Path]], passes: int, *, cold: bool
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {place: [] for place in files}
    for number in range(passes + 1):
        order = sorted(files, reverse=number % 2 == 1)
        for place in order:
            seconds = seconds_of(way, files[place], cold=cold)
            if number > 0:  # The first pass touches memory for the first time.
                times[place].append(seconds)
    return times


def main() -> int:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.volume",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", type=parse_bytes, default=1 << 30)
    parser.add_argument("--passes", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="64 MiB, one pass")
    parser.add_argument("--folder", type=Path, help="where the store goes")
    given = parser.parse_args()
    if given.quick:
        given.size, given.passes = 64 << 20, 1
    if reason := why_not():
        print(reason, file=sys.stderr)
        return 1
    end_on_sigterm()
    model = cached_model(given.size)
    figures: dict[str, Any] = {"bench": "volume", "size_bytes": model.bytes}
    try:
        with tempfile.TemporaryDirectory(prefix="damselfly-volume-", dir=given.folder) as place:
            figures |= measure(model, given.passes, Path(place) / "node")
    except (BenchError, DamselflyError) as exc:
        print(explain(exc), file=sys.stderr)
        return 1
    except grpc.RpcError as exc:
        print(f"the driver: {cast('grpc.Call', exc).details()}", file=sys.stderr)
        return 1
    figures["passes"] = given.passes
    figures["machine"] = machine.describe()
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
