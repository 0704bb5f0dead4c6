"""Let an artifact be evicted and removed again. Leases on it count still."""

from argparse import ArgumentParser, Namespace

from damselfly.cli.flags import add_client_flags, client_of, print_json
from damselfly.cli.ls_cmd import short_digest


def configure(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("artifact", metavar="ARTIFACT", help="a digest, its first digits, or a ref")
    add_client_flags(parser)


def run(args: Namespace) -> int:
    """Unpin it."""
    held = client_of(args).unpin(args.artifact)
    if args.json:
        print_json(held.to_json())
    else:
        print(f"unpinned {short_digest(held.artifact)}")
    return 0
