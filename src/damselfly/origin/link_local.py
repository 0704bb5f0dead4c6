"""Addresses where no model lives: link-local ones, and those of clouds' metadata services.

A ref comes from whoever writes a pod, and the agent reads it with the node's network. What answers
on 169.254.169.254 gives the node's own credentials to whoever asks from there, so no ref, no name
and no redirect may lead us to it. A proxy that the environment names resolves names itself: what
it can reach is for its own rules to say.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address

from damselfly.errors import OriginDeniedError

METADATA = frozenset(
    {
        ip_address("fd00:ec2::254"),  # EC2's instance metadata over IPv6
        ip_address("fd20:ce::254"),  # Compute Engine's
        ip_address("100.100.100.200"),  # Alibaba Cloud's
    }
)
"""Metadata services that are not link-local, as their clouds document them."""


def is_forbidden(address: str) -> bool:
    """Whether an address is one where no model lives; what is no address is not."""
    try:
        found: IPv4Address | IPv6Address = ip_address(address)
    except ValueError:
        return False
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped  # ::ffff:169.254.169.254 reaches the same machine.
    return found.is_link_local or found in METADATA


def denied(host: str, address: str) -> OriginDeniedError:
    """Say that `host`, which is at `address`, is asked for nothing, and why."""
    where = host if host == address else f"{host} is {address}, which"
    return OriginDeniedError(
        f"{where} is a link-local or metadata address: no model lives there, but what gives out the"
        " node's own credentials does"
    )
