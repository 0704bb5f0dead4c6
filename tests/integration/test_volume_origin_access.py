"""HTTP origins that want to know who asks: who is shown what, also across redirects."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from damselfly.errors import (
    ConfigError,
    OriginChangedError,
    OriginDeniedError,
    OriginNotFoundError,
    OriginUnavailableError,
    RemoteProtocolError,
    explain,
)
from damselfly.model.plan import PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS, Access
from damselfly.origin.file import FileOrigin
from damselfly.origin.http import HTTPOrigin
from damselfly.origin.port import OriginLimits
from tests.integration.origin_servers import Asked, reply, scripted


def _planned(path: str, size: int = 10, version: str = "") -> PlannedFile:
    return PlannedFile(path, (size,), version)


DATA = b"0123456789"
FILE = PlannedFile("f.bin", (10,), 'etag:"1"')
SECRET = "s3cret-of-a-pod"
MINE = Access.of(token=SECRET)
SHOWN = f"Bearer {SECRET}"


@pytest.fixture
async def origin() -> AsyncGenerator[HTTPOrigin]:
    origin = HTTPOrigin(OriginLimits(silence_s=2, connect_s=2))
    yield origin
    await origin.close()


async def _private(asked: Asked) -> bytes:
    """A server of one file for who has the token."""
    if asked.header("authorization") != SHOWN:
        return reply("401 Unauthorized")
    if not asked.target.endswith("/f.bin"):
        return reply("404 Not Found")
    if asked.method == "HEAD":
        return reply("200 OK", ETag='"1"', Content_Length="10")
    return _part(asked)


def _part(asked: Asked) -> bytes:
    """What of the file was asked for."""
    first, last = map(int, asked.header("range").removeprefix("bytes=").split("-"))
    place = f"bytes {first}-{last}/10"
    return reply("206 Partial Content", DATA[first : last + 1], Content_Range=place, ETag='"1"')


async def _read(origin: HTTPOrigin, address: str, access: Access) -> bytes:
    data = bytearray(10)
    async with origin.open(Ref.parse(f"{address}/m/"), FILE, 0, 10, access) as stream:
        await stream.readinto(memoryview(data))
    return bytes(data)


async def test_who_shows_the_token_may_look_prove_and_read(origin: HTTPOrigin) -> None:
    async with scripted(_private) as (address, _):
        resolved = await origin.resolve(Ref.parse(f"{address}/m/f.bin"), MINE)

        await origin.prove(Ref.parse(resolved.plan.ref), _planned("f.bin"), MINE)

        assert await _read(origin, address, MINE) == DATA


@pytest.mark.parametrize("access", [ANONYMOUS, Access.of(token="another-s3cret")])
async def test_who_does_not_is_denied_everything(origin: HTTPOrigin, access: Access) -> None:
    async with scripted(_private) as (address, _):
        ref = Ref.parse(f"{address}/m/f.bin")
        for asking in (
            origin.resolve(ref, access),
            origin.prove(ref, _planned("f.bin"), access),
            _read(origin, address, access),
        ):
            with pytest.raises(OriginDeniedError) as caught:
                await asking
            assert "s3cret" not in explain(caught.value)


async def test_a_proof_reads_a_byte_of_the_very_file(origin: HTTPOrigin) -> None:
    async def answer(asked: Asked) -> bytes:
        assert asked.header("range") == "bytes=0-0"
        return _part(asked)

    async with scripted(answer) as (address, lines):
        await origin.prove(Ref.parse(f"{address}/m/"), _planned("deep/f.bin"), MINE)

    assert lines == ["GET /m/deep/f.bin HTTP/1.1"]


async def test_who_may_only_look_proves_nothing(origin: HTTPOrigin) -> None:
    async def answer(asked: Asked) -> bytes:
        if asked.method == "HEAD":
            return reply("200 OK", Content_Length="10", ETag='"1"')
        return reply("403 Forbidden")

    async with scripted(answer) as (address, _):
        with pytest.raises(OriginDeniedError):
            await origin.prove(Ref.parse(f"{address}/m/"), _planned("f.bin"), MINE)


@pytest.mark.parametrize(
    "file",
    [_planned("f.bin", 11), _planned("f.bin", 10, 'etag:"another"')],
    ids=["size", "version"],
)
async def test_another_file_of_that_name_proves_nothing(
    origin: HTTPOrigin, file: PlannedFile
) -> None:
    async with scripted(_private) as (address, _):
        with pytest.raises(OriginChangedError):
            await origin.prove(Ref.parse(f"{address}/m/"), file, MINE)


@pytest.mark.parametrize("body", [b"<html>Log in", b""])
async def test_a_page_to_log_in_proves_nothing(origin: HTTPOrigin, body: bytes) -> None:
    async def answer(asked: Asked) -> bytes:
        return reply("200 OK", body, Content_Type="text/html; charset=utf-8")

    lengths = (len(body),) if body else ()
    async with scripted(answer) as (address, _):
        ref = Ref.parse(f"{address}/m/")
        with pytest.raises(OriginDeniedError, match="is a page"):
            await origin.prove(ref, PlannedFile("f.bin", lengths), MINE)
        await origin.prove(ref, PlannedFile("f.html", lengths), MINE)


async def test_what_is_hidden_by_a_404_is_not_proved(origin: HTTPOrigin) -> None:
    async with scripted(_private) as (address, _):
        with pytest.raises(OriginNotFoundError):
            await origin.prove(Ref.parse(f"{address}/m/"), _planned("other.bin"), MINE)


async def test_a_dead_origin_proves_nothing(origin: HTTPOrigin) -> None:
    async with scripted(_private) as (address, _):
        pass

    with pytest.raises(OriginUnavailableError):
        await origin.prove(Ref.parse(f"{address}/m/"), _planned("f.bin"), MINE)


async def test_another_host_is_not_shown_the_token(origin: HTTPOrigin) -> None:
    shown: list[str] = []

    async def elsewhere(asked: Asked) -> bytes:
        shown.append(asked.header("authorization"))
        return reply("206 Partial Content", DATA, Content_Range="bytes 0-9/10", ETag='"1"')

    async with scripted(elsewhere) as (other, _):

        async def answer(asked: Asked) -> bytes:
            assert asked.header("authorization") == SHOWN
            return reply("302 Found", Location=f"{other}/blob?signature=x")

        async with scripted(answer) as (address, _):
            assert await _read(origin, address, MINE) == DATA

    assert shown == [""]


async def test_the_same_host_is_shown_it_again(origin: HTTPOrigin) -> None:
    async def answer(asked: Asked) -> bytes:
        if asked.target == "/m/f.bin":
            return reply("307 Temporary Redirect", Location="/real/f.bin")
        return await _private(asked)

    async with scripted(answer) as (address, _):
        assert await _read(origin, address, MINE) == DATA


async def test_a_redirect_back_to_the_host_of_the_ref_is_shown_it(origin: HTTPOrigin) -> None:
    home = ""

    async def away(asked: Asked) -> bytes:
        assert asked.header("authorization") == ""
        return reply("302 Found", Location=f"{home}/real/f.bin")

    async with scripted(away) as (other, _):

        async def answer(asked: Asked) -> bytes:
            if asked.target == "/m/f.bin":
                return reply("302 Found", Location=f"{other}/")
            return await _private(asked)

        async with scripted(answer) as (home, _):
            assert await _read(origin, home, MINE) == DATA


@pytest.mark.parametrize("place", ["ftp://host/f", "http://[", "javascript:x"])
async def test_a_redirect_that_is_no_web_address_is_an_error(
    origin: HTTPOrigin, place: str
) -> None:
    async def answer(asked: Asked) -> bytes:
        return reply("302 Found", Location=place)

    async with scripted(answer) as (address, _):
        with pytest.raises(RemoteProtocolError, match="no HTTP address"):
            await _read(origin, address, MINE)


async def test_the_agents_own_netrc_is_shown_for_nobody(
    origin: HTTPOrigin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login agent password {SECRET}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))

    async def answer(asked: Asked) -> bytes:
        assert asked.header("authorization") == ""
        return reply("401 Unauthorized")

    async with scripted(answer) as (address, _):
        with pytest.raises(OriginDeniedError):
            await origin.prove(Ref.parse(f"{address}/m/"), _planned("f.bin"), ANONYMOUS)


async def test_a_parked_stream_goes_on_only_for_who_began_it(origin: HTTPOrigin) -> None:
    async def answer(asked: Asked) -> bytes:
        if asked.header("authorization") != SHOWN:
            return reply("403 Forbidden")
        return reply("200 OK", DATA, ETag='"1"')  # No ranges: what is left is parked.

    async with scripted(answer) as (address, lines):
        ref = Ref.parse(f"{address}/m/")
        async with origin.open(ref, FILE, 0, 4, MINE) as stream:
            await stream.readinto(memoryview(bytearray(4)))

        with pytest.raises(OriginDeniedError):
            async with origin.open(ref, FILE, 4, 10, ANONYMOUS):
                pass
        async with origin.open(ref, FILE, 4, 10, MINE) as stream:
            rest = bytearray(6)
            await stream.readinto(memoryview(rest))

    assert rest == DATA[4:]
    assert len(lines) == 2


async def test_a_proxy_is_shown_its_own_password(
    origin: HTTPOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[str] = []

    async def answer(asked: Asked) -> bytes:
        heads.append(asked.head)
        return _part(asked)

    async with scripted(answer) as (address, _):
        monkeypatch.setenv("http_proxy", address.replace("//", "//gate:k%20ey@"))
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        await origin.prove(Ref.parse("http://models.invalid/m/"), _planned("f.bin"), MINE)

    assert "Proxy-Authorization: Basic Z2F0ZTprIGV5" in heads[0]
    assert f"Authorization: {SHOWN}" in heads[0]


async def test_what_is_no_proxy_is_an_error_of_configuration(
    origin: HTTPOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "gate:3128")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(ConfigError, match="http_proxy"):
        await origin.prove(Ref.parse("http://models.invalid/m/"), _planned("f.bin"), MINE)


async def test_files_of_this_machine_need_no_proof(tmp_path: Path) -> None:
    origin = FileOrigin(OriginLimits())

    await asyncio.wait_for(
        origin.prove(Ref.parse(f"file://{tmp_path}/"), _planned("none"), MINE), 1
    )

    await origin.close()
