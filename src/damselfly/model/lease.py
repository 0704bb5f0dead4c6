"""Leases: claims on a store's disk space against eviction, each a small file. Pure: the format.

    leases/<artifact hex>/<lease id>      {"created_ns": ..., "expires_ns": null, "format": 1}

They are files, not rows, so that another process (the CSI driver) makes and removes them while the
agent is down. The rules for such a process:

1. Write the file under a name that starts with a dot, then rename it: other names are whole.
2. Make the lease *first*, then ask for the view, or look whether the view it was given is still
   there. An eviction reads the leases, forgets the artifact, then takes its views away: a lease
   that was there before is respected, and who made one too late finds no view.
3. Remove the file to give the lease back. `expires_ns` is wall time; what is past holds nothing.

A lease that cannot be read holds for ever: better a full disk than a pod without its files.
"""

import json
import re
from dataclasses import dataclass
from typing import cast

from damselfly.errors import UsageError
from damselfly.model.digest import Digest

FOLDER = "leases"
"""In the store's directory."""
FORMAT = 1
LEASE_BYTES_MAX = 4096

_LEASE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Lease:
    """One claim. `expires_ns` None: until it is removed."""

    id: str
    expires_ns: int | None

    def is_over(self, now_ns: int) -> bool:
        """It holds nothing any more."""
        return self.expires_ns is not None and self.expires_ns <= now_ns


def check_lease_id(lease_id: str) -> str:
    """Give the id back if it can be a file's name.

    Raises:
        UsageError: it has a slash, starts with a dot, is empty or too long.
    """
    if not _LEASE_ID.fullmatch(lease_id):
        raise UsageError(f"{lease_id[:80]!r} cannot name a lease: letters, digits, '_', '-', '.'")
    return lease_id


def lease_path(artifact: Digest, lease_id: str) -> str:
    """Where the lease of that id on an artifact lies, from the store's directory.

    Raises:
        UsageError: the id cannot be a file's name.
    """
    return f"{FOLDER}/{artifact.hex}/{check_lease_id(lease_id)}"


def encode(expires_ns: int | None, created_ns: int) -> bytes:
    """The content of a lease's file."""
    fields = {"created_ns": created_ns, "expires_ns": expires_ns, "format": FORMAT}
    return json.dumps(fields, sort_keys=True).encode() + b"\n"


def parse(lease_id: str, data: bytes) -> Lease:
    """Read a lease's file; whatever cannot be understood holds for ever."""
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError):
        return Lease(lease_id, None)
    if not isinstance(value, dict):
        return Lease(lease_id, None)
    fields = cast("dict[str, object]", value)
    expires_ns = fields.get("expires_ns")
    if isinstance(expires_ns, bool) or not isinstance(expires_ns, int):
        return Lease(lease_id, None)
    return Lease(lease_id, expires_ns)
