"""Remove what no artifact and no pull refers to: what interrupted pulls left long ago.

Artifacts stay: the agent evicts the least recently used by itself when it needs their room.
"""

from argparse import ArgumentParser, Namespace

from damselfly.cli.flags import add_client_flags, client_of, print_json
from damselfly.cli.quantities import bytes_text


def configure(parser: ArgumentParser) -> None:
    """Add the flags."""
    add_client_flags(parser)


def run(args: Namespace) -> int:
    """Collect."""
    collected = client_of(args).gc()
    if args.json:
        print_json(collected.to_json())
    else:
        files = f"{collected.files} file{'' if collected.files == 1 else 's'}"
        print(f"removed {files}, {bytes_text(collected.bytes_freed)} freed")
    return 0
