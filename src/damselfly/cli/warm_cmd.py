"""Make nodes hold a model before it is needed: this one, or others through this node's agent.

Every node pulls at once, and what one has read from the origin the others fetch from it. A node
takes an order from another only if its agent was started with --warm-accept for the ref; the
outcome names who did not, who could not be reached, and why.

What has come stays as long as there is room: --ttl keeps it for so long, --pin until `damselfly
unpin` on that node. The exit code is 0 if every node holds it, 80 if only some do, 81 if --timeout
ended the wait; if none does, it is that of what went wrong.

Interrupting the command leaves the warm-up going; the same command joins it again, and with
--cancel it ends it. Files that have come stay in the store.
"""

import sys
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from damselfly.cli.arrival import add_arrival_flag, arrived
from damselfly.cli.durations import duration
from damselfly.cli.flags import add_client_flags, add_quiet_flag, client_of, print_json
from damselfly.cli.quantities import bytes_text, rate_text, seconds_text
from damselfly.cli.terminal import plain, safe_ref
from damselfly.cli.warm_board import Board
from damselfly.cli.warm_verdict import judge, judge_cancellation, judge_order, judge_wait
from damselfly.client.agent import AgentClient
from damselfly.client.answers import Warmed, WarmNode, WarmProgress, WarmRequest
from damselfly.errors import (
    DamselflyError,
    LocalProtocolError,
    PartialError,
    StillRunningError,
    UsageError,
)

INTERRUPTED = 130
# What a node must have reached before `--no-wait` leaves it alone: asked once, whatever came of it.
UNASKED = frozenset({"waiting"})


def configure(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("ref", metavar="REF", help="where the model lives")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--agents", metavar="HOST:PORT,...", help="warm the nodes of these agents, not this one"
    )
    which.add_argument(
        "--selector", metavar="LABEL=VALUE", help="warm the Kubernetes nodes with this label"
    )
    which.add_argument(
        "--all", action="store_true", help="warm every node whose agent this one sees, and this one"
    )
    parser.add_argument(
        "--include",
        metavar="GLOB",
        action="append",
        default=[],
        help="pull only files that match (may be given again)",
    )
    parser.add_argument(
        "--exclude",
        metavar="GLOB",
        action="append",
        default=[],
        help="leave out files that match (may be given again)",
    )
    keep = parser.add_mutually_exclusive_group()
    keep.add_argument(
        "--pin", action="store_true", help="keep it on each node until it is unpinned"
    )
    keep.add_argument(
        "--ttl", metavar="DURATION", type=duration, help="keep it for so long after it has come"
    )
    parser.add_argument(
        "--wait",
        action=BooleanOptionalAction,
        default=True,
        help="wait until every node has it (default), or only until each has begun",
    )
    parser.add_argument(
        "--timeout",
        metavar="DURATION",
        type=duration,
        help="wait no longer than this, and leave the pulls going",
    )
    parser.add_argument("--cancel", action="store_true", help="end the warm-up on those nodes")
    add_client_flags(parser)
    add_arrival_flag(parser)
    add_quiet_flag(parser)


def run(args: Namespace) -> int:
    """Warm, watch, and tell what became of it on every node."""
    request = _request(args)
    if args.cancel:
        return _cancel(args, request)
    outcome: Warmed | None = None
    last: WarmProgress | None = None
    with Board(sys.stderr, is_quiet=args.quiet) as board:
        try:
            client = arrived(args, "warm")
            with _alarm(args.timeout):
                for item in _watched(args, client, request):
                    if isinstance(item, Warmed):
                        outcome = item
                        break
                    last = item
                    board.show(item)
                else:
                    raise LocalProtocolError("the warm-up ended without an outcome")
        except KeyboardInterrupt:
            board.clear()
            is_begun = last is not None
            print(f"damselfly warm: {_farewell(args, is_begun=is_begun)}", file=sys.stderr)
            return INTERRUPTED
        except _LateError:
            outcome = outcome or _so_far(args, last)
    return _told(args, outcome, _error(args, outcome))


def _request(args: Namespace) -> WarmRequest:
    agents = tuple(word.strip() for word in (args.agents or "").split(",") if word.strip())
    if args.agents is not None and not agents:
        raise UsageError("--agents names no agent: write HOST:PORT, with commas between them")
    return WarmRequest(
        ref=args.ref,
        include=tuple(args.include),
        exclude=tuple(args.exclude),
        agents=agents,
        selector=args.selector,
        everywhere=args.all,
        pin=args.pin,
        ttl_s=args.ttl,
    )


def _watched(
    args: Namespace, client: AgentClient, request: WarmRequest
) -> Iterator[WarmProgress | Warmed]:
    """What the agent says; the last item is how it ended, or stood when all had been asked."""
    for item in client.warm(request):
        yield item
        if isinstance(item, Warmed):
            return
        if not args.wait and not any(node.state in UNASKED for node in item.nodes):
            yield _so_far(args, item)
            return


class _LateError(Exception):
    """The time to wait is over."""


@contextmanager
def _alarm(timeout_s: float | None) -> Generator[None]:
    """Raise _LateError within when the time is over, also while the agent says nothing."""
    if timeout_s is None:
        yield
        return
    import signal  # noqa: PLC0415 - only for who does not wait for ever

    def ring(_number: int, _frame: object) -> None:
        raise _LateError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(timeout_s, 0.001))  # Zero would mean never.
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _so_far(args: Namespace, item: WarmProgress | None) -> Warmed:
    """How it stands.

    Raises:
        StillRunningError: the agent has not said it yet.
    """
    if item is None:
        raise StillRunningError(
            f"the agent has said nothing in {seconds_text(args.timeout)}; the warm-up goes on, and"
            " the same command joins it"
        )
    return Warmed(ref=item.ref, artifact=None, nodes=item.nodes, seconds=item.seconds)


def _error(args: Namespace, outcome: Warmed) -> DamselflyError | None:
    nodes = outcome.nodes
    if not args.wait:
        return judge_order(nodes)
    if any(node.state in {"waiting", "pulling", "trying"} for node in nodes):
        return judge_wait(nodes, seconds_text(args.timeout))
    return judge(nodes)


def _told(args: Namespace, outcome: Warmed, error: DamselflyError | None) -> int:
    """Tell the outcome; returns the exit code, or raises what the caller tells in one line."""
    if args.json:
        print_json(outcome.to_json())
    else:
        if len(outcome.nodes) > 1:
            for node in outcome.nodes:
                if node.message:
                    print(f"  {plain(_named(node))}", file=sys.stderr)
        if error is None or isinstance(error, PartialError):
            print(plain(_summary(args, outcome)))
    if error is not None:
        raise error
    return 0


def _named(node: WarmNode) -> str:
    where = f"{node.agent} ({node.node})" if node.node else node.agent
    return f"{where} {node.state}: {node.message}"


def _summary(args: Namespace, outcome: Warmed) -> str:
    done = [node for node in outcome.nodes if node.state == "done"]
    count = f"{len(done)} of {len(outcome.nodes)} node{'' if len(outcome.nodes) == 1 else 's'}"
    if args.cancel:
        ended = sum(node.state == "cancelled" for node in outcome.nodes)
        return f"cancelled the warm-up of {outcome.ref} on {ended} of {len(outcome.nodes)} nodes"
    if not done:
        begun = sum(node.state == "pulling" for node in outcome.nodes)
        return f"{outcome.ref} is on its way to {begun} of {len(outcome.nodes)} nodes"
    size = max(node.bytes_total for node in done)
    moved = sum(node.bytes_from_origin + node.bytes_from_peers for node in done)
    origin = sum(node.bytes_from_origin for node in outcome.nodes)
    rate = f" ({rate_text(moved / outcome.seconds)})" if moved and outcome.seconds > 0.5 else ""
    name = outcome.artifact[:19] if outcome.artifact else outcome.ref
    return (
        f"{name} is on {count}: {bytes_text(size)} each in {seconds_text(outcome.seconds)}{rate},"
        f" {bytes_text(origin)} from the origin"
    )


def _cancel(args: Namespace, request: WarmRequest) -> int:
    outcome = client_of(args).cancel_warm(request)
    return _told(args, outcome, judge_cancellation(outcome.nodes))


def _farewell(args: Namespace, *, is_begun: bool) -> str:
    import shlex  # noqa: PLC0415 - only for who interrupts

    words = ["damselfly", "warm", safe_ref(args.ref)]
    for flag, values in (
        ("--agents", [args.agents] if args.agents else []),
        ("--selector", [args.selector] if args.selector else []),
        ("--include", args.include),
        ("--exclude", args.exclude),
        ("--socket", [args.socket] if args.socket else []),
    ):
        words += [word for value in values for word in (flag, value)]
    words += ["--all"] if args.all else []
    what = (
        "interrupted, but the warm-up goes on"
        if is_begun
        else "interrupted before the agent had answered; if it was asked, the warm-up goes on"
    )
    return f"{what}: the same command joins it, `{shlex.join(words)} --cancel` ends it"
