"""A core on a socket: the one place where bytes meet the event loop.

The loop only says that the descriptor is ready (`add_reader`, `add_writer`; there is no transport,
for a transport would own the descriptor and copy). Each callback moves at most
`callback_bytes_max`, so that one fast peer does not starve the others.

A connection ends in two steps: `lost`, when no stream can go on, and `gone`, when the socket is
closed. Between them we linger: the peer is given the time to read our GOAWAY, which a close with
unread input would destroy.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from damselfly.errors import LocalProtocolError, PeerUnavailableError
from damselfly.p2p.transport.channel import Channel
from damselfly.p2p.transport.limits import Limits
from damselfly.p2p.transport.outbox import Outbox
from damselfly.p2p.wire.codes import ErrorCode
from damselfly.p2p.wire.connection import Connection
from damselfly.p2p.wire.events import Event, PeerSilent
from damselfly.p2p.wire.violation import ViolationError

_NOTHING = memoryview(b"")


class Owner(Protocol):
    """Who gives the connection its meaning: a server's end or a client's."""

    def handle(self, event: Event) -> None:
        """Something happened on the wire."""
        ...

    def lost(self, cause: Exception | None) -> None:
        """Every stream is over; called once."""
        ...

    def gone(self) -> None:
        """The socket is closed; called once, last."""
        ...


class Driver:
    """One connection's socket, core and timer; belongs to the loop's thread."""

    def __init__(self, channel: Channel, core: Connection, owner: Owner, limits: Limits) -> None:
        self.core = core
        self.is_lost = False
        self.is_gone = False
        self._channel = channel
        self._fd = channel.fileno()
        self._owner = owner
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._outboxes: dict[int, Outbox] = {}
        # The output that is under way: it has to be finished before the core gives another.
        self._head = _NOTHING
        self._outbox: Outbox | None = None
        self._body_left = 0
        self._body_stream = 0
        self._body_ends = False  # the outbox is of no use after this frame
        self._writer_added = False
        self._write_blocked_since: float | None = None
        self._flush_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        self._lingers = False
        self._lingered_bytes = 0
        self._loop.add_reader(self._fd, self._run, self._on_readable)
        self.poke()

    def __repr__(self) -> str:
        state = "gone" if self.is_gone else "lost" if self.is_lost else "open"
        return f"<Driver {state} {self.core!r}>"

    # --- commands ---------------------------------------------------------------------------

    def poke(self) -> None:
        """See soon whether the core has something to send or a deadline to keep."""
        if not self._flush_scheduled and not self.is_gone:
            self._flush_scheduled = True
            self._loop.call_soon(self._run, self._on_poke)

    def send_body(self, stream_id: int, outbox: Outbox) -> None:
        """Take the body of a stream; the driver closes it when it is sent or given up."""
        assert stream_id not in self._outboxes
        self._outboxes[stream_id] = outbox

    def drop_body(self, stream_id: int) -> None:
        """Close a stream's body, once the frame that is under way has been filled."""
        outbox = self._outboxes.pop(stream_id, None)
        if outbox is None:
            return
        if outbox is self._outbox and self._body_left:
            self._body_ends = True
        else:
            outbox.close()

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        """Give a stream up, and its body."""
        if not self.is_lost:
            self.core.reset(stream_id, code)
            self.poke()
        self.drop_body(stream_id)

    def leave(self, code: ErrorCode = ErrorCode.NO_ERROR, reason: str = "") -> None:
        """Take no new streams, and close when those that are open have ended."""
        if not self.is_lost:
            self.core.go_away(code, reason)
            self.poke()

    def look(self) -> None:
        """Read now what is too little to be woken for, before anybody calls the peer silent."""
        self._run(self._on_readable)

    def abort(self, cause: Exception | None = None) -> None:
        """Close the socket at once."""
        if self.is_gone:
            return
        self._lose(cause)
        self.is_gone = True
        if self._outbox is not None:
            self._outbox.close()
            self._outbox = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._channel.close()
        self._owner.gone()

    def _run(self, step: Callable[[], None]) -> None:
        """Run a callback of the loop; a bug in it must not leave a half-dead connection."""
        if self.is_gone:
            return
        try:
            step()
        except BaseException:
            self.abort(LocalProtocolError(f"running {self!r}"))
            raise

    # --- reading ----------------------------------------------------------------------------

    def _on_readable(self) -> None:
        if self._lingers or self.core.violation is not None:
            self._discard()
            return
        fault = self._receive()
        self._tell_owner()
        if self.is_gone:
            return
        if isinstance(fault, ViolationError):
            self._give_up(fault)
        elif fault is not None:
            self.abort(None if isinstance(fault, EOFError) else fault)
        else:
            if self.core.has_output and not self._writer_added:
                self._flush()
            self._settle()
            if self._channel.has_more() and not self.is_gone:
                self._loop.call_soon(self._run, self._on_readable)

    def _receive(self) -> Exception | None:
        """Feed the core as long as there are bytes; return what put an end to it, if anything."""
        core, channel = self.core, self._channel
        budget = self._limits.callback_bytes_max
        now = self._loop.time()
        try:
            while budget > 0:
                views = core.next_views()
                count = channel.recv_into(views)
                if not count:
                    return EOFError()
                core.received(count, now)
                if count < len(views[0]):
                    break  # The kernel has no more now.
                budget -= count
        except BlockingIOError:
            pass
        except (ViolationError, OSError) as exc:
            return exc
        # Amid a DATA frame nothing but its payload can come: fewer, larger reads halve the cost.
        due = core.payload_due
        wake_at = min(due, self._limits.wake_bytes)
        channel.wake_at(wake_at if wake_at >= self._limits.wake_bytes_min else 1)
        return None

    def _tell_owner(self) -> None:
        for event in self.core.take_events():
            if type(event) is PeerSilent:
                self.abort(PeerUnavailableError("no sign of life"))
            elif not self.is_lost:
                self._owner.handle(event)

    # --- writing ----------------------------------------------------------------------------

    def _on_poke(self) -> None:
        self._flush_scheduled = False
        if not self._writer_added:
            self._flush()
        self._settle()

    def _on_writable(self) -> None:
        self._flush()
        self._settle()

    def _flush(self) -> None:
        """Send what there is, as far as the socket takes it."""
        budget = self._limits.callback_bytes_max
        progress = False
        try:
            while True:
                if not self._head and not self._body_left and not self._next_output():
                    self._unwatch()
                    return
                sent = self._send_some()
                progress = True
                budget -= sent
                if budget <= 0:
                    break
        except BlockingIOError:
            pass
        except OSError as exc:
            self.abort(exc)
            return
        if progress or self._write_blocked_since is None:
            self._write_blocked_since = self._loop.time()
        if not self._writer_added:
            self._writer_added = True
            self._loop.add_writer(self._fd, self._run, self._on_writable)

    def _next_output(self) -> bool:
        output = self.core.next_output()
        if output is None:
            return False
        self._head = memoryview(output.head)
        self._body_left = output.length
        self._body_stream = output.stream_id
        self._outbox = self._outboxes.get(output.stream_id) if output.stream_id else None
        self._body_ends = False
        if output.ends and self._outbox is not None:
            del self._outboxes[output.stream_id]
            self._body_ends = True
        assert self._outbox is not None or not output.length
        return True

    def _send_some(self) -> int:
        """Send a part of the output that is under way."""
        outbox = self._outbox
        if outbox is None or not self._body_left:
            sent = self._channel.send((self._head,))
        else:
            sent = outbox.send(self._channel, self._head, self._body_left)
        of_head = min(sent, len(self._head))
        if of_head:
            self._head = self._head[of_head:]
        if outbox is not None:
            of_body = sent - of_head
            if of_body:
                self._body_left -= of_body
                outbox.advance(of_body)
            if not self._body_left and not self._head:
                self._end_frame(outbox)
        return sent

    def _end_frame(self, outbox: Outbox) -> None:
        self._outbox = None
        if self._body_ends:
            outbox.close()
        if outbox.is_short:
            self.reset(self._body_stream, ErrorCode.INTERNAL_ERROR)

    def _unwatch(self) -> None:
        self._write_blocked_since = None
        if self._writer_added:
            self._writer_added = False
            self._loop.remove_writer(self._fd)

    # --- time -------------------------------------------------------------------------------

    def _on_timer(self) -> None:
        self._timer = None
        if self._lingers:
            self.abort()
            return
        now = self._loop.time()
        deadline = self._next_deadline()
        if deadline is not None and deadline <= now:
            # If it was our loop that stood still, the peer's words wait in the socket.
            self._on_readable()
            if self.is_gone or self._lingers:
                return
            blocked_since = self._write_blocked_since
            if blocked_since is not None and now >= blocked_since + self._limits.write_stall_s:
                self.abort(PeerUnavailableError("the peer has stopped reading"))
                return
            self._handle_core_timer(now)
        else:
            self._settle()

    def _handle_core_timer(self, now: float) -> None:
        if self.core.violation is not None:
            return
        fault: ViolationError | None = None
        try:
            self.core.handle_timer(now)
        except ViolationError as exc:
            fault = exc
        self._tell_owner()
        if self.is_gone:
            return
        if fault is not None:
            self._give_up(fault)
            return
        if self.core.has_output and not self._writer_added:
            self._flush()
        self._settle()

    def _next_deadline(self) -> float | None:
        deadline = self.core.next_deadline()
        if self._write_blocked_since is not None:
            stalled_at = self._write_blocked_since + self._limits.write_stall_s
            deadline = stalled_at if deadline is None else min(deadline, stalled_at)
        return deadline

    def _settle(self) -> None:
        """After anything: end if there is nothing left to do, else see to the timer."""
        if self.is_gone or self._lingers:
            return
        core = self.core
        idle_out = not self._head and not self._body_left and not core.has_output
        if idle_out and (core.violation is not None or (core.is_leaving and not core.stream_count)):
            self._linger()
            return
        deadline = self._next_deadline()
        if deadline is None:
            return
        if self._timer is not None:
            if self._timer_s <= deadline:
                return  # It fires, finds nothing due and comes back here.
            self._timer.cancel()
        # Kept apart: what uvloop gives for a deadline that has passed does not know it.
        self._timer_s = deadline
        self._timer = self._loop.call_at(deadline, self._run, self._on_timer)

    # --- the end ----------------------------------------------------------------------------

    def _give_up(self, fault: ViolationError) -> None:
        """The core has queued GOAWAY: send that, and end."""
        self._lose(fault)
        if not self._writer_added:
            self._flush()
        self._settle()

    def _lose(self, cause: Exception | None) -> None:
        if self.is_lost:
            return
        self.is_lost = True
        for stream_id in list(self._outboxes):
            self.drop_body(stream_id)
        self._owner.lost(cause)

    def _linger(self) -> None:
        self._lose(None)
        self._unwatch()
        self._lingers = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._limits.linger_s, self._run, self._on_timer)
        try:
            self._channel.finish()
        except OSError as exc:
            self.abort(exc)

    def _discard(self) -> None:
        scratch = memoryview(bytearray(64 * 1024))
        try:
            while self._lingered_bytes < self._limits.linger_bytes_max:
                count = self._channel.recv_into((scratch,))
                if not count:
                    break
                self._lingered_bytes += count
        except BlockingIOError:
            return
        except OSError:
            pass
        self.abort()
