"""The command line. One verb is imported and no other: a command starts in 60 ms."""

import importlib
import os
import sys
from argparse import ArgumentParser, HelpFormatter
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType
from typing import NoReturn

from damselfly import __version__
from damselfly.cli.terminal import columns
from damselfly.errors import DamselflyError, UsageError, explain

VERBS = {
    "agent": "run the node's agent in the foreground",
    "csi": "run the node's CSI driver in the foreground",
    "pull": "bring a model to this node, and to a directory",
    "warm": "make nodes hold a model before it is needed",
    "cancel": "stop a pull",
    "explain": "tell where a pull's chunks came from, and why",
    "push": "write a directory with its manifest to where agents read it",
    "ls": "list what the store holds",
    "status": "show the agent at a glance",
    "verify": "re-read and re-hash what is on the disk",
    "rm": "take an artifact out of the store",
    "pin": "keep an artifact from eviction",
    "unpin": "let an artifact be evicted again",
    "gc": "remove what nothing refers to",
    "doctor": "look at everything that commonly goes wrong",
}
INTERRUPTED = 130
BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    verb = given[0] if given else ""
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="surrogateescape")  # Paths are bytes, and come out as such.
    try:
        code = _run_verb(verb, given[1:]) if verb in VERBS else _without_verb(given)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our answer has heard enough. Nothing may be flushed into the pipe at exit.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return code


def _run_verb(verb: str, given: Sequence[str]) -> int:
    try:
        module = importlib.import_module(f"damselfly.cli.{verb}_cmd")
        args = _parser(verb, module).parse_args(given)
        return int(module.run(args))
    except DamselflyError as exc:
        # Imported here, because `logging` is not needed where nothing goes wrong.
        from damselfly.log import redact  # noqa: PLC0415

        print(f"damselfly {verb}: {redact(explain(exc))}", file=sys.stderr)
        return exc.exit_code


class _Formatter(HelpFormatter):
    """Wraps paragraphs to the terminal, and leaves alone those that are indented."""

    def __init__(self, prog: str) -> None:
        # Without a width, argparse asks shutil, and importing that takes longer than all of this.
        said = os.environ.get("COLUMNS", "")
        width = int(said) if said.isdecimal() else columns(sys.stdout)
        super().__init__(prog, width=max(40, min(width, 100)) - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(
            part if "\n  " in f"\n{part}" else fill(part, width, indent)
            for part in text.split("\n\n")
        )


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(UsageError.exit_code)


def _parser(verb: str, module: ModuleType) -> ArgumentParser:
    text = (module.__doc__ or "").strip()
    parser = _Parser(
        prog=f"damselfly {verb}",
        description=text,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    module.configure(parser)
    return parser


def _without_verb(given: Sequence[str]) -> int:
    listing = "\n".join(f"  {verb:8} {meaning}" for verb, meaning in VERBS.items())
    parser = _Parser(
        prog="damselfly",
        usage="damselfly [-h] [--version] VERB ...",
        description="Model weights: each byte from the origin once, then from node to node.",
        epilog=f"verbs:\n{listing}\n\n`damselfly VERB --help` tells more of one.",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"damselfly {__version__}")
    _, unknown = parser.parse_known_args(given)
    if not unknown:
        parser.print_help(sys.stderr)
        return UsageError.exit_code
    if unknown[0].startswith("-"):
        return parser.error(f"unknown flag {unknown[0]!r}")
    import difflib  # noqa: PLC0415 - only for who mistyped

    near = difflib.get_close_matches(unknown[0], VERBS, n=1)
    advice = f"; did you mean {near[0]!r}?" if near else ""
    return parser.error(f"no verb {unknown[0]!r}{advice}")
