"""Addresses from files and names."""

from pathlib import Path

import pytest

from damselfly.errors import ConfigError
from damselfly.p2p.discovery import DNSPeers, FilePeers, check_address


async def test_a_peer_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "peers"
    path.write_text("10.0.0.1:7400  # the first\n\n10.0.0.2:7400\nnonsense\n")
    source = FilePeers(path)

    before = await source.addresses()
    path.write_text("10.0.0.3:7400\n")
    after = await source.addresses()

    assert before == {"10.0.0.1:7400", "10.0.0.2:7400"}
    assert after == {"10.0.0.3:7400"}


async def test_a_peer_file_that_vanishes_keeps_the_last_answer(tmp_path: Path) -> None:
    path = tmp_path / "peers"
    path.write_text("10.0.0.1:7400\n")
    source = FilePeers(path)
    await source.addresses()

    path.unlink()

    assert await source.addresses() == {"10.0.0.1:7400"}


async def test_a_name_becomes_addresses() -> None:
    assert "127.0.0.1:7400" in await DNSPeers("localhost", 7400).addresses()


@pytest.mark.parametrize("text", ["a:1", "10.0.0.1:65535", "[::1]:7400", "node-7.svc:7400"])
def test_addresses(text: str) -> None:
    assert check_address(text) == text


@pytest.mark.parametrize(
    "text", ["", "a", ":1", "a:", "a:x", "a:65536", "::1:7400", "u@a:1", "a b:1"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError):
        check_address(text)
