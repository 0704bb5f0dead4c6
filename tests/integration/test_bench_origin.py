"""The origin of demo and benchmarks: plain HTTP, an honest count, and failures on demand."""

import http.client
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bench.agents import Fleet, OriginServer, free_addresses
from damselfly.origin.listing import Entry, parse_listing

DATA = bytes(range(256)) * 40

Serve = Callable[..., OriginServer]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    (root / "data.bin").write_bytes(DATA)
    (root / "empty").touch()
    (root / "folder" / "a b&c.json").write_text("{}")
    with Fleet(tmp_path / "fleet") as fleet:
        (address,) = free_addresses(1)
        yield lambda *options: fleet.start_origin(root, address, *options)


Answer = tuple[int, dict[str, str], bytes]


def ask(origin: OriginServer, target: str, method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection(urlsplit(origin.url).netloc, timeout=10)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, target, headers=named)
        answer = connection.getresponse()
        fields = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, fields, answer.read()
    finally:
        connection.close()


def test_a_file_comes_whole_with_its_tag(serve: Serve) -> None:
    status, headers, body = ask(serve(), "/data.bin")

    assert (status, body) == (200, DATA)
    assert headers["etag"].startswith('"')
    assert headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("asked", "span"),
    [
        ("bytes=0-9", (0, 10)),
        ("bytes=100-", (100, len(DATA))),
        ("bytes=-7", (len(DATA) - 7, len(DATA))),
        (f"bytes=0-{len(DATA) - 1}", (0, len(DATA))),
        ("bytes=10000-99999999", (10000, len(DATA))),
    ],
)
def test_a_range_comes_as_asked(serve: Serve, asked: str, span: tuple[int, int]) -> None:
    status, headers, body = ask(serve(), "/data.bin", Range=asked)

    assert (status, body) == (206, DATA[slice(*span)])
    assert headers["content-range"] == f"bytes {span[0]}-{span[1] - 1}/{len(DATA)}"


def test_a_range_past_the_end_is_refused(serve: Serve) -> None:
    status, headers, _ = ask(serve(), "/data.bin", Range=f"bytes={len(DATA)}-")

    assert status == 416
    assert headers["content-range"] == f"bytes */{len(DATA)}"


def test_a_range_of_another_version_is_not_answered_with_this_one(serve: Serve) -> None:
    origin = serve()

    whole, _, body = ask(origin, "/data.bin", Range="bytes=0-9", If_Range='"old"')
    refused, _, _ = ask(origin, "/data.bin", Range="bytes=0-9", If_Match='"old"')

    assert (whole, body) == (200, DATA)
    assert refused == 412


def test_a_head_says_how_long_and_sends_nothing(serve: Serve) -> None:
    origin = serve()

    status, headers, body = ask(origin, "/data.bin", "HEAD")

    assert (status, body) == (200, b"")
    assert headers["content-length"] == str(len(DATA))
    assert origin.bytes_sent() == 0


def test_listings_are_what_our_own_reader_takes_for_listings(serve: Serve) -> None:
    origin = serve()

    top = parse_listing(ask(origin, "/")[2].decode(), origin.url)
    below = parse_listing(ask(origin, "/folder/")[2].decode(), origin.url + "folder/")

    assert top == [Entry("data.bin", False), Entry("empty", False), Entry("folder", True)]
    assert below == [Entry("a b&c.json", False)]
    assert ask(origin, "/folder/a%20b%26c.json")[2] == b"{}"


@pytest.mark.parametrize("target", ["/nothing", "/../fleet/origin.log", "/%2e%2e/fleet/origin.log"])
def test_what_is_not_below_the_root_is_not_there(serve: Serve, target: str) -> None:
    assert ask(serve(), target)[0] == 404


def test_every_byte_of_every_body_is_counted(serve: Serve) -> None:
    origin = serve()

    ask(origin, "/data.bin")
    ask(origin, "/data.bin", Range="bytes=0-99")
    listing = ask(origin, "/")[2]
    ask(origin, "/empty")
    stats = origin.stats()

    assert stats["bytes"] == len(DATA) + 100 + len(listing)
    assert stats["bytes_by_path"]["/data.bin"] == len(DATA) + 100
    assert stats["requests_by_path"] == {"/data.bin": 2, "/": 1, "/empty": 1}
    assert stats["connections"] == 4


def test_a_connection_serves_many_requests(serve: Serve) -> None:
    connection = http.client.HTTPConnection(urlsplit(serve().url).netloc, timeout=10)

    bodies: list[bytes] = []
    for start in range(3):
        connection.request("GET", "/data.bin", headers={"Range": f"bytes={start}-{start}"})
        bodies.append(connection.getresponse().read())
    connection.close()

    assert bodies == [b"\x00", b"\x01", b"\x02"]


def test_an_overloaded_origin_says_later_and_recovers(serve: Serve) -> None:
    origin = serve("--fail", "429", "--fail-count", "2")

    answers = [ask(origin, "/data.bin") for _ in range(3)]

    assert [status for status, _, _ in answers] == [429, 429, 200]
    assert answers[0][1]["retry-after"] == "1"


def test_a_truncating_origin_breaks_off_and_recovers(serve: Serve) -> None:
    origin = serve("--fail", "truncated", "--fail-count", "1")

    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(origin, "/data.bin")

    assert len(caught.value.partial) == len(DATA) // 2
    assert ask(origin, "/data.bin")[2] == DATA


def test_a_changing_origin_has_another_tag_once_half_is_sent(serve: Serve) -> None:
    origin = serve("--fail", "changed")

    before = ask(origin, "/data.bin", Range=f"bytes=0-{len(DATA) // 2}")
    after = ask(origin, "/data.bin", Range="bytes=0-9")
    refused = ask(origin, "/data.bin", Range="bytes=0-9", If_Match=before[1]["etag"])

    assert before[0] == 206
    assert after[1]["etag"] != before[1]["etag"]
    assert refused[0] == 412


def test_a_denying_origin_denies(serve: Serve) -> None:
    assert ask(serve("--fail", "denied"), "/data.bin")[0] == 403
