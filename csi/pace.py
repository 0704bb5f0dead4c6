"""How far a pull is, in the words that a pod's events show. Pure.

pulling hf://org/model: 41 % of 15.0 GiB, 3 peers, about 22 s left
"""

from collections import deque

from damselfly.client.answers import Progress

WINDOW_S = 20.0
"""The rate of the last seconds: the average since the start knows nothing of a pull that slows."""
SAMPLE_INTERVAL_S = 0.5
_UNITS = ("KiB", "MiB", "GiB", "TiB")


class Pace:
    """Remembers how far a pull was in the last seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._last: Progress | None = None

    def progressed(self, progress: Progress, now: float) -> None:
        """The pull has come this far."""
        self._last = progress
        if self._samples and now - self._samples[-1][0] < SAMPLE_INTERVAL_S:
            return
        self._samples.append((now, progress.bytes_done))
        while now - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()

    def text(self, now: float) -> str:
        """Say how far it is."""
        last = self._last
        if last is None:
            return "asking the agent"
        if last.phase == "resolving" or last.bytes_total <= 0:
            parts = ["looking what it consists of"]
        else:
            share = 100 * last.bytes_done // last.bytes_total
            parts = [f"{share} % of {_size(last.bytes_total)}"]
            if last.phase == "sealing":
                parts.append("verifying the last of it")
            elif last.phase == "verifying":
                parts.append("verifying who signed it")
        if last.peers:
            parts.append(f"{last.peers} peer{'' if last.peers == 1 else 's'}")
        if last.waiting_for:
            parts.append(f"waiting for {last.waiting_for}")
        elif (left := self._left_s(last, now)) is not None:
            parts.append(f"about {_duration(left)} left")
        return ", ".join(parts)

    def _left_s(self, last: Progress, now: float) -> float | None:
        """How long the rest takes at the rate of the last seconds; None: nobody can tell."""
        if last.phase != "fetching" or not self._samples:
            return None
        began, had = self._samples[0]
        if now - began < 1.0 or last.bytes_done <= had:
            return None
        return (last.bytes_total - last.bytes_done) * (now - began) / (last.bytes_done - had)


def _size(count: float) -> str:
    if count < 1024:
        return f"{count:.0f} B"
    for unit in _UNITS[:-1]:
        count /= 1024
        if count < 1023.95:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} {_UNITS[-1]}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    if seconds < 100 * 60:
        return f"{round(seconds / 60)} min"
    return f"{round(seconds / 3600)} h"
