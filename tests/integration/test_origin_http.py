"""HTTP origins that misbehave: each gets its own error, in time, and without our secrets."""

import asyncio
import contextlib
import logging
import shutil
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from damselfly.errors import (
    ConfigError,
    DamselflyError,
    OriginBusyError,
    OriginChangedError,
    OriginDeniedError,
    OriginNotFoundError,
    OriginUnavailableError,
    RemoteProtocolError,
    explain,
)
from damselfly.model.plan import PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin.http import HTTPOrigin
from damselfly.origin.port import OriginLimits
from tests.integration.origin_servers import Asked, python_server, reply, scripted, served

FILE = PlannedFile("f.bin", (6, 4), 'etag:"1"')
DATA = b"0123456789"


@pytest.fixture
async def origin() -> AsyncGenerator[HTTPOrigin]:
    origin = HTTPOrigin(OriginLimits(silence_s=0.3, connect_s=2, parked_s=30))
    yield origin
    await origin.close()


async def _read(
    origin: HTTPOrigin, address: str, start: int = 0, stop: int = 10, file: PlannedFile = FILE
) -> bytes:
    data = bytearray(stop - start)
    async with origin.open(Ref.parse(f"{address}/m/"), file, start, stop) as stream:
        await stream.readinto(memoryview(data))
    return bytes(data)


def _always(data: bytes | None) -> Callable[[Asked], Awaitable[bytes | None]]:
    async def answer(asked: Asked) -> bytes | None:
        return data

    return answer


def _part(body: bytes = DATA, span: str = "0-9/10", **headers: str) -> bytes:
    return reply("206 Partial Content", body, Content_Range=f"bytes {span}", **headers)


# --- what comes back instead of the span ---------------------------------------------------------


async def test_a_span_is_asked_for_by_its_bytes_and_uncompressed(origin: HTTPOrigin) -> None:
    asked: list[Asked] = []

    async def answer(one: Asked) -> bytes:
        asked.append(one)
        return _part(b"345", "3-5/10", ETag='"1"')

    async with scripted(answer) as (address, _):
        assert await _read(origin, address, 3, 6) == b"345"

    assert asked[0].target == "/m/f.bin"
    assert asked[0].header("range") == "bytes=3-5"
    assert asked[0].header("accept-encoding") == "identity"


MISBEHAVIOUR: dict[str, tuple[bytes | None, type[DamselflyError], str]] = {
    "it hangs up": (None, OriginUnavailableError, "reading http://"),
    "a body that breaks off": (
        _part(DATA[:4], Content_Length="10"),
        OriginUnavailableError,
        "at byte 4",
    ),
    "a shorter range than asked": (
        _part(DATA[:4], "0-3/10"),
        OriginUnavailableError,
        "broke off at byte 4, 6 bytes short",
    ),
    "another range": (
        _part(DATA[1:], "1-9/10"),
        RemoteProtocolError,
        "asked for bytes 0-9, got 1-9",
    ),
    "a longer range": (_part(DATA + b"x", "0-10/10"), RemoteProtocolError, "got 0-10"),
    "no Content-Range": (reply("206 Partial Content", DATA), RemoteProtocolError, "Content-Range"),
    "a Content-Range of nonsense": (_part(span="0-9/x"), RemoteProtocolError, "Content-Range"),
    "many ranges": (
        reply("206 Partial Content", DATA, Content_Type="multipart/byteranges; boundary=x"),
        RemoteProtocolError,
        "Content-Range",
    ),
    "compression": (_part(Content_Encoding="gzip"), RemoteProtocolError, "compressing"),
    "a refusal of a range that is there": (
        reply("416 Range Not Satisfiable", Content_Range="bytes */10"),
        RemoteProtocolError,
        "refuses a range",
    ),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", RemoteProtocolError, "not HTTP"),
    "a header without end": (
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
        RemoteProtocolError,
        "not HTTP",
    ),
    "a file that grew": (_part(span="0-9/11"), OriginChangedError, "11 bytes now: it had 10"),
    "a file that shrank": (
        reply("416 Range Not Satisfiable", Content_Range="bytes */3"),
        OriginChangedError,
        "3 bytes now",
    ),
    "a whole file that grew": (reply("200 OK", DATA + b"x"), OriginChangedError, "11 bytes now"),
    "another ETag": (_part(ETag='"2"'), OriginChangedError, 'it was etag:"1", it is etag:"2"'),
    "a weak ETag": (_part(ETag='W/"1"'), OriginChangedError, 'it is etag:W/"1"'),
    "401": (reply("401 Unauthorized"), OriginDeniedError, "401"),
    "403": (reply("403 Forbidden"), OriginDeniedError, "403"),
    "404": (reply("404 Not Found"), OriginNotFoundError, "404"),
    "410": (reply("410 Gone"), OriginNotFoundError, "410"),
    "429": (reply("429 Too Many Requests"), OriginBusyError, "429"),
    "500": (reply("500 Oops"), OriginUnavailableError, "500"),
    "503": (reply("503 Busy"), OriginUnavailableError, "503"),
    "418": (reply("418 I am a teapot"), RemoteProtocolError, "418"),
    "a redirect to nowhere": (
        reply("302 Found", Location="ftp://x/?s=hunter2"),
        RemoteProtocolError,
        "",
    ),
    "a redirect without end": (
        reply("302 Found", Location="/m/f.bin?sig=hunter2"),
        RemoteProtocolError,
        "redirected too often",
    ),
}


@pytest.mark.parametrize("name", MISBEHAVIOUR)
async def test_misbehaviour_gets_its_own_error_that_names_the_file(
    origin: HTTPOrigin, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    data, kind, why = MISBEHAVIOUR[name]
    async with scripted(_always(data)) as (address, _):
        ref = Ref.parse(f"{address}/m/?sig=hunter2")

        with pytest.raises(DamselflyError) as caught:
            async with origin.open(ref, FILE, 0, 10) as stream:
                await stream.readinto(memoryview(bytearray(10)))

    assert type(caught.value) is kind
    assert why in explain(caught.value)
    assert f"{address}/m/f.bin" in explain(caught.value)
    assert explain(caught.value).isprintable()
    assert "hunter2" not in explain(caught.value)
    assert "hunter2" not in caplog.text


async def test_a_date_is_compared_where_there_is_no_etag(origin: HTTPOrigin) -> None:
    then, now = "Mon, 02 Nov 2026 00:00:00 GMT", "Mon, 23 Nov 2026 00:00:00 GMT"
    file = PlannedFile("f.bin", (10,), f"modified:{then}")
    async with scripted(_always(_part(Last_Modified=then))) as (address, _):
        assert await _read(origin, address, file=file) == DATA
    async with scripted(_always(_part(Last_Modified=now))) as (address, _):
        with pytest.raises(OriginChangedError, match=f"it is modified:{now}"):
            await _read(origin, address, file=file)


async def test_an_answer_that_says_nothing_of_versions_proves_nothing(origin: HTTPOrigin) -> None:
    async with scripted(_always(_part())) as (address, _):
        assert await _read(origin, address) == DATA


# --- silence, distance ---------------------------------------------------------------------------


async def _trickle(one: Asked, head: bytes) -> None:
    one.writer.write(head)
    while True:
        one.writer.write(b"x")
        await one.writer.drain()
        await asyncio.sleep(0.02)


async def test_an_answer_whose_head_trickles_is_left() -> None:
    async def answer(one: Asked) -> None:
        await _trickle(one, b"HTTP/1.1 200 OK\r\nX: ")

    origin = HTTPOrigin(OriginLimits(silence_s=5, head_s=0.3))
    async with scripted(answer) as (address, _):
        with pytest.raises(OriginUnavailableError, match="takes too long"):
            await asyncio.wait_for(origin.resolve(Ref.parse(f"{address}/m/f.bin")), 5)
    await origin.close()


async def test_a_listing_that_trickles_is_left() -> None:
    async def answer(one: Asked) -> None:
        await _trickle(one, b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n")

    origin = HTTPOrigin(OriginLimits(silence_s=5, page_s=0.3))
    async with scripted(answer) as (address, _):
        with pytest.raises(OriginUnavailableError, match="takes too long"):
            await asyncio.wait_for(origin.resolve(Ref.parse(f"{address}/m/")), 5)
    await origin.close()


async def test_an_origin_that_falls_silent_is_left(origin: HTTPOrigin) -> None:
    async def answer(asked: Asked) -> None:
        asked.writer.write(_part(DATA[:5], Content_Length="10"))
        await asked.writer.drain()
        await asyncio.Event().wait()

    async with scripted(answer) as (address, _):
        with pytest.raises(OriginUnavailableError, match="at byte 5: the origin fell silent"):
            await _read(origin, address)


async def test_an_origin_that_never_answers_is_left(origin: HTTPOrigin) -> None:
    async def answer(asked: Asked) -> None:
        await asyncio.Event().wait()

    async with scripted(answer) as (address, _):
        with pytest.raises(OriginUnavailableError, match="fell silent"):
            await _read(origin, address)


async def test_an_origin_that_nobody_serves_is_named(origin: HTTPOrigin) -> None:
    async with scripted(_always(None)) as (address, _):
        pass

    with pytest.raises(OriginUnavailableError) as caught:
        await origin.resolve(Ref.parse(f"{address}/m/?sig=hunter2"))

    assert address.removeprefix("http://") in explain(caught.value)
    assert "hunter2" not in explain(caught.value)


async def test_a_host_that_does_not_exist_is_named(origin: HTTPOrigin) -> None:
    with pytest.raises(OriginUnavailableError) as caught:
        await origin.resolve(Ref.parse("http://no-such-host.invalid/m/"))

    assert "no-such-host.invalid" in explain(caught.value)


async def test_no_byte_is_written_after_a_reader_was_cancelled(origin: HTTPOrigin) -> None:
    half = asyncio.Event()
    rest = asyncio.Event()

    async def answer(asked: Asked) -> bytes:
        asked.writer.write(_part(DATA[:5], Content_Length="10"))
        await asked.writer.drain()
        await rest.wait()
        return DATA[5:]

    data = bytearray(10)

    async def read(address: str) -> None:
        async with origin.open(Ref.parse(f"{address}/m/"), FILE, 0, 10) as stream:
            await stream.readinto(memoryview(data)[:5])
            half.set()
            await stream.readinto(memoryview(data)[5:])

    async with scripted(answer) as (address, _):
        reader = asyncio.ensure_future(read(address))
        await half.wait()
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        rest.set()

    assert data == DATA[:5] + bytes(5)


async def test_no_more_connections_are_opened_than_allowed() -> None:
    limits = OriginLimits(connections_per_host_max=3)
    origin = HTTPOrigin(limits)
    at_once = most = 0
    enough = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        if at_once == limits.connections_per_host_max:
            enough.set()
        await enough.wait()
        await asyncio.sleep(0)
        at_once -= 1
        return web.Response(status=206, body=DATA, headers={"Content-Range": "bytes 0-9/10"})

    app = web.Application()
    app.router.add_get("/m/f.bin", answer)
    async with served(app) as address:
        reads = [_read(origin, address) for _ in range(20)]
        assert await asyncio.gather(*reads) == [DATA] * 20
        await origin.close()

    assert most == 3


async def test_a_connection_is_kept_for_the_next_span(origin: HTTPOrigin) -> None:
    ports: set[int] = set()

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername")[1])
        return web.Response(status=206, body=DATA, headers={"Content-Range": "bytes 0-9/10"})

    app = web.Application()
    app.router.add_get("/m/f.bin", answer)
    async with served(app) as address:
        for _ in range(5):
            assert await _read(origin, address) == DATA

    assert len(ports) == 1


async def test_from_https_nobody_is_sent_to_http(
    origin: HTTPOrigin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    async with scripted(_always(_part())) as (plain, _), _tls_server(tmp_path, plain) as found:
        address, certificate = found
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

        with pytest.raises(OriginDeniedError, match="from https to http"):
            await _read(origin, f"{address}/down")


# --- servers without ranges ----------------------------------------------------------------------


async def test_without_ranges_one_stream_serves_the_spans_that_follow(
    origin: HTTPOrigin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = bytes(range(256)) * 8192
    (tmp_path / "f.bin").write_bytes(content)
    file = PlannedFile("f.bin", (len(content),))
    requests: list[str] = []
    with python_server(tmp_path, requests) as address:
        ref = Ref.parse(address)
        for start in range(0, len(content), 300_000):
            stop = min(start + 200_000, len(content))  # Gaps: somebody else reads those.
            data = bytearray(stop - start)
            async with origin.open(ref, file, start, stop) as stream:
                await stream.readinto(memoryview(data))
            assert data == content[start:stop]

    assert requests == ["GET /f.bin HTTP/1.1"]
    assert [record.message for record in caplog.records] == ["origin.rangeless"]


async def test_without_ranges_going_back_starts_again(origin: HTTPOrigin, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/f.bin").write_bytes(DATA)
    file = PlannedFile("f.bin", (10,))
    requests: list[str] = []
    with python_server(tmp_path, requests) as address:
        for start, stop in ((4, 6), (2, 3), (6, 10), (3, 5)):
            assert await _read(origin, address[:-1], start, stop, file) == DATA[start:stop]

    assert len(requests) == 2


async def test_parked_streams_do_not_starve_the_others() -> None:
    limits = OriginLimits(connections_per_host_max=1, parked_max=2)
    origin = HTTPOrigin(limits)
    async with scripted(_always(reply("200 OK", DATA))) as (address, lines):
        for number in range(6):
            file = PlannedFile(f"{number}.bin", (10,))
            assert await _read(origin, address, 0, 5, file) == DATA[:5]
        await origin.close()

    assert len(lines) == 6


async def test_a_parked_stream_is_dropped_when_nobody_comes_for_it() -> None:
    origin = HTTPOrigin(OriginLimits(parked_s=0.01))
    dropped = asyncio.Event()

    async def answer(asked: Asked) -> None:
        asked.writer.write(reply("200 OK", DATA[:7], Content_Length="10"))
        await asked.writer.drain()
        await asked.reader.read()
        dropped.set()

    async with scripted(answer) as (address, _):
        assert await _read(origin, address, 0, 5) == DATA[:5]
        await asyncio.wait_for(dropped.wait(), 5)
    await origin.close()


# --- proxies, redirects, TLS ---------------------------------------------------------------------


async def test_a_proxy_from_the_environment_is_used(
    origin: HTTPOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted(_always(_part())) as (address, lines):
        monkeypatch.setenv("http_proxy", address)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)

        assert await _read(origin, "http://models.invalid") == DATA

    assert lines == ["GET http://models.invalid/m/f.bin HTTP/1.1"]


async def test_a_proxy_that_never_answers_connect_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = asyncio.Event()

    async def answer(one: Asked) -> None:
        asked.set()
        await asyncio.Event().wait()

    origin = HTTPOrigin(OriginLimits(silence_s=0.2, connect_s=0.2))
    async with scripted(answer) as (address, lines):
        monkeypatch.setenv("https_proxy", address)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)

        with pytest.raises(OriginUnavailableError, match="no connection in time"):
            await asyncio.wait_for(_read(origin, "https://models.invalid"), 5)

    assert asked.is_set()
    assert lines[0].startswith("CONNECT models.invalid:443 ")
    await origin.close()


# --- where no model lives ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.170.2:8080",
        "[fe80::1]",
        "[::ffff:169.254.169.254]",
        "[fd00:ec2::254]",
        "0xa9fea9fe",  # The same to the machine's resolver.
    ],
)
async def test_an_address_of_metadata_services_is_never_asked(
    origin: HTTPOrigin, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("http_proxy", raising=False)

    with pytest.raises(OriginDeniedError, match="no model lives there") as caught:
        await asyncio.wait_for(_read(origin, f"http://{host}"), 5)

    assert "credentials" in explain(caught.value)


async def test_a_name_of_a_metadata_service_is_never_asked(
    origin: HTTPOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def found(host: str, *args: Any, **more: Any) -> Any:
        return real("169.254.169.254" if host == "innocent.example" else host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", found)

    with pytest.raises(OriginDeniedError, match=r"innocent\.example is 169\.254\.169\.254"):
        await asyncio.wait_for(_read(origin, "http://innocent.example"), 5)


async def test_a_redirect_to_a_metadata_service_is_not_followed(origin: HTTPOrigin) -> None:
    elsewhere = reply("302 Found", Location="http://169.254.169.254/latest/meta-data/")
    async with scripted(_always(elsewhere)) as (address, lines):
        with pytest.raises(OriginDeniedError, match="no model lives there"):
            await asyncio.wait_for(_read(origin, address), 5)

    assert len(lines) == 1


async def test_a_redirect_is_followed(origin: HTTPOrigin) -> None:
    async def answer(asked: Asked) -> bytes:
        if asked.target == "/m/f.bin":
            return reply("302 Found", Location="/elsewhere?signature=x%2By")
        assert asked.target == "/elsewhere?signature=x%2By"
        assert asked.header("range") == "bytes=0-9"
        return _part()

    async with scripted(answer) as (address, _):
        assert await _read(origin, address) == DATA


@contextlib.asynccontextmanager
async def _tls_server(tmp_path: Path, plain: str = "") -> AsyncGenerator[tuple[str, Path]]:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    openssl = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
        *("-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await openssl.wait() == 0
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def answer(request: web.Request) -> web.Response:
        if request.path.startswith("/down/"):
            raise web.HTTPFound(f"{plain}/m/f.bin")
        return web.Response(status=206, body=DATA, headers={"Content-Range": "bytes 0-9/10"})

    app = web.Application()
    app.router.add_get("/{name:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "localhost", 0, ssl_context=context)
    await site.start()
    try:
        yield f"https://localhost:{runner.addresses[0][1]}", certificate
    finally:
        await runner.cleanup()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", None])
async def test_certificates_are_checked_against_the_environment(
    tmp_path: Path, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(other, raising=False)
    async with _tls_server(tmp_path) as (address, certificate):
        if name is not None:
            monkeypatch.setenv(name, str(certificate))
        origin = HTTPOrigin(OriginLimits())

        if name is None:
            with pytest.raises(OriginUnavailableError) as caught:
                await _read(origin, address)
            assert "certificate" in explain(caught.value).lower()
        else:
            assert await _read(origin, address) == DATA
        await origin.close()


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
async def test_certificates_that_are_not_there_are_an_error_of_configuration(
    origin: HTTPOrigin, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, str(tmp_path / "missing.pem"))

    with pytest.raises(ConfigError, match=name):
        await origin.resolve(Ref.parse("https://localhost:1/m/"))
