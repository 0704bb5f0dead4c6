"""Names in Kubernetes that people give us: of a Service, of a node, a selector of nodes. Pure."""

import re
from dataclasses import dataclass
from typing import Self

from damselfly.errors import ConfigError, UsageError

NAME_LENGTH_MAX = 253
"""Of any name in Kubernetes: that of a DNS subdomain."""
_DNS_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_SERVICE = re.compile(rf"({_DNS_LABEL})/({_DNS_LABEL})", re.ASCII)
_NODE = re.compile(rf"{_DNS_LABEL}(?:\.{_DNS_LABEL})*", re.ASCII)
_LABEL_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_SELECTOR = re.compile(rf"(?:[a-z0-9.-]{{1,253}}/)?{_LABEL_PART}=(?:{_LABEL_PART})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class ServiceName:
    """A Service and its namespace."""

    namespace: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `NAMESPACE/SERVICE`.

        Raises:
            ConfigError: it is something else.
        """
        match = _SERVICE.fullmatch(text)
        if match is None:
            raise ConfigError(f"{text!r} is not a Service: expected NAMESPACE/SERVICE")
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def check_node_name(text: str) -> str:
    """Check the name of a node and return it.

    Raises:
        ConfigError: no node can be called so.
    """
    if len(text) > NAME_LENGTH_MAX or not _NODE.fullmatch(text):
        raise ConfigError(f"{text!r} is not the name of a node")
    return text


def check_selector(text: str) -> str:
    """Check `LABEL=VALUE` and return it.

    Kubernetes knows sets and negations too. They are left out: a typing error should not select
    every node.

    Raises:
        UsageError: it is something else.
    """
    if not _SELECTOR.fullmatch(text):
        raise UsageError(f"{text!r} is not a selector: expected LABEL=VALUE")
    return text
