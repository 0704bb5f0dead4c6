"""The clock port: cores are told the time, shells read it here."""

import time
from typing import Protocol


class Clock(Protocol):
    """Where a shell reads the time."""

    def monotonic_s(self) -> float:
        """Seconds that only grow; compare them with each other, never with a date."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since 1970, for what is stored and shown."""
        ...


class SystemClock:
    """The machine's clock."""

    def monotonic_s(self) -> float:
        """Seconds that only grow."""
        return time.monotonic()

    def wall_ns(self) -> int:
        """Nanoseconds since 1970."""
        return time.time_ns()
