"""What an agent asks of another when nodes are warmed: pull this, and keep it.

Pure values with their JSON form, strict at the door. An order is idempotent: given again, it joins
what it began. It names the boot of whoever gives it, so that an agent that asks itself, by an
address that it does not go by, finds that out.
"""

import re
from dataclasses import dataclass
from typing import Final

from damselfly.model.digest import Digest
from damselfly.p2p.fields import Fields, checked_text, written
from damselfly.p2p.messages import BOOT_PATTERN

ORDER_BYTES_MAX: Final = 256 * 1024
GLOBS_MAX: Final = 64
TTL_S_MAX: Final = 10 * 365 * 86400.0
"""A lease of more than ten years means a pin."""

_REF = re.compile(r"[^\s\x00-\x1f\x7f]{1,4096}")
_GLOB = re.compile(r"[^\x00-\x1f\x7f]{1,1024}")


@dataclass(frozen=True, kw_only=True)
class Order:
    """Pull `ref`, or what the globs choose of it; then pin it, or lease it for `ttl_s`."""

    ref: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    pin: bool = False
    ttl_s: float | None = None

    @property
    def lease_id(self) -> str:
        """The lease that keeps what was ordered: the same for the same ref and filters."""
        text = written({"ref": self.ref, "include": self.include, "exclude": self.exclude})
        return f"warm-{Digest.of(text).hex}"

    def to_json(self, boot: str) -> bytes:
        """What is sent; `boot` is that of the agent that gives the order."""
        value: dict[str, object] = {
            "boot": boot,
            "ref": self.ref,
            "include": self.include,
            "exclude": self.exclude,
            "pin": self.pin,
        }
        if self.ttl_s is not None:
            value["ttl_s"] = self.ttl_s
        return written(value)

    @classmethod
    def parse(cls, data: bytes) -> "tuple[Order, str]":
        """Read an order, and the boot of who gives it.

        Raises:
            RemoteProtocolError: it is none.
        """
        fields = Fields.parse("an order", data, ORDER_BYTES_MAX)

        def glob(value: object) -> str:
            return checked_text(value, _GLOB, "an order has a bad glob")

        order = cls(
            ref=fields.text("ref", _REF),
            include=fields.items("include", GLOBS_MAX, glob),
            exclude=fields.items("exclude", GLOBS_MAX, glob),
            pin=fields.flag("pin"),
            ttl_s=fields.number("ttl_s", 0.001, TTL_S_MAX) if fields.has("ttl_s") else None,
        )
        return order, fields.text("boot", BOOT_PATTERN)
