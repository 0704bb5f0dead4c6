"""Bring a model to this node: each byte from the origin once per cluster, the rest from peers.

REF is where the model lives: https://host/path/, file:///directory, or a single file there.
Without --to, the answer is the path of a read-only view in the agent's store. With it, DIR gets a
tree of ordinary files: sharing the store's bytes where the file system can (reflink), else copies.
Files that are in DIR already with the same bytes are kept; one that differs is not replaced
unless --force says so. While it is made, nothing evicts the model from the store.

A branch, a tag or a directory may be another tomorrow: what it was found to be is believed for a
minute, by all agents (their --origin-fresh). --fresh asks anew, --max-age says how old it may be.

With --token-file, the token in the file is shown to the origin, and to nobody else; it is not on
the command line, where every process of the machine could read it.

Interrupting the command leaves the pull going in the agent; the same command joins it again, and
`damselfly cancel REF` stops it.
"""

import os
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

from damselfly.cli.arrival import add_arrival_flag, arrived
from damselfly.cli.durations import duration
from damselfly.cli.flags import add_client_flags, add_quiet_flag, print_json
from damselfly.cli.progress import Moment, Progress
from damselfly.cli.quantities import bytes_text, rate_text, seconds_text, share_text
from damselfly.cli.token import read_token
from damselfly.client import answers
from damselfly.errors import LocalProtocolError, UsageError

INTERRUPTED = 130


def configure(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("ref", metavar="REF", help="where the model lives")
    parser.add_argument("--to", metavar="DIR", help="make a tree of files in DIR")
    parser.add_argument(
        "--include",
        metavar="GLOB",
        action="append",
        default=[],
        help="pull only files that match (may be given again)",
    )
    parser.add_argument(
        "--exclude",
        metavar="GLOB",
        action="append",
        default=[],
        help="leave out files that match (may be given again)",
    )
    parser.add_argument(
        "--link",
        action="store_true",
        help="with --to: hard links to the store's own files (never write to them)",
    )
    parser.add_argument(
        "--force", action="store_true", help="with --to: replace files in DIR that differ"
    )
    age = parser.add_mutually_exclusive_group()
    age.add_argument(
        "--fresh", action="store_true", help="ask the origin what REF is now, whoever asked before"
    )
    age.add_argument(
        "--max-age",
        metavar="DURATION",
        type=duration,
        help="how old what is known of REF may be (default: the agents' --origin-fresh)",
    )
    parser.add_argument(
        "--token-file", metavar="PATH", help="a file with the token that opens REF ('-': stdin)"
    )
    parser.add_argument(
        "--origin",
        choices=("auto", "never", "always"),
        help="ask the origin for what no other agent has (auto), for nothing (never), or for"
        " everything (always); without it, as the agent is set",
    )
    add_client_flags(parser)
    add_arrival_flag(parser)
    add_quiet_flag(parser)


def run(args: Namespace) -> int:
    """Pull, watch, and make the tree."""
    if (args.link or args.force) and args.to is None:
        raise UsageError("--link and --force say how --to makes its tree: give --to DIR")
    credentials = None if args.token_file is None else read_token(args.token_file)
    stage = "asking"
    with Progress(sys.stderr, is_quiet=args.quiet) as progress:
        try:
            for item in _pulled(args, credentials):
                if isinstance(item, answers.Pulled):
                    stage = "placing"
                    answer = _placed(item, args, progress)
                    break
                stage = "pulling"
                progress.show(_moment(item))
            else:
                raise LocalProtocolError("the pull ended without an answer")
        except KeyboardInterrupt:
            progress.clear()
            print(f"damselfly pull: {_farewell(stage, args)}", file=sys.stderr)
            return INTERRUPTED
    if args.json:
        print_json(answer)
    else:
        print(answer["path"])
    return 0


def _pulled(
    args: Namespace, credentials: answers.Credentials | None
) -> Iterator[answers.Progress | answers.Pulled]:
    request = answers.PullRequest(
        ref=args.ref,
        include=tuple(args.include),
        exclude=tuple(args.exclude),
        credentials=credentials,
        hold=args.to is not None,  # Listening goes on while the tree is made.
        age_s_max=0.0 if args.fresh else args.max_age,
        origin=args.origin,
    )
    return arrived(args, "pull").pull(request)


def _moment(item: answers.Progress) -> Moment:
    peers = f"{item.peers} peer{'' if item.peers == 1 else 's'}"
    return Moment(
        doing=item.phase,
        bytes_done=item.bytes_done,
        bytes_total=item.bytes_total,
        sources=(
            ("store", item.bytes_from_store),
            ("peers", item.bytes_from_peers),
            ("origin", item.bytes_from_origin),
        ),
        note=peers if item.peers else "",
        waiting_for=item.waiting_for or "",
    )


def _placed(pulled: answers.Pulled, args: Namespace, progress: Progress) -> dict[str, object]:
    """Make the tree if one was asked for; returns the answer."""
    answer = pulled.to_json()
    if args.to is not None:
        from damselfly.client.tree import make_tree  # noqa: PLC0415 - most pulls make none

        began_s = time.monotonic()
        tree = make_tree(
            pulled.path,
            args.to,
            link=args.link,
            force=args.force,
            on_progress=lambda done, total: progress.show(
                Moment(doing="placing", bytes_done=done, bytes_total=total)
            ),
        )
        answer["path"] = os.path.abspath(args.to)  # noqa: PTH100 - paths are text in the client
        answer["seconds"] = round(pulled.seconds + time.monotonic() - began_s, 3)
        for how in ("reflinked", "copied", "linked", "kept"):
            answer[how] = getattr(tree, how)
    progress.say(_summary(pulled))
    return answer


def _summary(pulled: answers.Pulled) -> str:
    counts = {
        "origin": pulled.bytes_from_origin,
        "peers": pulled.bytes_from_peers,
        "store": pulled.bytes_from_store,
    }
    shares = ", ".join(
        f"{share_text(count, pulled.bytes)} from {'the ' if name != 'peers' else ''}{name}"
        for name, count in counts.items()
        if count
    )
    files = f"{pulled.files} file{'' if pulled.files == 1 else 's'}"
    rate = f" ({rate_text(pulled.bytes / pulled.seconds)})" if pulled.seconds > 0.5 else ""
    return (
        f"pulled {pulled.artifact[:19]}: {files}, {bytes_text(pulled.bytes)} in"
        f" {seconds_text(pulled.seconds)}{rate}" + (f", {shares}" if shares else "")
    )


def _farewell(stage: str, args: Namespace) -> str:
    match stage:
        case "asking":
            return "interrupted before the agent had answered"
        case "placing":
            return (
                f"interrupted: the model is in the store, and what is in {args.to} is whole files;"
                " the same command makes the rest"
            )
        case _:
            socket = f" --socket {args.socket}" if args.socket else ""
            ref = "REF" if "?" in args.ref else args.ref  # A query may be a signature.
            return (
                "interrupted, but the pull goes on in the agent: the same command joins it,"
                f" `damselfly cancel{socket} {ref}` stops it"
            )
