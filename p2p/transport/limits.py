"""What the sockets put up with, and how long they wait."""

from dataclasses import dataclass, field

from damselfly.p2p.wire import limits as wire_limits

KIB = 1024
MIB = 1024 * KIB


def _as_client() -> wire_limits.Limits:
    # Sinks bound what a fetch may bring, so the connection's window only has to cover all of them.
    return wire_limits.Limits(connection_window_bytes=64 * MIB, idle_s=120.0)


def _as_server() -> wire_limits.Limits:
    return wire_limits.Limits(connection_window_bytes=MIB)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Every bound of the server and the pool; `client_wire` and `server_wire` are the core's."""

    client_wire: wire_limits.Limits = field(default_factory=_as_client)
    server_wire: wire_limits.Limits = field(default_factory=_as_server)

    # Both.
    callback_bytes_max: int = 2 * MIB  # read or written before another connection has its turn
    wake_bytes: int = 512 * KIB  # of payload gathered by the kernel before we are woken
    wake_bytes_min: int = 16 * KIB  # the end of a frame that is shorter is not waited for
    linger_s: float = 1.0  # for the peer to read our GOAWAY before the socket is closed
    linger_bytes_max: int = 4 * MIB
    write_stall_s: float = 30.0  # the peer's kernel takes nothing

    # The server.
    connections_max: int = 512
    # So many from one address, once half of all are taken: whoever idles on many leaves the other
    # half to the others. Not before, because many agents may share an address behind a NAT.
    connections_per_address_max: int = 64
    backlog: int = 128
    handshakes_max: int = 128  # of TLS, at a time
    handshakes_per_address_max: int = 16  # once half of them are taken
    handshake_s: float = 5.0  # a lost packet or two
    request_bytes_max: int = 8 * MIB  # of one body
    requests_bytes_max: int = 64 * MIB  # of all bodies being read
    request_body_s: float = 30.0  # without a byte of a body that was announced

    # The pool.
    pooled_max: int = 128  # connections; the least recently used idle one makes room
    connect_s: float = 3.0
    reply_bytes_max: int = 16 * MIB  # of a body that `request` gathers
    refusal_bytes_max: int = 64 * KIB  # of a body that `fetch_into` gathers when it is no chunk
    line_bytes_max: int = 4 * MIB  # of a stream read by lines
