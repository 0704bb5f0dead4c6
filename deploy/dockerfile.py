"""Reads a Dockerfile and its .dockerignore, as far as ours go; what they do not use is refused."""

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

KNOWN = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "LABEL", "RUN", "USER", "WORKDIR",
}  # fmt: skip


class UnknownStepError(Exception):
    """A line says something that is not understood here."""


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction: `RUN`, and what to run."""

    keyword: str
    value: str


@dataclass(slots=True)
class Stage:
    """From one FROM to the next."""

    base: str
    name: str = ""
    steps: list[Step] = field(default_factory=list[Step])

    def arguments(self) -> dict[str, str]:
        """The defaults of its build arguments; one without a default is left out."""
        values = (step.value for step in self.steps if step.keyword == "ARG")
        return dict(value.split("=", 1) for value in values if "=" in value)


def parse(text: str) -> list[Stage]:
    """The stages of a Dockerfile, with ARGs before the first one put into their bases.

    Raises:
        UnknownStepError: An instruction or a flag that we do not use, or no stage at all.
    """
    stages: list[Stage] = []
    arguments: dict[str, str] = {}
    for keyword, value in _instructions(text):
        if keyword not in KNOWN:
            raise UnknownStepError(f"{keyword} {value}")
        if keyword == "FROM":
            base, _, name = value.partition(" AS ")
            stages.append(Stage(_expand(base.strip(), arguments), name.strip()))
        elif stages:
            stages[-1].steps.append(Step(keyword, value))
        elif keyword == "ARG":
            name, _, default = value.partition("=")
            arguments[name] = default
        else:
            raise UnknownStepError(f"{keyword} before FROM")
    if not stages:
        raise UnknownStepError("no FROM")
    return stages


def _instructions(text: str) -> Iterable[tuple[str, str]]:
    lines = [line for line in text.splitlines() if not re.match(r"\s*#", line)]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    for line in joined.splitlines():
        if line.strip():
            keyword, _, value = line.strip().partition(" ")
            yield keyword.upper(), value.strip()


def _expand(text: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda match: variables[match[1]], text)


def environment(value: str, before: dict[str, str]) -> dict[str, str]:
    """What `ENV A=x B=y` adds, with `$NAME` taken from before it."""
    found: dict[str, str] = {}
    for pair in value.split():
        name, _, text = pair.partition("=")
        found[name] = re.sub(r"\$(\w+)", lambda match: before.get(match[1], ""), text)
    return found


def context_files(root: Path, ignore: str) -> list[Path]:
    """What a builder sends of `root`: relative paths of files and links that are not ignored.

    Understood are `*`, `!NAME` for an entry of the root, and `**/PATTERN` for a name anywhere.

    Raises:
        UnknownStepError: Another kind of pattern.
    """
    lines = [line for line in ignore.splitlines() if line and not line.startswith("#")]
    if lines[:1] != ["*"]:
        raise UnknownStepError("a .dockerignore that does not begin with *")
    wanted: set[str] = set()
    unwanted: list[str] = []
    for line in lines[1:]:
        if match := re.fullmatch(r"!([\w.-]+)", line):
            wanted.add(match[1])
        elif match := re.fullmatch(r"\*\*/([\w.*-]+)", line):
            unwanted.append(match[1])
        else:
            raise UnknownStepError(f".dockerignore: {line}")
    found: list[Path] = []
    for entry in sorted(wanted):
        paths = [root / entry, *sorted((root / entry).rglob("*"))]
        found += [
            path.relative_to(root)
            for path in paths
            if (path.is_symlink() or path.is_file())
            and not any(fnmatch.fnmatch(part, bad) for part in path.parts for bad in unwanted)
        ]
    return found
