"""List what the store holds, most recently used first.

HELD is how much of an artifact is here: a pull with --include holds a part of it. Give the first
digits of an artifact to `rm`, `pin`, `verify`; six are enough if they are unambiguous. SIGNED BY is
who signed it, if a rule of the agent's configuration had that verified.
"""

import sys
import time
from argparse import ArgumentParser, Namespace

from damselfly.cli.flags import add_client_flags, client_of, print_json
from damselfly.cli.quantities import age_text, bytes_text, share_text
from damselfly.cli.table import print_table
from damselfly.cli.terminal import plain, safe_ref
from damselfly.client.answers import HeldArtifact

DIGITS = 12


def configure(parser: ArgumentParser) -> None:
    """Add the flags."""
    add_client_flags(parser)


def run(args: Namespace) -> int:
    """List the artifacts."""
    artifacts = client_of(args).artifacts()
    if args.json:
        print_json({"artifacts": [item.to_json() for item in artifacts]})
        return 0
    if not artifacts:
        print("the store is empty", file=sys.stderr)
        return 0
    now_ns = time.time_ns()
    print_table(
        ("ARTIFACT", "SIZE", "HELD", "FILES", "KEPT BY", "USED", "SIGNED BY", "REF"),
        [_row(item, now_ns) for item in artifacts],
        sys.stdout,
        right=frozenset({"SIZE", "HELD", "FILES"}),
    )
    return 0


def short_digest(artifact: str) -> str:
    """Enough of a digest to name it by."""
    return artifact.removeprefix("blake3:")[:DIGITS]


def _row(item: HeldArtifact, now_ns: int) -> tuple[str, ...]:
    keepers = ["pin"] if item.pinned else []
    if item.leases:
        keepers.append(f"{item.leases} lease{'' if item.leases == 1 else 's'}")
    return (
        short_digest(item.artifact),
        bytes_text(item.bytes),
        share_text(item.bytes_held, item.bytes),
        str(item.files),
        ", ".join(keepers) or "-",
        age_text(item.used_ns, now_ns),
        plain(item.signature.by) if item.signature is not None else "-",
        " ".join(map(safe_ref, item.refs)) or "-",
    )
