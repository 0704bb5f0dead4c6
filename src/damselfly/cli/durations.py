"""Durations on the command line of verbs that ask the agent: read as settings are."""

from argparse import ArgumentTypeError


def duration(text: str) -> float:
    """Seconds from `90s`, `5m`, `24h` and the like; argparse tells what is none."""
    from damselfly.agent.quantities import parse_seconds  # noqa: PLC0415 - most calls need none

    try:
        return parse_seconds(text)
    except ValueError as exc:
        raise ArgumentTypeError(f"{text!r} is {exc}") from exc
