"""Addresses from files and names."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from damselfly.errors import ConfigError
from damselfly.p2p.address import check_address
from damselfly.p2p.discovery import DNSPeers, FilePeers, PeerSource
from damselfly.p2p.membership import MembershipLimits


async def first(source: PeerSource) -> frozenset[str]:
    async with asyncio.timeout(10), aclosing(source.changes()) as changes:
        return await anext(changes)


async def test_a_peer_file_has_comments_and_nonsense_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "peers"
    path.write_text("10.0.0.1:7400  # the first\n\n10.0.0.2:7400\nnonsense\n")

    assert await first(FilePeers(path)) == {"10.0.0.1:7400", "10.0.0.2:7400"}


async def test_a_peer_file_that_is_not_there_yet_lists_nobody_until_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "peers"
    async with aclosing(FilePeers(path, poll_interval_s=0.01).changes()) as changes:
        told = asyncio.ensure_future(anext(changes))
        await asyncio.wait({told}, timeout=0.1)
        is_silent = not told.done()

        path.write_text("10.0.0.1:7400\n")

        assert await asyncio.wait_for(told, 10) == {"10.0.0.1:7400"}
    assert is_silent
    assert [each.message for each in caplog.records] == ["peers.unreadable"]


async def test_a_name_becomes_addresses() -> None:
    assert "127.0.0.1:7400" in await first(DNSPeers("localhost", 7400))


async def test_a_name_that_nobody_has_yet_is_soon_looked_up_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    looked_s: list[float] = []

    async def getaddrinfo(host: str, port: int, **_: object) -> list[object]:
        looked_s.append(loop.time())
        if len(looked_s) < 3:
            raise OSError("no such name")
        return [(2, 1, 6, "", ("10.0.0.1", port))]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)

    listed = await first(DNSPeers("agents", 7400))

    assert listed == {"10.0.0.1:7400"}
    assert looked_s[-1] - looked_s[0] < MembershipLimits().youth_s


@pytest.mark.parametrize("text", ["a:1", "10.0.0.1:65535", "[::1]:7400", "node-7.svc:7400"])
def test_addresses(text: str) -> None:
    assert check_address(text) == text


@pytest.mark.parametrize(
    "text", ["", "a", ":1", "a:", "a:x", "a:65536", "::1:7400", "u@a:1", "a b:1"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError):
        check_address(text)
