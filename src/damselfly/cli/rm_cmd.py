"""Take an artifact out of the store. One that is pinned or in use stays.

Files that other artifacts share with it stay too; views that pods have mounted keep their bytes
until they let go.
"""

from argparse import ArgumentParser, Namespace

from damselfly.cli.flags import add_client_flags, client_of, print_json
from damselfly.cli.ls_cmd import short_digest
from damselfly.cli.quantities import bytes_text


def configure(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("artifact", metavar="ARTIFACT", help="a digest, its first digits, or a ref")
    add_client_flags(parser)


def run(args: Namespace) -> int:
    """Remove it."""
    removed = client_of(args).remove(args.artifact)
    if args.json:
        print_json(removed.to_json())
    else:
        freed = bytes_text(removed.bytes_freed)
        print(f"removed {short_digest(removed.artifact)}, {freed} freed")
    return 0
