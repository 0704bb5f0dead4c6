"""Addresses where no model lives: link-local ones, and those of clouds' metadata services.

A ref comes from whoever writes a pod, and the agent reads it with the node's network. What answers
on 169.254.169.254 gives the node's own credentials to whoever asks from there, so no ref, no name
and no redirect may lead us to it, however it is written: as one number, in octal, inside of an IPv6
address that a gateway translates, or with the zone of an interface. A proxy that the environment
names resolves names itself: what it can reach is for its own rules to say.
"""

import re
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from damselfly.errors import OriginDeniedError

METADATA = frozenset(
    {
        ip_address("fd00:ec2::254"),  # EC2's instance metadata over IPv6
        ip_address("fd00:ec2::23"),  # EKS Pod Identity
        ip_address("fd20:ce::254"),  # Compute Engine's
        ip_address("fd00:42::42"),  # Scaleway's
        ip_address("100.100.100.200"),  # Alibaba Cloud's
        ip_address("168.63.129.16"),  # Azure's platform
        ip_address("192.0.0.192"),  # Oracle Cloud's, in its older regions
    }
)
"""Metadata services that are not link-local, as their clouds document them."""

_NUMBERS = re.compile(r"(?i)(?:0x[0-9a-f]*|[0-9]+)(?:\.(?:0x[0-9a-f]*|[0-9]+)){0,3}", re.ASCII)
_LAST_32 = (
    IPv6Network("64:ff9b::/96"),  # NAT64
    IPv6Network("64:ff9b:1::/48"),  # NAT64 of a network's own, with /96 as it is usual
    IPv6Network("::ffff:0:0:0/96"),  # SIIT
    IPv6Network("::/96"),  # what compatible addresses were
)
"""Networks whose addresses end in an IPv4 address, which is where they lead."""
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})


def is_forbidden(address: str) -> bool:
    """Whether an address is one where no model lives; what is no address is not."""
    found = _read(address)
    return found is not None and any(
        each.is_link_local or each in METADATA for each in _meant_by(found)
    )


def denied(host: str, address: str) -> OriginDeniedError:
    """Say that `host`, which is at `address`, is asked for nothing, and why."""
    where = host if host == address else f"{host} is {address}, which"
    return OriginDeniedError(
        f"{where} is a link-local or metadata address: no model lives there, but what gives out the"
        " node's own credentials does"
    )


def _read(text: str) -> IPv4Address | IPv6Address | None:
    """An address as any system call would understand it."""
    bare = text.removeprefix("[").removesuffix("]").partition("%")[0].rstrip(".")
    try:
        return ip_address(bare)
    except ValueError:
        pass
    if not _NUMBERS.fullmatch(bare):
        return None
    try:
        return IPv4Address(socket.inet_aton(bare))  # Octal, hexadecimal, and fewer than four parts.
    except OSError:
        return None


def _meant_by(address: IPv4Address | IPv6Address) -> Iterator[IPv4Address | IPv6Address]:
    """The address, and those inside of it that tunnels and gateways take out."""
    yield address
    if isinstance(address, IPv4Address):
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    number = int(address)
    is_isatap = number >> 32 & 0xFFFFFFFF in _ISATAP
    if is_isatap or any(address in network for network in _LAST_32):
        yield IPv4Address(number & 0xFFFFFFFF)
