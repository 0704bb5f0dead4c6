"""Two cores back to back, with a network that cuts bytes anywhere: whatever happens, bodies arrive.

The machine keeps its own account of every exchange. Each rule checks its part of it; at the end the
network delivers everything, both sides read everything, and nothing may be left over.
"""

from dataclasses import dataclass, field

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from damselfly.p2p.wire.codes import ErrorCode
from damselfly.p2p.wire.connection import Connection, Role
from damselfly.p2p.wire.events import (
    DataLanded,
    DataReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    SettingsReceived,
    StreamEnded,
    StreamReset,
)
from damselfly.p2p.wire.limits import Limits
from damselfly.p2p.wire.priority import Priority
from tests.fakes.wire import GET, OK, POST, fill

BODIES = st.sampled_from([0, 1, 9, 100, 16_384, 70_000, 300_000])


def body_of(stream_id: int, length: int) -> bytes:
    return (stream_id.to_bytes(4, "big") + bytes(range(251))) * (length // 255 + 1)


@dataclass
class Exchange:
    """What ought to become of one stream."""

    request: bytes
    response: bytes
    sink: memoryview | None
    request_seen: bytearray = field(default_factory=bytearray)
    response_seen: bytearray = field(default_factory=bytearray)
    responded: bool = False
    ended: bool = False
    cancelled: bool = False


class Pair(RuleBasedStateMachine):
    """A client, a server, and bytes on their way in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.exchanges: dict[int, Exchange] = {}

    @initialize(
        frame_bytes=st.sampled_from([16_384, 20_000, 1 << 20]),
        window=st.sampled_from([65_535, 100_000, 1 << 20]),
    )
    def connect(self, frame_bytes: int, window: int) -> None:
        limits = Limits(
            frame_bytes_max=frame_bytes,
            stream_window_bytes=window,
            connection_window_bytes=window,
            streams_max=8,
        )
        self.client = Connection(Role.CLIENT, limits, self.now)
        self.server = Connection(Role.SERVER, limits, self.now)
        self.to_server = bytearray()
        self.to_client = bytearray()
        self.unread: list[tuple[Connection, int, int]] = []
        self.bodies: dict[tuple[Connection, int], tuple[bytes, int]] = {}

    # --- what the two sides do --------------------------------------------------------------

    @precondition(lambda self: self.client.may_request and len(self.exchanges) < 40)
    @rule(request=BODIES, response=BODIES, sinks=st.booleans(), urgency=st.integers(0, 7))
    def ask(self, request: int, response: int, sinks: bool, urgency: int) -> None:
        sink = memoryview(bytearray(response)) if sinks else None
        headers = (*(POST if request else GET), ("priority", f"u={urgency}"))
        stream_id = self.client.request(headers, self.now, ended=not request, sink=sink)
        exchange = Exchange(
            body_of(stream_id, request)[:request],
            body_of(~stream_id & 0xFFFF, response)[:response],
            sink,
        )
        self.exchanges[stream_id] = exchange
        if request:
            self.bodies[self.client, stream_id] = exchange.request, 0
            self.client.offer(stream_id, request, final=True)

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        open_ids = [
            stream_id
            for stream_id, one in self.exchanges.items()
            if not one.responded
            and self.server.is_alive(stream_id)
            and len(one.request_seen) == len(one.request)
        ]
        if open_ids:
            stream_id = data.draw(st.sampled_from(open_ids))
            self.respond(stream_id)

    def respond(self, stream_id: int) -> None:
        one = self.exchanges[stream_id]
        one.responded = True
        self.server.respond(stream_id, OK, ended=not one.response)
        if one.response:
            self.bodies[self.server, stream_id] = one.response, 0
            half = len(one.response) // 2
            self.server.offer(stream_id, half, final=False)
            self.server.offer(stream_id, len(one.response) - half, final=True)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        alive = [one for one in self.exchanges if self.client.is_alive(one)]
        if alive:
            stream_id = data.draw(st.sampled_from(alive))
            self.client.reset(stream_id, ErrorCode.CANCEL)
            self.exchanges[stream_id].cancelled = True
            sink = self.exchanges[stream_id].sink
            if sink is not None:
                sink[:] = bytes(len(sink))

    @rule(data=st.data(), urgency=st.integers(0, 7), incremental=st.booleans())
    def reprioritise(self, data: st.DataObject, urgency: int, incremental: bool) -> None:
        alive = [one for one in self.exchanges if self.client.is_alive(one)]
        if alive:
            stream_id = data.draw(st.sampled_from(alive))
            self.client.ask_priority(stream_id, Priority(urgency, incremental))

    @rule()
    def read(self) -> None:
        for core, stream_id, count in self.unread:
            core.consumed(stream_id, count)
        self.unread.clear()

    # --- the network ------------------------------------------------------------------------

    @rule(outputs=st.integers(1, 5), to_server=st.booleans())
    def send(self, outputs: int, to_server: bool) -> None:
        core, wire = (self.client, self.to_server) if to_server else (self.server, self.to_client)
        for _ in range(outputs):
            output = core.next_output()
            if output is None:
                break
            wire += output.head
            if output.length:
                body, at = self.bodies[core, output.stream_id]
                wire += body[at : at + output.length]
                self.bodies[core, output.stream_id] = body, at + output.length
                assert at + output.length <= len(body)

    @rule(count=st.integers(1, 400_000), step=st.integers(1, 50_000), to_server=st.booleans())
    def deliver(self, count: int, step: int, to_server: bool) -> None:
        core, wire = (self.server, self.to_server) if to_server else (self.client, self.to_client)
        step = max(step, count // 20)
        moved = 0
        while moved < count and wire:
            # As recvmsg_into does: what one call does not take waits for the next.
            with memoryview(bytes(wire[:step])) as piece:
                taken = fill(core.next_views(), piece)
            del wire[:taken]
            moved += taken
            core.received(taken, self.now)
            for event in core.take_events():
                self.happened(core, event)

    def happened(self, core: Connection, event: Event) -> None:
        match event:
            case RequestReceived(stream_id=stream_id, ended=ended):
                assert core is self.server
                assert ended == (not self.exchanges[stream_id].request)
            case ResponseReceived(stream_id=stream_id, status=status):
                assert core is self.client
                assert status == 200
                assert self.exchanges[stream_id].responded
            case DataReceived(stream_id=stream_id, data=data):
                one = self.exchanges[stream_id]
                (one.request_seen if core is self.server else one.response_seen).extend(data)
                self.unread.append((core, stream_id, len(data)))
            case DataLanded(stream_id=stream_id, count=count):
                one = self.exchanges[stream_id]
                assert one.sink is not None
                at = len(one.response_seen)
                one.response_seen += one.sink[at : at + count]
            case StreamEnded(stream_id=stream_id):
                one = self.exchanges[stream_id]
                if core is self.client:
                    one.ended = True
                    assert one.response_seen == one.response
                else:
                    assert one.request_seen == one.request
            case StreamReset(stream_id=stream_id, error_code=ErrorCode.REFUSED_STREAM):
                # Asked for before the server's SETTINGS had come.
                assert core is self.client
                assert stream_id > 2 * 8
                self.exchanges[stream_id].cancelled = True
            case StreamReset(stream_id=stream_id, violation=violation):
                assert violation is None
                assert core is self.server
                assert self.exchanges[stream_id].cancelled
            case SettingsReceived():
                pass
            case _:
                raise AssertionError(event)

    # --- what always holds ------------------------------------------------------------------

    @invariant()
    def what_arrived_is_what_was_sent(self) -> None:
        for one in self.exchanges.values():
            assert one.request.startswith(one.request_seen)
            assert one.response.startswith(one.response_seen)

    @invariant()
    def nothing_is_written_after_a_cancel(self) -> None:
        for one in self.exchanges.values():
            if one.cancelled and one.sink is not None:
                assert not any(one.sink)

    def teardown(self) -> None:
        """Let everything come to its end: then nothing is left, and nobody waits."""
        if not hasattr(self, "client"):
            return
        for _ in range(10_000):
            self.send(50, to_server=True)
            self.send(50, to_server=False)
            quiet = not self.to_server and not self.to_client and not self.unread
            self.deliver(10_000_000, 1_000_000, to_server=True)
            self.deliver(10_000_000, 1_000_000, to_server=False)
            self.read()
            for stream_id, one in self.exchanges.items():
                if (
                    not one.responded
                    and self.server.is_alive(stream_id)
                    and one.request_seen == one.request
                ):
                    self.respond(stream_id)
                    quiet = False
            if quiet:
                break
        for one in self.exchanges.values():
            assert one.ended or one.cancelled
        assert self.client.stream_count == self.server.stream_count == 0


TestPair = Pair.TestCase
TestPair.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
