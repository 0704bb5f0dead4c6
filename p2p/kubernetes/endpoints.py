"""What one EndpointSlice of Kubernetes says: the addresses of agents, and their nodes. Pure.

Every endpoint counts, whatever its conditions, because greeting is what tells who is there:

- *terminating*: an agent that drains still serves what others wait for; once it is gone its
  connections are refused, and that is noticed sooner than a slice is written.
- *not ready*: an agent is ready once it has met the others. If only ready ones were listed, those
  that start together would never meet.
- *not serving*: a greeting that fails costs nothing but itself.

The port is the one named `peers`, else the only one. Of an endpoint's addresses the first counts:
no meaning is defined for the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self

from damselfly.errors import RemoteProtocolError
from damselfly.p2p.kubernetes.names import NAME_LENGTH_MAX
from damselfly.p2p.kubernetes.objects import items_of, name_of, object_of, version_of

PORT_NAME = "peers"
ENDPOINTS_MAX = 1000
"""What Kubernetes itself allows in one slice."""
ADDRESS_TYPES = ("IPv4", "IPv6")
"""`FQDN` is left out: no controller of Kubernetes writes it, and it is deprecated."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address of one pod."""

    address: str
    """`host:port`, or `[v6]:port`."""
    node: str = ""
    """The name of its node; empty when the slice does not say."""
    pod: str = ""
    """The pod's uid; on dual-stack Services two endpoints have the same."""

    @property
    def is_ipv6(self) -> bool:
        """Its address is an IPv6 address."""
        return self.address.startswith("[")


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """A slice, as far as it concerns us."""

    name: str
    version: str
    """Its `resourceVersion`: from here a watch goes on."""
    endpoints: tuple[Endpoint, ...] = ()
    problem: str = ""
    """Why it lists nobody although it has endpoints; for people."""

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read the JSON object of a slice. An endpoint without a usable address is left out.

        Raises:
            RemoteProtocolError: it is no slice.
        """
        fields = object_of(value)
        name, version = name_of(fields), version_of(fields)
        entries = items_of(fields.get("endpoints"))
        if len(entries) > ENDPOINTS_MAX:
            raise RemoteProtocolError(f"the EndpointSlice {name} has {len(entries)} endpoints")
        if fields.get("addressType") not in ADDRESS_TYPES:
            return cls(name, version, problem="its addresses are neither IPv4 nor IPv6")
        port = _port(items_of(fields.get("ports")))
        if port is None:
            return cls(
                name, version, problem=f"it has no port named {PORT_NAME!r}, nor a single one"
            )
        found = (_endpoint(entry, port) for entry in entries)
        return cls(name, version, tuple(each for each in found if each is not None))


def _endpoint(entry: object, port: int) -> Endpoint | None:
    fields = object_of(entry)
    addresses = items_of(fields.get("addresses"))
    try:
        host = ip_address(addresses[0]) if addresses and isinstance(addresses[0], str) else None
    except ValueError:
        return None
    if host is None or "%" in str(host):
        return None
    target = fields.get("targetRef")
    pod = object_of(target).get("uid") if target is not None else None
    node = fields.get("nodeName")
    return Endpoint(
        f"[{host}]:{port}" if host.version == 6 else f"{host}:{port}",
        node if isinstance(node, str) and len(node) <= NAME_LENGTH_MAX else "",
        pod if isinstance(pod, str) and len(pod) <= NAME_LENGTH_MAX else "",
    )


def _port(entries: Sequence[object]) -> int | None:
    ports = [object_of(entry) for entry in entries]
    named = [port for port in ports if port.get("name") == PORT_NAME]
    chosen = named or ports
    number = chosen[0].get("port") if len(chosen) == 1 else None
    if not isinstance(number, int) or isinstance(number, bool) or not 0 < number < 65536:
        return None
    return number
