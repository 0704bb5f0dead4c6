"""The peer plane's sockets: HTTP/2 by `damselfly.p2p.wire` on raw non-blocking sockets.

    PeerServer   answers requests by a handler; DATA leaves by sendfile
    PeerPool     asks peers, one connection each; DATA arrives by recv_into the caller's buffer

Both run in one event loop (uvloop or asyncio) and belong to it.
"""

from damselfly.p2p.transport.buffers import BufferPool, BufferShare
from damselfly.p2p.transport.certificates import CertificateFiles, Certificates
from damselfly.p2p.transport.exchange import (
    Body,
    FileBody,
    Handler,
    Reply,
    Request,
    Response,
    header_of,
)
from damselfly.p2p.transport.limits import Limits
from damselfly.p2p.transport.pool import PeerPool, ReplyStream
from damselfly.p2p.transport.server import PeerServer

__all__ = [
    "Body",
    "BufferPool",
    "BufferShare",
    "CertificateFiles",
    "Certificates",
    "FileBody",
    "Handler",
    "Limits",
    "PeerPool",
    "PeerServer",
    "Reply",
    "ReplyStream",
    "Request",
    "Response",
    "header_of",
]
