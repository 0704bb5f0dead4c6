"""From a connected socket to a channel: as it is, or with TLS once hands have been shaken."""

import asyncio
import socket
import ssl

from damselfly.errors import PeerUnavailableError
from damselfly.p2p.transport.certificates import Certificates
from damselfly.p2p.transport.channel import Channel, PlainChannel
from damselfly.p2p.transport.tls_channel import TLSChannel


async def dialled(sock: socket.socket, who: str, certificates: Certificates | None) -> Channel:
    """Make a channel of a socket that we have connected; it belongs to the channel then.

    Raises:
        PeerUnavailableError: the peer does not shake hands, or is none of ours.
        OSError: the connection is lost.
    """
    if certificates is None:
        return plain(sock)
    context = certificates.client()
    return await _secured(sock, context, who, certificates, is_server=False)


def plain(sock: socket.socket) -> Channel:
    """Make a channel of a socket as it is. Raises OSError when the connection is lost already."""
    try:
        return PlainChannel(sock)
    except OSError:
        sock.close()
        raise


async def accepted(sock: socket.socket, who: str, certificates: Certificates) -> Channel:
    """Make a channel of a socket that has been accepted; raises as `dialled` does."""
    context = certificates.server()
    return await _secured(sock, context, who, certificates, is_server=True)


async def _secured(
    sock: socket.socket,
    context: ssl.SSLContext,
    who: str,
    certificates: Certificates,
    *,
    is_server: bool,
) -> Channel:
    try:
        secure = context.wrap_socket(sock, server_side=is_server, do_handshake_on_connect=False)
    except BaseException:
        sock.close()
        raise
    try:
        secure.setblocking(False)
        await _shake(secure, who)
        certificates.check(secure, who)
        return TLSChannel(secure)
    except BaseException:
        secure.close()
        raise


async def _shake(sock: ssl.SSLSocket, who: str) -> None:
    loop = asyncio.get_running_loop()
    while True:
        ready = loop.create_future()
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            add, remove = loop.add_reader, loop.remove_reader
        except ssl.SSLWantWriteError:
            add, remove = loop.add_writer, loop.remove_writer
        except ssl.SSLError as exc:
            raise PeerUnavailableError(f"shaking hands with {who}: {_reason(exc)}") from exc
        else:
            return
        add(sock.fileno(), _wake, ready)
        try:
            await ready
        finally:
            remove(sock.fileno())


def _wake(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)


def _reason(exc: ssl.SSLError) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not believed: {exc.verify_message}"
    match exc.reason:
        case "WRONG_VERSION_NUMBER" | "HTTP_REQUEST" | "RECORD_LAYER_FAILURE":
            return "it does not speak TLS"
        case reason:
            return (reason or "it hung up").lower().replace("_", " ")
