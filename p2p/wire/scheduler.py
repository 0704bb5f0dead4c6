"""Whose DATA goes next (RFC 9218 §10).

Lower urgencies go first, and between any two frames: an urgent chunk waits for one frame at most.
Within an urgency a non-incremental response goes in stream order until it ends: a chunk is of no
use before its last byte, so four chunks in turn arrive sooner on average than four side by side.
Incremental responses take turns with each other, and with the non-incremental ones as a group.
"""

from damselfly.p2p.wire.streams import Stream


class Scheduler:
    """The streams that have something to send."""

    def __init__(self) -> None:
        self.waiting: dict[int, Stream] = {}
        self._serial = 0
        self._group_turns: dict[int, int] = {}

    def add(self, stream: Stream) -> None:
        """Something to send has come up."""
        self.waiting[stream.id] = stream

    def remove(self, stream: Stream) -> None:
        """Nothing is left, or the stream is gone."""
        self.waiting.pop(stream.id, None)

    def pick(self, connection_window: int) -> Stream | None:
        """Choose the stream of the next frame; its turn is over thereby."""
        best: Stream | None = None
        best_key = (8, 0, 0)
        for stream in self.waiting.values():
            if stream.pending and (stream.send_window <= 0 or connection_window <= 0):
                continue
            priority = stream.priority
            turn = (
                stream.turn if priority.incremental else self._group_turns.get(priority.urgency, 0)
            )
            key = (priority.urgency, turn, stream.id)
            if key < best_key:
                best, best_key = stream, key
        if best is not None:
            self._serial += 1
            if best.priority.incremental:
                best.turn = self._serial
            else:
                self._group_turns[best.priority.urgency] = self._serial
        return best
