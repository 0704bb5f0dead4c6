"""What the kubelet does about one volume of one pod: facts with `now` in, one action out.

             publish OK                 unpublish OK
    ABSENT ─────────────> MOUNTED ───────────────────> gone
      │ ▲                    ▲                          ▲
      │ │ a final code       │ publish OK               │ unpublish OK
      ▼ │                    │                          │
    (try again) ─────> UNCERTAIN ───────────────────────┘
       a code that is not final

Rule 1: a volume is unpublished only if it is mounted or uncertain. ABSENT and no longer wanted: it
        is gone, and the driver hears nothing.
Rule 2: nothing is interrupted. A pod that goes while its publish is under way waits for it.
Rule 3: a kubelet that starts finds volumes on the disk: they are *reconstructed*, uncertain in a
        way that no failure ends, and each is published once more if its pod is still there.
Rule 4: after a final code the kubelet takes its own folder away, unless the volume was
        reconstructed: under a running pod nothing is removed.
"""

from dataclasses import dataclass
from enum import Enum

import grpc

from tests.kubelet.codes import is_final
from tests.kubelet.retry import Retry

PUBLISH = "MountVolume.SetUp"
UNPUBLISH = "UnmountVolume.TearDown"


class State(Enum):
    """What the kubelet believes."""

    ABSENT = "absent"
    UNCERTAIN = "uncertain"
    MOUNTED = "mounted"
    GONE = "gone"


@dataclass(frozen=True)
class Publish:
    """Ask the driver for the volume."""


@dataclass(frozen=True)
class Unpublish:
    """Ask the driver to take it away, then remove the folder."""


@dataclass(frozen=True)
class Wait:
    """Nothing before `until`, or before something happens."""

    until: float | None


Action = Publish | Unpublish | Wait


class Mounting:
    """See the module. Belongs to one thread at a time."""

    def __init__(self, *, reconstructed: bool = False) -> None:
        self.state = State.UNCERTAIN if reconstructed else State.ABSENT
        self.is_wanted = True
        self._is_reconstructed = reconstructed
        self._retry = Retry()

    def __repr__(self) -> str:
        return f"<Mounting {self.state.value}{'' if self.is_wanted else ', unwanted'}>"

    def next_action(self, now: float) -> Action:
        """What to do now."""
        if self.is_wanted:
            if self.state is State.MOUNTED:
                return Wait(None)
            return self._when_may(PUBLISH, Publish(), now)
        if self.state is State.ABSENT:
            self.state = State.GONE
        if self.state is State.GONE:
            return Wait(None)
        return self._when_may(UNPUBLISH, Unpublish(), now)

    def _when_may(self, operation: str, action: Action, now: float) -> Action:
        may_at = self._retry.may_at(operation)
        return action if now >= may_at else Wait(may_at)

    def publish_ended(self, code: grpc.StatusCode, now: float) -> bool:
        """The driver answered; True: the folder has to be removed now."""
        if code is grpc.StatusCode.OK:
            self._retry.succeeded()
            self.state = State.MOUNTED
            self._is_reconstructed = False
            return False
        self._retry.failed(PUBLISH, now)
        if not is_final(code):
            self.state = State.UNCERTAIN
            return False
        if self._is_reconstructed:
            return False
        self.state = State.ABSENT
        return True

    def publish_not_possible(self, now: float) -> None:
        """The driver is not registered: nothing was asked, nothing changes."""
        self._retry.failed(PUBLISH, now)

    def unpublish_ended(self, code: grpc.StatusCode, now: float) -> None:
        """The driver answered, or is not registered."""
        if code is not grpc.StatusCode.OK:
            self._retry.failed(UNPUBLISH, now)
            return
        self._retry.succeeded()
        self.state = State.GONE
