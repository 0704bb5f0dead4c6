"""Every way to write an address of a metadata service leads nowhere; other addresses do."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from damselfly.errors import OriginDeniedError
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS
from damselfly.origin.link_local import is_forbidden
from damselfly.origin.port import OriginLimits
from damselfly.origin.web import Web
from tests.integration.origin_servers import reply, scripted

FORBIDDEN = [
    "169.254.169.254",
    "169.254.170.2",
    "169.254.169.254.",
    "2852039166",
    "0xa9fea9fe",
    "0XA9FEA9FE",
    "025177524776",
    "0251.0376.0251.0376",
    "0xa9.0xfe.0xa9.0xfe",
    "169.254.43518",
    "169.16689662",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fe80::1",
    "fe80::1%eth0",
    "[fe80::1%25eth0]",
    "fd00:ec2::254",
    "fd00:ec2::254%1",
    "FD00:EC2:0:0::254",
    "fd20:ce::254",
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "::ffff:168.63.129.16",
    "::169.254.169.254",
    "::ffff:0:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "2001:0:a9fe:a9fe::1",
    "2001::5601:5601",  # Teredo: its client's address is written inverted.
    "fd12::5efe:169.254.169.254",
]
ALLOWED = [
    "127.0.0.1",
    "10.0.0.1",
    "100.100.100.201",
    "8.8.8.8",
    "::1",
    "2001:db8::1",
    "64:ff9b::8.8.8.8",
    "2002:0808:0808::1",
    "models.example.com",
    "0x",
    "1.2.3.4.5",
    "999999999999",
    "a9fea9fe",
    "",
]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_no_spelling_of_a_metadata_service_is_asked(address: str) -> None:
    assert is_forbidden(address)


@pytest.mark.parametrize("address", ALLOWED)
def test_what_is_none_is_asked(address: str) -> None:
    assert not is_forbidden(address)


@pytest.fixture
async def web() -> AsyncGenerator[Web]:
    web = Web(OriginLimits(silence_s=2, connect_s=2))
    yield web
    await web.close()


HOSTS = [
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "169.254.43518",
    "[::ffff:169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "[2002:a9fe:a9fe::1]",
    "168.63.129.16",
]


@pytest.mark.parametrize("host", HOSTS)
async def test_a_ref_is_not_led_there(web: Web, host: str) -> None:
    ref = Ref.parse(f"http://{host}/latest/meta-data/")

    with pytest.raises(OriginDeniedError, match="no model lives there"):
        await asyncio.wait_for(web.measure(ref.location, ANONYMOUS), 5)


@pytest.mark.parametrize("host", [*HOSTS, "[fe80::1%25eth0]", "\uff11\uff16\uff19.254.169.254"])
async def test_a_redirect_is_not_followed_there(web: Web, host: str) -> None:
    async def answer(_: object) -> bytes:
        place = f"http://{host}/latest/meta-data/"
        return reply("302 Found").replace(b"Content-", f"Location: {place}\r\nContent-".encode(), 1)

    async with scripted(answer) as (address, lines):
        with pytest.raises(OriginDeniedError, match="no model lives there"):
            await asyncio.wait_for(web.measure(f"{address}/m", ANONYMOUS), 5)

    assert len(lines) == 1
