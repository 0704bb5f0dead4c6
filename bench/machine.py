"""The machine that figures were measured on: what matters for speed, and nothing that names it."""

import os
import platform
import re
from pathlib import Path

from damselfly import __version__

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def describe() -> dict[str, str | int]:
    """Cores, processor, memory, kernel, and what ran on it."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
        "damselfly": __version__,
    }


def slug() -> str:
    """A file name for machines of this kind: `2-cores-amd-epyc-linux-6.18`."""
    machine = describe()
    text = f"{machine['cores']}-cores-{machine['processor']}-linux-{machine['kernel']}"
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def busy_and_idle_s() -> tuple[float, float]:
    """CPU seconds since the start of the machine, of all its cores: at work, and idle."""
    with Path("/proc/stat").open() as stat:
        ticks = [int(word) for word in stat.readline().split()[1:9]]
    idle = ticks[3] + ticks[4]
    return (sum(ticks) - idle) / _TICKS_PER_S, idle / _TICKS_PER_S


def free_memory_bytes() -> int:
    """Memory that new data may take without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
