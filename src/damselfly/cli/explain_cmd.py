"""Tell where each chunk of a pull came from, when, and why the origin was asked.

The agent remembers its last 64 pulls, those that run among them, until it stops; the latest one of
the artifact or ref is told. With --json every run of chunks is told, otherwise each file has a line
for each source and reason.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from damselfly.cli.flags import add_client_flags, client_of, print_json
from damselfly.cli.quantities import bytes_text, seconds_text, share_text
from damselfly.cli.table import print_table
from damselfly.cli.terminal import BOLD, is_coloured, paint, plain
from damselfly.client.answers import Explained, ExplainedRun


def configure(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("target", metavar="ARTIFACT|REF", help="whose latest pull")
    add_client_flags(parser)


def run(args: Namespace) -> int:
    """Explain a pull."""
    told = client_of(args).explain(args.target)
    if args.json:
        print_json(told.to_json())
        return 0
    coloured = is_coloured(sys.stdout)
    for head, text in _facts(told):
        print(f"{paint(head.ljust(10), BOLD, coloured=coloured)}{plain(text)}")
    if not _by_way(told):
        return 0
    print()
    for way, runs in sorted(_by_way(told).items(), key=lambda item: -_bytes(item[1])):
        count = sum(run.chunks for run in runs)
        share = share_text(_bytes(runs), sum(file.bytes for file in told.files))
        print(f"{share:>5}  {count:>6} chunk{' ' if count == 1 else 's'}  {plain(_told(way))}")
    print()
    rows = [
        (
            bytes_text(_bytes(runs)),
            str(sum(run.chunks for run in runs)),
            _spans(runs),
            _when(runs),
            way[0] if way[0] in {"store", "copied"} else f"{way[0]} {way[1]}",
            file.path,
        )
        for file in told.files
        for way, runs in _grouped(file.runs).items()
    ]
    print_table(
        ("SIZE", "CHUNKS", "WHICH", "WHEN", "FROM", "FILE"),
        rows,
        sys.stdout,
        right=frozenset({"SIZE", "CHUNKS"}),
    )
    return 0


_Way = tuple[str, str, str]


def _facts(told: Explained) -> list[tuple[str, str]]:
    missing = f", {told.chunks_missing} have not come" if told.chunks_missing else ""
    return [
        *([("failed", told.error)] if told.error else []),
        ("pull", f"{told.ref}, {told.phase} after {seconds_text(told.seconds)}"),
        ("artifact", told.artifact or "not known yet"),
        ("chunks", f"{told.chunks}{missing}"),
        ("policy", f"--origin {told.policy}"),
    ]


def _told(way: _Way) -> str:
    source, by, why = way
    match source:
        case "store":
            return "were in this node's store before"
        case "copied":
            return "copied from other files of this node's store"
        case "peer":
            return f"from peer {by}" + (f": {why}" if why else "")
        case _:
            return f"from the origin {by}: {why}"


def _grouped(runs: Sequence[ExplainedRun]) -> dict[_Way, list[ExplainedRun]]:
    found: dict[_Way, list[ExplainedRun]] = {}
    for each in runs:
        found.setdefault((each.source, each.by, each.why), []).append(each)
    return found


def _by_way(told: Explained) -> dict[_Way, list[ExplainedRun]]:
    return _grouped([each for file in told.files for each in file.runs])


def _bytes(runs: Sequence[ExplainedRun]) -> int:
    return sum(each.bytes for each in runs)


def _spans(runs: Sequence[ExplainedRun]) -> str:
    shown = [
        str(each.first) if each.chunks == 1 else f"{each.first}-{each.first + each.chunks - 1}"
        for each in runs[:4]
    ]
    return ",".join(shown) + ("..." if len(runs) > 4 else "")


def _when(runs: Sequence[ExplainedRun]) -> str:
    first_s = min(each.asked_s for each in runs)
    last_s = max(each.asked_s + each.seconds for each in runs)
    return f"{first_s:.1f}-{last_s:.1f} s"
