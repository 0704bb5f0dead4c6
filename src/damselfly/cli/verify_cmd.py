"""Re-read and re-hash what is on the disk, and name what is bad.

Without ARTIFACT everything in the store is read. Bad chunks are fetched again with --repair, from
the swarm; without it they are missing from then on, and the next pull fetches them. The command
fails (exit code 20) if anything is still bad when it ends. Interrupting it stops the work.
"""

import sys
from argparse import ArgumentParser, Namespace

from damselfly.cli.flags import add_client_flags, add_quiet_flag, client_of, print_json
from damselfly.cli.ls_cmd import short_digest
from damselfly.cli.progress import Moment, Progress
from damselfly.cli.quantities import bytes_text, seconds_text
from damselfly.cli.terminal import plain
from damselfly.client.answers import BadChunk, Verified, VerifyProgress
from damselfly.errors import IntegrityError, LocalProtocolError


def configure(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "artifact", metavar="ARTIFACT", nargs="?", help="a digest, its first digits, or a ref"
    )
    parser.add_argument("--repair", action="store_true", help="fetch what is bad again")
    add_client_flags(parser)
    add_quiet_flag(parser)


def run(args: Namespace) -> int:
    """Verify, and name what is bad as it is found."""
    bad: list[BadChunk] = []
    with Progress(sys.stderr, is_quiet=args.quiet) as progress:
        for item in client_of(args).verify(args.artifact, repair=args.repair):
            match item:
                case VerifyProgress():
                    progress.show(_moment(item))
                case BadChunk():
                    bad.append(item)
                    if not args.json:
                        progress.clear()
                        print(_bad_line(item), flush=True)
                case Verified():
                    verified = item
                    break
        else:
            raise LocalProtocolError("the verification ended without an answer")
    if args.json:
        print_json({**verified.to_json(), "bad": [item.to_json() for item in bad]})
    else:
        for line in verified.unrepaired:
            print(plain(f"not repaired: {line}"))
        print(_summary(verified))
    is_well = verified.chunks_repaired >= verified.chunks_bad and not verified.unrepaired
    return 0 if is_well else IntegrityError.exit_code


def _moment(item: VerifyProgress) -> Moment:
    note = f"{item.chunks_bad} bad" if item.chunks_bad else ""
    return Moment(
        doing=item.phase, bytes_done=item.bytes_done, bytes_total=item.bytes_total, note=note
    )


def _bad_line(item: BadChunk) -> str:
    return plain(
        f"bad: {item.path} at {item.start}, {item.length} bytes"
        f" (chunk {short_digest(item.digest)} of {short_digest(item.artifact)})"
    )


def _summary(verified: Verified) -> str:
    artifacts = f"{verified.artifacts} artifact{'' if verified.artifacts == 1 else 's'}"
    read = f"{artifacts}, {bytes_text(verified.bytes)} read in {seconds_text(verified.seconds)}"
    if not verified.chunks_bad:
        return f"{read}: every chunk is what it should be"
    return f"{read}: {verified.chunks_bad} bad, {verified.chunks_repaired} repaired"
