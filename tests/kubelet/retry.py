"""When the kubelet tries again: 0.5, 1, 2, ... 64, 122, 122, ... seconds after each failure.

The code of the failure makes no difference to it. Another operation on the same volume (unmount
after a mount that failed) starts from the beginning, at once.
"""

from tests.kubelet.timing import RETRY_FIRST_S, RETRY_MOST_S


class Retry:
    """The pause before the next try of one operation on one volume."""

    def __init__(self) -> None:
        self._pause_s = 0.0
        self._may_at = 0.0
        self._operation = ""

    def failed(self, operation: str, now: float) -> None:
        """It failed: the next try waits, twice as long as before."""
        if operation != self._operation:
            self._pause_s = 0.0
        self._operation = operation
        self._pause_s = min(self._pause_s * 2 or RETRY_FIRST_S, RETRY_MOST_S)
        self._may_at = now + self._pause_s

    def succeeded(self) -> None:
        """It went well: what comes next waits for nothing."""
        self._pause_s = 0.0
        self._may_at = 0.0

    def may_at(self, operation: str) -> float:
        """When this operation may be tried."""
        return self._may_at if operation == self._operation else 0.0
