"""Flags that several verbs share, and the client that they name."""

import json
import sys
from argparse import ArgumentParser, Namespace

from damselfly.client.agent import AgentClient


def add_client_flags(parser: ArgumentParser) -> None:
    """Add --socket and --json, which every verb has that asks the agent."""
    parser.add_argument(
        "--socket",
        metavar="PATH",
        help="the agent's socket (default: $DAMSELFLY_SOCKET, else agent.sock in"
        " $XDG_RUNTIME_DIR/damselfly if there is one, else /run/damselfly/agent.sock)",
    )
    add_json_flag(parser)


def add_json_flag(parser: ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument(
        "--json", action="store_true", help="print the answer as one JSON object on stdout"
    )


def add_quiet_flag(parser: ArgumentParser) -> None:
    """Add --quiet."""
    parser.add_argument("--quiet", "-q", action="store_true", help="show no progress on stderr")


def client_of(args: Namespace) -> AgentClient:
    """The client for the socket that was named."""
    return AgentClient(args.socket)


def print_json(answer: object) -> None:
    """Print an answer for programs: one line, or spread out if a person looks."""
    print(json.dumps(answer, indent=2 if sys.stdout.isatty() else None))
