"""Origins that say what cannot be, or say it without end: a named error, and at once."""

import asyncio
import gzip
import os
import tracemalloc
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from damselfly.errors import (
    ManifestError,
    OriginDeniedError,
    OriginNotFoundError,
    OriginUnavailableError,
    RemoteProtocolError,
    explain,
)
from damselfly.model import chunker
from damselfly.model.ref import Ref
from damselfly.origin.cutting import Room
from damselfly.origin.file import FileOrigin
from damselfly.origin.http import HTTPOrigin
from damselfly.origin.port import OriginLimits
from tests.integration.origin_servers import Asked, reply, scripted

LIMITS = OriginLimits(silence_s=2, connect_s=2, listings_bytes_max=4096)


@pytest.fixture
async def origin() -> AsyncGenerator[HTTPOrigin]:
    origin = HTTPOrigin(LIMITS)
    yield origin
    await origin.close()


def test_a_file_that_no_disk_holds_is_refused_before_it_is_cut() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ManifestError, match="the limit is"):
            chunker.cut(1 << 62)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_many_files_that_are_huge_together_are_refused_before_they_are_cut() -> None:
    room = Room()
    room.take(chunker.FILE_BYTES_MAX, "one")

    with pytest.raises(ManifestError, match="and with two they have more"):
        room.take(1, "two")


@pytest.mark.parametrize("size", [str(1 << 62), "9" * 18])
async def test_a_size_that_cannot_be_is_an_error_by_name(origin: HTTPOrigin, size: str) -> None:
    async def answer(_: Asked) -> bytes:
        return reply("206 Partial Content", b"0", Content_Range=f"bytes 0-0/{size}")

    async with scripted(answer) as (address, _):
        with pytest.raises((ManifestError, RemoteProtocolError)):
            await asyncio.wait_for(origin.resolve(Ref.parse(f"{address}/m/f.bin")), 5)


async def test_a_size_of_thousands_of_digits_is_none(origin: HTTPOrigin) -> None:
    async def answer(asked: Asked) -> bytes:
        if asked.method == "HEAD":
            return reply("200 OK", Content_Length="9" * 5000)
        return reply("206 Partial Content", b"0", Content_Range=f"bytes 0-0/{'9' * 5000}")

    async with scripted(answer) as (address, _):
        with pytest.raises(RemoteProtocolError):
            await asyncio.wait_for(origin.resolve(Ref.parse(f"{address}/m/f.bin")), 5)


async def test_a_sparse_file_of_this_machine_is_refused_as_well(tmp_path: Path) -> None:
    path = tmp_path / "huge.bin"
    path.touch()
    os.truncate(path, chunker.FILE_BYTES_MAX + 1)
    local = FileOrigin(LIMITS)
    try:
        with pytest.raises(ManifestError) as caught:
            await local.resolve(Ref.parse(f"file://{path}"))
    finally:
        await local.close()

    assert str(path) in explain(caught.value)


@pytest.mark.parametrize(
    ("status", "kind"),
    [("401 Unauthorized", OriginDeniedError), ("404 Not Found", OriginNotFoundError)],
)
async def test_a_compressed_page_of_an_error_is_that_error(
    origin: HTTPOrigin, status: str, kind: type[Exception]
) -> None:
    async def answer(asked: Asked) -> bytes:
        body = b"" if asked.method == "HEAD" else gzip.compress(b"x" * 100_000)
        return reply(status, body, Content_Encoding="gzip")

    async with scripted(answer) as (address, _):
        with pytest.raises(kind):
            await asyncio.wait_for(origin.resolve(Ref.parse(f"{address}/m/f.bin")), 5)


async def test_listings_without_end_are_left(origin: HTTPOrigin) -> None:
    async def answer(asked: Asked) -> bytes:
        if asked.target.endswith("/"):
            links = "".join(f'<a href="d{number}/">d{number}/</a>\n' for number in range(20))
            page = f"<title>Index of x</title>{links}".encode()
            return reply("200 OK", page, Content_Type="text/html")
        return reply("404 Not Found")

    async with scripted(answer) as (address, lines):
        with pytest.raises(ManifestError, match="the listings of"):
            await asyncio.wait_for(origin.resolve(Ref.parse(f"{address}/m/")), 10)

    assert len(lines) < 100


@pytest.mark.parametrize(
    "host",
    ["a..b", f"{'a' * 64}.example", ".x", "x:99999", "[::1", "\u00df" * 70, "xn--\u00df", "a b"],
)
async def test_a_redirect_to_what_is_no_host_is_an_error_by_name(
    origin: HTTPOrigin, host: str
) -> None:
    async def answer(_: Asked) -> bytes:
        place = f"Location: http://{host}/x\r\nContent-".encode()
        return reply("302 Found").replace(b"Content-", place, 1)

    async with scripted(answer) as (address, _):
        with pytest.raises((OriginUnavailableError, RemoteProtocolError)):
            await asyncio.wait_for(origin.resolve(Ref.parse(f"{address}/m/f.bin")), 5)
