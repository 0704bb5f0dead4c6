"""Look at everything that commonly goes wrong, here and in the agent, and say what to do about it.

Then print the agent's configuration, and who set what. The exit code is 0 if nothing is bad, 33 if
no agent answers, and 1 otherwise.
"""

import importlib.util
import platform
import sys
import time
from argparse import ArgumentParser, Namespace

from damselfly import __version__
from damselfly.cli.extras import PACKAGES
from damselfly.cli.flags import add_client_flags, client_of, print_json
from damselfly.cli.table import print_table
from damselfly.cli.terminal import GREEN, RED, YELLOW, is_coloured, paint, plain
from damselfly.client.agent import AgentClient
from damselfly.client.answers import Check, Diagnosis
from damselfly.errors import AgentUnavailableError, DamselflyError, explain

VERDICT_COLOURS = {"ok": GREEN, "warning": YELLOW, "bad": RED}


def configure(parser: ArgumentParser) -> None:
    """Add the flags."""
    add_client_flags(parser)


def run(args: Namespace) -> int:
    """Look, here and there."""
    here = [_client_check(), _extras_check()]
    check, diagnosis = _ask(client_of(args))
    checks = (*here, check, *(diagnosis.checks if diagnosis else ()))
    settings = diagnosis.settings if diagnosis else ()
    if args.json:
        print_json(Diagnosis(checks=checks, settings=settings).to_json())
    else:
        _print_checks(checks)
        if settings:
            print()
            print_table(
                ("SETTING", "VALUE", "SET BY"),
                [(setting.key, setting.value or "-", setting.source) for setting in settings],
                sys.stdout,
            )
    if diagnosis is None:
        return AgentUnavailableError.exit_code
    return int(any(check.verdict == "bad" for check in checks))


def _client_check() -> Check:
    return Check(
        name="client",
        verdict="ok",
        detail=f"damselfly {__version__}, Python {platform.python_version()} on"
        f" {platform.system()} {platform.release()} {platform.machine()}",
    )


def _extras_check() -> Check:
    missing = sorted(name for name in PACKAGES if importlib.util.find_spec(name) is None)
    if missing:
        return Check(
            name="extras",
            verdict="ok",
            detail=f"only the client is installed here (the agent needs {', '.join(missing)})",
        )
    return Check(name="extras", verdict="ok", detail="the agent can run from this installation")


def _ask(client: AgentClient) -> tuple[Check, Diagnosis | None]:
    began_s = time.monotonic()
    try:
        diagnosis = client.doctor()
    except DamselflyError as exc:
        return Check(name="socket", verdict="bad", detail=explain(exc)), None
    took_ms = 1000 * (time.monotonic() - began_s)
    detail = f"the agent on {client.socket_path} answers in {took_ms:.0f} ms"
    return Check(name="socket", verdict="ok", detail=detail), diagnosis


def _print_checks(checks: tuple[Check, ...]) -> None:
    coloured = is_coloured(sys.stdout)
    width = max(len(check.name) for check in checks)
    for check in checks:
        verdict = paint(
            check.verdict.ljust(7), VERDICT_COLOURS.get(check.verdict, ""), coloured=coloured
        )
        print(f"{verdict}  {plain(check.name).ljust(width)}  {plain(check.detail)}")
        if check.advice:
            print(f"{' ' * (width + 11)}-> {plain(check.advice)}")
