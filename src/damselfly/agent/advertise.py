"""Which address peers are told when the agent listens on all of them."""

import socket

from damselfly.agent.settings import PeerList, Peers, is_wildcard
from damselfly.errors import ConfigError
from damselfly.p2p.address import join_address, split_address

# Addresses for documentation: nobody is there, so they mean the default route. Connecting a UDP
# socket chooses the route and sends nothing.
_SOMEWHERE = ("192.0.2.1", "2001:db8::1")


def derive_advertise(listen: str, peers: Peers) -> tuple[str, str]:
    """Find the address that peers are told, and how it was found.

    Raises:
        ConfigError: It cannot be known.
    """
    if not is_wildcard(listen):
        return listen, "as agent.listen"
    port = split_address(listen)[1]
    if isinstance(peers, PeerList):
        for address in sorted(peers.addresses):
            found = _route_to(split_address(address)[0])
            if found and not is_loopback(found):
                return join_address(found, port), f"the route to {address}"
    for somewhere in _SOMEWHERE:
        if found := _route_to(somewhere):
            return join_address(found, port), "the default route"
    if found := _address_of_own_name():
        return join_address(found, port), "the address of this machine's name"
    raise ConfigError(
        f"agent.listen is {listen}, which peers cannot connect to, and this machine has no route"
        " that tells its address: give --advertise HOST:PORT"
    )


def _route_to(host: str) -> str | None:
    """The local address that packets to `host` would carry."""
    try:
        entry = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(entry[0], socket.SOCK_DGRAM) as probe:
            probe.connect(entry[4])
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _address_of_own_name() -> str | None:
    try:
        entries = socket.getaddrinfo(socket.gethostname(), 9, type=socket.SOCK_DGRAM)
    except OSError:
        return None
    addresses = (str(entry[4][0]) for entry in entries)
    return next((address for address in addresses if not is_loopback(address)), None)


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address."""
    return address.startswith("127.") or address == "::1"
