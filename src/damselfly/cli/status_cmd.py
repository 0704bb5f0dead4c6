"""Show the agent at a glance: its store, its peers, what it moved, and the pulls that run."""

import sys
from argparse import ArgumentParser, Namespace
from collections import Counter

from damselfly.cli.flags import add_client_flags, client_of, print_json
from damselfly.cli.quantities import bytes_text, seconds_text, share_text
from damselfly.cli.table import print_table
from damselfly.cli.terminal import BOLD, GREEN, RED, YELLOW, is_coloured, paint, plain, safe_ref
from damselfly.client.answers import Progress, Status

STATE_COLOURS = {"ready": GREEN, "starting": YELLOW, "draining": YELLOW}


def configure(parser: ArgumentParser) -> None:
    """Add the flags."""
    add_client_flags(parser)


def run(args: Namespace) -> int:
    """Show the status."""
    status = client_of(args).status()
    if args.json:
        print_json(status.to_json())
        return 0
    coloured = is_coloured(sys.stdout)
    for head, text in _facts(status, coloured=coloured):
        print(f"{paint(head.ljust(8), BOLD, coloured=coloured)}{text}")
    if status.pulls:
        print()
        print_table(
            ("PHASE", "DONE", "SIZE", "ORIGIN", "PEERS", "STORE", "FROM", "TIME", "REF"),
            [_row(pull) for pull in status.pulls],
            sys.stdout,
            right=frozenset({"DONE", "SIZE", "ORIGIN", "PEERS", "STORE", "FROM", "TIME"}),
        )
    return 0


def _facts(status: Status, *, coloured: bool) -> list[tuple[str, str]]:
    store, traffic = status.store, status.traffic
    state = paint(plain(status.state), STATE_COLOURS.get(status.state, RED), coloured=coloured)
    zone = f", zone {status.zone}" if status.zone else ""
    about = f"up {seconds_text(status.uptime_s)}, version {status.version}, pid {status.pid}"
    artifacts = f"{store.artifacts} artifact{'' if store.artifacts == 1 else 's'}"
    reserved = f", {bytes_text(store.reserved_bytes)} promised" if store.reserved_bytes else ""
    facts = [
        ("agent", f"{plain(status.agent)} {state}{plain(zone)}, {plain(about)}"),
        (
            "store",
            f"{plain(store.path)}: {artifacts}, {bytes_text(store.bytes)} of"
            f" {bytes_text(store.capacity_bytes)} ({share_text(store.bytes, store.capacity_bytes)})"
            f"{reserved}, {bytes_text(store.free_bytes)} free on the disk",
        ),
        ("peers", _peers(status, coloured=coloured)),
        (
            "moved",
            f"{bytes_text(traffic.bytes_from_origin)} from the origin,"
            f" {bytes_text(traffic.bytes_from_peers)} from peers,"
            f" {bytes_text(traffic.bytes_from_store)} from the store;"
            f" {bytes_text(traffic.bytes_served)} served",
        ),
    ]
    quarantined = [peer.agent for peer in status.peers if peer.state == "quarantined"]
    if quarantined:
        facts.append(("", plain("quarantined: " + ", ".join(quarantined))))
    return facts


def _peers(status: Status, *, coloured: bool) -> str:
    counts = Counter(peer.state for peer in status.peers)
    if not counts:
        return "none"
    return ", ".join(
        paint(plain(f"{count} {state}"), RED if state == "quarantined" else "", coloured=coloured)
        for state, count in sorted(counts.items())
    )


def _row(pull: Progress) -> tuple[str, ...]:
    known = pull.bytes_total > 0
    return (
        pull.phase,
        share_text(pull.bytes_done, pull.bytes_total) if known else "-",
        bytes_text(pull.bytes_total) if known else "-",
        bytes_text(pull.bytes_from_origin),
        bytes_text(pull.bytes_from_peers),
        bytes_text(pull.bytes_from_store),
        str(pull.peers),
        seconds_text(pull.seconds),
        safe_ref(pull.ref),
    )
