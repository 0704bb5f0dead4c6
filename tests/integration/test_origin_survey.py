"""Finding out what lies behind a URL, where there is no manifest and perhaps no listing."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from aiohttp import web

from damselfly.errors import (
    DamselflyError,
    HeaderError,
    ManifestError,
    OriginDeniedError,
    OriginNotFoundError,
    OriginUnavailableError,
    UnsupportedFormatError,
    explain,
)
from damselfly.model.chunker import CHUNK_BYTES
from damselfly.model.ref import Ref
from damselfly.origin.http import HTTPOrigin
from damselfly.origin.port import OriginLimits
from tests.integration.origin_servers import (
    NGINX,
    aiohttp_server,
    nginx_server,
    served,
    weights,
    write_model,
)

HTML = "text/html"


class _Site:
    """A server whose every answer is set; it keeps what it was asked."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, bytes, str]] = {}
        self.otherwise: tuple[int, bytes, str] = (404, b"", "text/plain")
        self.head_status: int | None = None
        self.head_length: str | None = None
        self.asked: list[str] = []
        self.address = ""

    def put(self, path: str, data: bytes, kind: str = "application/octet-stream") -> None:
        self.pages[f"/m/{path}"] = (200, data, kind)

    @property
    def ref(self) -> Ref:
        return Ref.parse(f"{self.address}/m/")

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path}")
        status, data, kind = self.pages.get(request.path, self.otherwise)
        headers = {"Content-Type": kind, "ETag": '"1"'}
        if status != 200:
            return web.Response(status=status, body=data, headers=headers)
        if request.method == "HEAD" and self.head_status is not None:
            return web.Response(status=self.head_status)
        if request.method == "HEAD" and self.head_length is not None:
            return web.Response(headers=headers | {"Content-Length": self.head_length})
        wanted = request.http_range
        if request.method == "GET" and wanted.start is not None:
            stop = min(wanted.stop or len(data), len(data))
            if wanted.start >= len(data):
                return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {wanted.start}-{stop - 1}/{len(data)}"
            return web.Response(status=206, body=data[wanted.start : stop], headers=headers)
        return web.Response(body=data, headers=headers)


@pytest.fixture
async def origin() -> AsyncGenerator[HTTPOrigin]:
    origin = HTTPOrigin(OriginLimits())
    yield origin
    await origin.close()


@pytest.fixture
async def site() -> AsyncGenerator[_Site]:
    site = _Site()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", site.answer)
    async with served(app) as address:
        site.address = address
        yield site


async def _paths(origin: HTTPOrigin, ref: Ref) -> list[str]:
    return [file.path for file in (await origin.resolve(ref)).plan.files]


# --- an index, or a lone file --------------------------------------------------------------------


async def test_without_a_listing_the_index_names_the_weights(
    origin: HTTPOrigin, tmp_path: Path
) -> None:
    write_model(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    async with aiohttp_server(tmp_path, listing=False) as address:
        paths = await _paths(origin, Ref.parse(address))

    assert paths == [
        "README.md",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
async def test_nginx_without_autoindex_is_read_by_its_index(
    origin: HTTPOrigin, tmp_path: Path
) -> None:
    directory, scratch = tmp_path / "model", tmp_path / "nginx"
    scratch.mkdir()
    write_model(directory)
    with nginx_server(directory, scratch) as address:
        ref = Ref.parse(address.replace("/m/", "/plain/"))
        paths = await _paths(origin, ref)
        same = await _paths(origin, ref.as_file)

    assert len(paths) == 5
    assert same == paths


async def test_without_an_index_a_lone_model_is_one(origin: HTTPOrigin, site: _Site) -> None:
    site.put("model.safetensors", weights(1, 100))
    site.put("config.json", b"{}")

    assert await _paths(origin, site.ref) == ["config.json", "model.safetensors"]


async def test_a_page_for_everything_is_no_companion(origin: HTTPOrigin, site: _Site) -> None:
    site.put("model.safetensors", weights(1, 100))
    site.otherwise = (200, b"<title>Welcome</title><a href='x.bin'>x</a>", HTML)

    assert await _paths(origin, site.ref) == ["model.safetensors"]


async def test_a_bucket_that_denies_what_is_not_there_is_read(
    origin: HTTPOrigin, site: _Site
) -> None:
    site.put("model.safetensors", weights(1, 100))
    site.otherwise = (403, b"<Code>AccessDenied</Code>", "application/xml")

    assert await _paths(origin, site.ref) == ["model.safetensors"]


async def test_where_everything_is_denied_so_are_we(origin: HTTPOrigin, site: _Site) -> None:
    site.otherwise = (403, b"", "text/plain")

    with pytest.raises(OriginDeniedError):
        await origin.resolve(site.ref)


async def test_where_nothing_names_files_it_is_said_what_was_looked_for(
    origin: HTTPOrigin, site: _Site
) -> None:
    with pytest.raises(OriginNotFoundError) as caught:
        await origin.resolve(site.ref)

    for looked_for in ("damselfly-manifest.json", "listing", "index.json", "model.safetensors"):
        assert looked_for in str(caught.value)


async def test_a_server_in_trouble_is_not_taken_for_an_empty_one(
    origin: HTTPOrigin, site: _Site
) -> None:
    site.otherwise = (503, b"", "text/plain")

    with pytest.raises(OriginUnavailableError):
        await origin.resolve(site.ref)


BAD_INDEXES = {
    "not JSON": b"{",
    "a list": b"[]",
    "no map": b"{}",
    "a map of numbers": b'{"weight_map": {"a": 1}}',
    "out of the directory": b'{"weight_map": {"a": "../../etc/passwd"}}',
    "an absolute path": b'{"weight_map": {"a": "/etc/passwd"}}',
    "a file and a directory": b'{"weight_map": {"a": "x", "b": "x/y"}}',
    "a key twice": b'{"weight_map": {"a": "x"}, "weight_map": {"a": "y"}}',
}


@pytest.mark.parametrize("name", BAD_INDEXES)
async def test_a_hostile_index_is_refused(origin: HTTPOrigin, site: _Site, name: str) -> None:
    site.put("model.safetensors.index.json", BAD_INDEXES[name], "application/json")

    with pytest.raises(ManifestError, match=r"index\.json"):
        await origin.resolve(site.ref)
    assert not any("passwd" in asked for asked in site.asked)


async def test_weights_that_the_index_names_must_be_there(origin: HTTPOrigin, site: _Site) -> None:
    index = b'{"weight_map": {"a": "missing-1.safetensors"}}'
    site.put("model.safetensors.index.json", index, "application/json")

    with pytest.raises(OriginNotFoundError, match=r"missing-1\.safetensors"):
        await origin.resolve(site.ref)


# --- a listing -----------------------------------------------------------------------------------


def _listing(*hrefs: str) -> bytes:
    links = "".join(f'<a href="{href}">{href}</a>' for href in hrefs)
    return f"<title>Index of /</title>{links}".encode()


async def test_a_listing_without_end_ends(origin: HTTPOrigin, site: _Site) -> None:
    site.otherwise = (200, _listing("again/"), HTML)

    with pytest.raises(ManifestError, match="deep"):
        await origin.resolve(site.ref)


async def test_a_listing_that_doubles_at_every_level_ends(
    site: _Site,
) -> None:
    origin = HTTPOrigin(OriginLimits(directories_max=100))
    site.otherwise = (200, _listing("a/", "b/"), HTML)

    with pytest.raises(ManifestError, match="more than 100 directories"):
        await origin.resolve(site.ref)
    assert len(site.asked) < 110
    await origin.close()


async def test_bookkeeping_is_not_even_looked_at(origin: HTTPOrigin, site: _Site) -> None:
    site.put("", _listing(".git/", ".cache/", "config.json"), HTML)
    site.put("config.json", b"{}")

    assert await _paths(origin, site.ref) == ["config.json"]
    assert not any(".git" in asked or ".cache" in asked for asked in site.asked)


async def test_a_listed_file_that_is_gone_is_named(origin: HTTPOrigin, site: _Site) -> None:
    site.put("", _listing("config.json", "gone.bin"), HTML)
    site.put("config.json", b"{}")

    with pytest.raises(OriginNotFoundError, match=r"gone\.bin"):
        await origin.resolve(site.ref)


async def test_a_hostile_listing_is_refused(origin: HTTPOrigin, site: _Site) -> None:
    site.put("", _listing("config.json", "%2e%2e/"), HTML)

    with pytest.raises(ManifestError, match=r"component '\.\.'"):
        await origin.resolve(site.ref)


async def test_an_empty_directory_is_no_artifact(origin: HTTPOrigin, site: _Site) -> None:
    site.put("", _listing("../"), HTML)

    with pytest.raises(OriginNotFoundError, match="no files"):
        await origin.resolve(site.ref)


async def test_a_directory_that_moved_is_read_where_it_is(origin: HTTPOrigin) -> None:
    async def latest(request: web.Request) -> web.Response:
        raise web.HTTPFound("/v3/")

    async def v3(request: web.Request) -> web.Response:
        return web.Response(body=_listing("config.json"), content_type=HTML)

    async def file(request: web.Request) -> web.Response:
        return web.Response(body=b"{}")

    app = web.Application()
    app.router.add_get("/latest/", latest)
    app.router.add_get("/v3/", v3)
    app.router.add_get("/v3/config.json", file)
    async with served(app) as address:
        resolved = await origin.resolve(Ref.parse(f"{address}/latest/"))

        assert resolved.plan.ref == f"{address}/v3/"
        assert [file.bytes for file in resolved.plan.files] == [2]


# --- sizes, headers, manifests -------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403, 405, 501])
async def test_where_head_is_refused_one_byte_is_asked_for(
    origin: HTTPOrigin, site: _Site, status: int
) -> None:
    site.put("", _listing("a.bin", "empty"), HTML)
    site.put("a.bin", bytes(CHUNK_BYTES + 1))
    site.put("empty", b"")
    site.head_status = status

    plan = (await origin.resolve(site.ref)).plan

    assert [file.lengths for file in plan.files] == [(CHUNK_BYTES, 1), ()]


async def test_a_head_that_says_zero_is_not_believed(origin: HTTPOrigin, site: _Site) -> None:
    site.put("", _listing("a.bin"), HTML)
    site.put("a.bin", b"12345")
    site.head_length = "0"

    assert (await origin.resolve(site.ref)).plan.bytes == 5


async def test_a_long_header_takes_one_more_request(site: _Site) -> None:
    origin = HTTPOrigin(OriginLimits(header_guess_bytes=1000))
    site.put("model.safetensors", weights(1, *[10] * 100))

    plan = (await origin.resolve(Ref.parse(f"{site.address}/m/model.safetensors"))).plan

    assert plan.chunk_count == 2
    assert site.asked == [
        "HEAD /m/model.safetensors",
        "GET /m/model.safetensors",
        "GET /m/model.safetensors",
    ]
    await origin.close()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        pytest.param(b"", "too short", id="empty"),
        pytest.param(b"\xff" * 100, "the limit is", id="2^64-1"),
        pytest.param(b"version https://git-lfs/spec/v1", "Git LFS pointer", id="pointer"),
        pytest.param(weights(1, 50)[:-1], "the tensors end at", id="cut short"),
        pytest.param(b"\x00\x00\x00\x05" + bytes(5), "in a file of 9", id="too long"),
    ],
)
async def test_a_malformed_safetensors_file_is_refused_by_its_name(
    origin: HTTPOrigin, site: _Site, data: bytes, why: str
) -> None:
    site.put("", _listing("sub/"), HTML)
    site.put("sub/", _listing("bad.safetensors"), HTML)
    site.put("sub/bad.safetensors", data)

    with pytest.raises(HeaderError) as caught:
        await origin.resolve(site.ref)

    assert "/m/sub/bad.safetensors" in explain(caught.value)
    assert why in explain(caught.value)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"{}", ManifestError),
        (b"garbage", ManifestError),
        (
            b'{"files":[],"format":"damselfly-manifest/9","requires":[]}',
            UnsupportedFormatError,
        ),
    ],
)
async def test_a_manifest_that_cannot_be_read_is_not_passed_over(
    origin: HTTPOrigin, site: _Site, data: bytes, kind: type[DamselflyError]
) -> None:
    site.put("", _listing("config.json", "damselfly-manifest.json"), HTML)
    site.put("config.json", b"{}")
    site.put("damselfly-manifest.json", data, "application/json")

    with pytest.raises(kind, match=r"damselfly-manifest\.json at http"):
        await origin.resolve(site.ref)


async def test_a_pushed_directory_costs_one_request(origin: HTTPOrigin, site: _Site) -> None:
    manifest = b'{"files":[],"format":"damselfly-manifest/1","requires":[]}'
    site.put("damselfly-manifest.json", manifest, "application/json")

    resolved = await origin.resolve(site.ref)

    assert resolved.manifest is not None
    assert site.asked == ["GET /m/damselfly-manifest.json"]
