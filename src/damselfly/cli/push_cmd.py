"""Write a directory and its manifest to where agents read it.

DEST is a directory (a path or file:///path); it may be DIR itself, and then only the manifest is
written. With the manifest beside the weights, agents need not find out where chunks begin and what
they hash to: the first pull starts at full speed and every byte is checked against what was pushed.
An interrupted push leaves no manifest; the same command goes on from there.
"""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from damselfly.cli.extras import extras_needed
from damselfly.cli.flags import add_json_flag, add_quiet_flag, print_json
from damselfly.cli.progress import Moment, Progress
from damselfly.cli.quantities import bytes_text

INTERRUPTED = 130


def configure(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("directory", metavar="DIR", type=Path, help="the model's files")
    parser.add_argument("destination", metavar="DEST", help="a path, or file:///path")
    add_json_flag(parser)
    add_quiet_flag(parser)


def run(args: Namespace) -> int:
    """Push in this process: it reads and writes files, and needs no agent."""
    with extras_needed("damselfly push"):
        from damselfly.origin.push import PushProgress, push  # noqa: PLC0415 - blake3 with it

    with Progress(sys.stderr, is_quiet=args.quiet) as progress:

        def show(at: PushProgress) -> None:
            progress.show(
                Moment(
                    doing="pushing",
                    bytes_done=at.bytes_done,
                    bytes_total=at.bytes_total,
                    note=at.path,
                )
            )

        try:
            report = push(args.directory, args.destination, show)
        except KeyboardInterrupt:
            progress.clear()
            print(
                "damselfly push: interrupted; there is no manifest, the same command goes on",
                file=sys.stderr,
            )
            return INTERRUPTED
        files = report.manifest.files
        bytes_total = sum(chunk.length for file in files for chunk in file.chunks)
        progress.say(
            f"pushed {len(files)} files, {bytes_text(bytes_total)}, to {report.destination}"
            f" ({report.files_copied} copied, {report.files_kept} there already)"
        )
    if args.json:
        print_json(
            {
                "artifact": str(report.artifact),
                "path": str(report.destination),
                "files": len(files),
                "bytes": bytes_total,
                "files_copied": report.files_copied,
                "files_kept": report.files_kept,
                "bytes_copied": report.bytes_copied,
            }
        )
    else:
        print(report.artifact)
    return 0
