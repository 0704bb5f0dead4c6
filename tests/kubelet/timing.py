"""The kubelet's own numbers, and how fast its time passes in a test.

All that the model decides is in the kubelet's seconds. `Timing` says how many of ours one of them
takes: with `scale` 0.01 a deadline of two minutes is 1.2 s, and a pause of 122 s is 1.2 s too. The
deadlines of registration are not scaled, since what they hold is not a wait but an answer.
"""

import time
from dataclasses import dataclass

CALL_DEADLINE_S = 120.0
"""One context for the questions about capabilities and the publish that they precede."""

GET_INFO_DEADLINE_S = 1.0
NOTIFY_DEADLINE_S = 5.0
RETRY_FIRST_S = 0.5
RETRY_MOST_S = 122.0


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A clock in the kubelet's seconds; `scale` is how many of ours one of them takes."""

    scale: float = 1.0

    def now(self) -> float:
        """The kubelet's time."""
        return time.monotonic() / self.scale

    def ours(self, kubelet_s: float) -> float:
        """A duration of the kubelet's in our seconds."""
        return kubelet_s * self.scale
