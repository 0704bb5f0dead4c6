"""Stop a pull. What has arrived stays in the store, and a later pull goes on from there.

TARGET is the ref that is being pulled, the artifact's digest, or at least 6 digits of it.
"""

from argparse import ArgumentParser, Namespace

from damselfly.cli.flags import add_client_flags, client_of, print_json
from damselfly.cli.terminal import plain, safe_ref


def configure(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("target", metavar="ARTIFACT|REF", help="which pull to stop")
    add_client_flags(parser)


def run(args: Namespace) -> int:
    """Stop the pulls of that name."""
    cancelled = client_of(args).cancel(args.target)
    if args.json:
        print_json({"cancelled": [item.to_json() for item in cancelled]})
        return 0
    for item in cancelled:
        print(plain(f"cancelled the pull of {safe_ref(item.ref)}"))
    return 0
