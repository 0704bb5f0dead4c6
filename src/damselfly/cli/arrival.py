"""An agent that was started just now: it listens a second or two later, and is waited for."""

import socket
import sys
import time
from argparse import ArgumentParser, Namespace

from damselfly.cli.durations import duration
from damselfly.cli.flags import client_of
from damselfly.client.agent import AgentClient

WAIT_S = 5.0
"""An agent listens within 2 s on a busy machine of two cores."""
INTERVAL_S = 0.05


def add_arrival_flag(parser: ArgumentParser) -> None:
    """Add --wait-agent."""
    parser.add_argument(
        "--wait-agent",
        metavar="DURATION",
        type=duration,
        default=WAIT_S,
        help=f"how long to wait for an agent that does not listen yet (default: {WAIT_S:g}s)",
    )


def arrived(args: Namespace, verb: str) -> AgentClient:
    """The client for the socket that was named, once somebody listens there or the wait is over.

    Nothing is raised here: who asks next hears why nobody answers, and what to do about it.
    """
    client = client_of(args)
    deadline_s = time.monotonic() + args.wait_agent
    is_told = args.quiet
    while not _listens(client.socket_path) and time.monotonic() < deadline_s:
        if not is_told:
            is_told = True
            print(
                f"damselfly {verb}: no agent listens on {client.socket_path} yet, waiting for one"
                f" up to {args.wait_agent:g} s (--wait-agent)",
                file=sys.stderr,
            )
        time.sleep(INTERVAL_S)
        client = client_of(args)  # Where to look depends on what is there.
    return client


def _listens(path: str) -> bool:
    """Whether somebody listens, or waiting is of no use."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except (OSError, ValueError):
            return True
    return True
