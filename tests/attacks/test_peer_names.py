"""Names of agents that no agent has: whoever says them harms nobody."""

import pytest

from damselfly.errors import PeerUnavailableError, RemoteProtocolError
from damselfly.p2p.messages import AGENT_PATTERN
from damselfly.p2p.refs import RefReply
from damselfly.p2p.transport import PeerPool

UNREACHABLE = [
    "x:99999",
    "a..b:80",
    ".a:80",
    f"{'a' * 64}.example:80",
    "[:::::]:80",
    "[::1:80",
    "h:",
    ":80",
    "h:0",
    "h\u00f6st..x:80",
    "h:80:80",
]
STRANGE = [name for name in UNREACHABLE if name not in {"[:::::]:80", "h:0"}] + [
    f"{'a.' * 127}a:80",
    "h:080",
    "h:-1",
    "h:٣",
    "h:80\n",
    "h/x:80",
    "u@h:80",
]


@pytest.mark.parametrize("name", STRANGE)
def test_a_name_that_no_agent_has_is_refused(name: str) -> None:
    assert not AGENT_PATTERN.fullmatch(name)
    with pytest.raises(RemoteProtocolError):
        RefReply.parse(RefReply(holders=(name,)).to_json())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["h:1", "h:65535", "node-1.Zone_a.example.:7460", "10.0.0.1:80", "[fd00::1]:80"]
)
def test_a_name_that_agents_have_is_taken(name: str) -> None:
    assert AGENT_PATTERN.fullmatch(name)


@pytest.mark.parametrize("name", UNREACHABLE)
async def test_dialling_what_is_no_address_is_a_peer_that_is_not_there(name: str) -> None:
    pool = PeerPool()
    try:
        with pytest.raises(PeerUnavailableError):
            await pool.request(name, "GET", "/v1/hello", deadline_s=20)
    finally:
        await pool.close()
