"""Do strangers understand our server? curl, nghttp and h2load, as Debian ships them."""

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from damselfly.p2p.transport import Limits, PeerServer
from tests.fakes.peers import Library, serving, until

CONTENT = os.urandom(1 << 20) * 4


@pytest.fixture
def library() -> Iterator[Library]:
    with Library(CONTENT) as library:
        yield library
        assert library.opened == library.closed


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


async def run(*command: str) -> tuple[int, bytes, str]:
    """Run a program; give its exit code and what it said."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    return process.returncode or 0, out, err.decode(errors="replace")


def plain(out: bytes) -> str:
    """Take nghttp's colours away."""
    return re.sub(r"\x1b\[[0-9;]*m", "", out.decode())


def url(server: PeerServer, path: str) -> str:
    return f"http://127.0.0.1:{server.port}{path}"


CURL = ("curl", "--silent", "--show-error", "--http2-prior-knowledge")


@needs("curl")
async def test_curl_fetches_a_chunk(library: Library) -> None:
    async with serving(library) as server:
        code, out, err = await run(*CURL, url(server, "/file?start=4096&stop=4194304"))

    assert (code, err) == (0, "")
    assert hashlib.sha256(out).digest() == hashlib.sha256(CONTENT[4096:]).digest()


@needs("curl")
async def test_curl_fetches_many_at_once(library: Library, tmp_path: Path) -> None:
    async with serving(library) as server:
        code, _, err = await run(
            *CURL,
            # curl 7.88 cannot use a prior-knowledge connection twice (its issue 10634).
            *("--parallel", "--parallel-immediate", "--no-progress-meter"),
            "--output",
            str(tmp_path / "#1"),
            url(server, "/file?start=[0-20]&stop=1000000"),
        )

        assert (code, err) == (0, "")
    for start in range(21):
        assert (tmp_path / str(start)).read_bytes() == CONTENT[start:1_000_000]


@needs("curl")
@pytest.mark.parametrize("length", [5, 100_000, 3 << 20])
async def test_curl_posts_a_body(length: int, library: Library, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(CONTENT[:length])
    async with serving(library) as server:
        code, out, err = await run(
            *CURL, "--data-binary", f"@{body}", "--header", "expect:", url(server, "/echo")
        )

    assert (code, err) == (0, "")
    assert out == CONTENT[:length]


@needs("nghttp")
async def test_nghttp_hears_that_its_body_is_too_large(library: Library, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(CONTENT)
    async with serving(library, Limits(request_bytes_max=10_000)) as server:
        code, out, _ = await run("nghttp", "-nv", "--data", str(body), url(server, "/echo"))

    assert code == 0
    assert ":status: 413" in plain(out)
    assert "error_code=NO_ERROR(0x00)" in plain(out)


@needs("curl")
async def test_curl_asks_for_headers_only(library: Library) -> None:
    async with serving(library) as server:
        code, out, _ = await run(*CURL, "--head", url(server, "/file"))

    assert code == 0
    assert out.startswith(b"HTTP/2 200")
    assert f"content-length: {len(CONTENT)}".encode() in out


@needs("curl")
async def test_curl_reads_lines_as_they_come_and_hangs_up(library: Library) -> None:
    async with serving(library) as server:
        process = await asyncio.create_subprocess_exec(
            *CURL,
            "--no-buffer",
            url(server, "/lines?count=2&hang=1"),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(20):
            lines = [await process.stdout.readline() for _ in range(2)]
        process.terminate()
        await process.communicate()

        assert lines == [b'{"line":0}\n', b'{"line":1}\n']
        await until(lambda: library.closed == 1)
        await until(lambda: server.connection_count == 0)
    library.closed = 0


@needs("curl")
async def test_a_curl_that_speaks_http_1_is_sent_away(library: Library) -> None:
    async with serving(library) as server:
        code, _, _ = await run("curl", "--silent", "--http1.1", url(server, "/file"))

        assert code != 0
        await until(lambda: server.connection_count == 0)


@needs("nghttp")
@pytest.mark.parametrize(
    "options", [(), ("--window-bits=16",), ("-w", "10", "-W", "10"), ("-b", "50")]
)
async def test_nghttp_fetches_a_chunk(options: tuple[str, ...], library: Library) -> None:
    async with serving(library) as server:
        code, out, err = await run("nghttp", *options, url(server, "/file?start=7"))

    assert (code, err) == (0, "")
    assert out == CONTENT[7:]


@needs("nghttp")
async def test_nghttp_posts_a_padded_body_with_trailers(library: Library, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(CONTENT[:300_000])
    async with serving(library) as server:
        code, out, _ = await run(
            *("nghttp", "--padding=100", "--trailer", "x-sum: 1", "--data", str(body)),
            *("--header", "x-long: " + "a" * 9000, url(server, "/echo")),
        )

    assert code == 0
    assert out == CONTENT[:300_000]


@needs("nghttp")
async def test_nghttp_sees_the_frames_it_expects(library: Library) -> None:
    async with serving(library) as server:
        code, out, _ = await run("nghttp", "-nv", url(server, "/file?stop=100000"))

    said = plain(out)
    assert code == 0
    assert "recv SETTINGS frame" in said
    assert "recv (stream_id=13) :status: 200" in said
    assert "recv DATA frame <length=16384" in said
    assert "INVALID" not in said


@needs("h2load")
@pytest.mark.parametrize(
    ("path", "requests", "options"),
    [
        ("/file?stop=1000", 2000, ("-c", "10", "-m", "50")),
        ("/file", 60, ("-c", "4", "-m", "8")),
        ("/file?stop=300000", 20, ("-c", "2", "-m", "8", "-w", "12", "-W", "14")),
        ("/lines?count=20", 200, ("-c", "4", "-m", "20")),
    ],
)
async def test_h2load_gets_everything_it_asks_for(
    path: str, requests: int, options: tuple[str, ...], library: Library
) -> None:
    async with serving(library) as server:
        code, out, err = await run("h2load", "-n", str(requests), *options, url(server, path))

        said = out.decode()
        assert code == 0, err
        assert f"{requests} succeeded, 0 failed, 0 errored, 0 timeout" in said, said
        assert f"{requests} 2xx" in said
        await until(lambda: server.connection_count == 0)
    assert library.begun == requests
