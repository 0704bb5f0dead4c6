"""The kernel's list of mounts, read. Pure.

`os.path.ismount` compares device numbers, and a bind mount within one file system has the same on
both sides: it would say no, and every republish would stack another mount on the first.

    36 35 98:0 /root/in/fs /mount/point ro,nosuid shared:1 - ext4 /dev/sda1 rw
    id up  dev  root        point        options   ...       type source    superblock's
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_OCTAL = re.compile(r"\\([0-7]{3})")
_GONE = "//deleted"


@dataclass(frozen=True, slots=True)
class MountLine:
    """One mount. `root` is which directory of its file system it shows, and `point` where."""

    device: str
    root: str
    point: str
    options: frozenset[str]

    @property
    def is_sealed(self) -> bool:
        """Nobody can write through this mount or gain anything by what is in it."""
        return self.options >= {"ro", "nosuid", "nodev"}

    @property
    def is_gone(self) -> bool:
        """The directory that it shows has been removed."""
        return self.root.endswith(_GONE)


def unescape(text: str) -> str:
    r"""A path as it is: the kernel writes space, tab, newline and backslash as `\040` and so on."""
    if "\\" not in text:
        return text
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def escape(path: str) -> str:
    """A path as the kernel writes it."""
    return re.sub(r"[\\ \t\n]", lambda match: f"\\{ord(match[0]):03o}", path)


def parse(text: str) -> Iterator[MountLine]:
    """Every mount, in the order in which they were made; lines that are none are left out."""
    for line in text.split("\n"):  # Only there: a path may have any other character.
        fields = line.split(" ")
        if len(fields) >= 6:
            yield MountLine(
                fields[2],
                unescape(fields[3]),
                unescape(fields[4]),
                frozenset(fields[5].split(",")),
            )


def mounts_at(text: str, point: str) -> list[MountLine]:
    """The mounts at one path, the uppermost last."""
    # A node has thousands of mounts, and every publish looks: only a few lines are taken apart.
    written = f" {escape(point)} "
    likely = "\n".join(line for line in text.split("\n") if written in line)
    return [line for line in parse(likely) if line.point == point]


def paths_of(text: str, shown: MountLine) -> Iterator[str]:
    """Where else the directory that a mount shows may be found: by way of its file system."""
    for line in parse(text):
        if line.device != shown.device or line.point == shown.point:
            continue
        root = line.root.rstrip("/")
        if shown.root.startswith(f"{root}/"):
            yield line.point.rstrip("/") + shown.root[len(root) :]
