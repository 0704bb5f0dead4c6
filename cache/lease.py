"""Leases: claims on disk space against eviction, each a small file.

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
from dataclasses import dataclass
from typing import cast

from damselfly.cache.directory import Directory
from damselfly.cache.layout import check_lease_id
from damselfly.errors import DamselflyError
from damselfly.model.digest import Digest

_LEASE_BYTES_MAX = 4096
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Lease:
    """One claim. `expires_ns` None: until it is removed."""

    id: str
    expires_ns: int | None

    def is_over(self, now_ns: int) -> bool:
        """It holds nothing any more."""
        return self.expires_ns is not None and self.expires_ns <= now_ns


def encode(expires_ns: int | None, created_ns: int) -> bytes:
    """The content of a lease's file."""
    fields = {"created_ns": created_ns, "expires_ns": expires_ns, "format": FORMAT}
    return json.dumps(fields, sort_keys=True).encode() + b"\n"


def parse(lease_id: str, data: bytes) -> Lease:
    """Read a lease's file; whatever cannot be understood holds for ever."""
    try:
        value: object = json.loads(data)
    except ValueError:
        return Lease(lease_id, None)
    if not isinstance(value, dict):
        return Lease(lease_id, None)
    fields = cast("dict[str, object]", value)
    expires_ns = fields.get("expires_ns")
    if isinstance(expires_ns, bool) or not isinstance(expires_ns, int):
        return Lease(lease_id, None)
    return Lease(lease_id, expires_ns)


class Leases:
    """The folder of leases. Nothing is remembered: each question reads the disk."""

    def __init__(self, folder: Directory) -> None:
        self._folder = folder

    def make(self, artifact: Digest, lease_id: str, expires_ns: int | None, now_ns: int) -> None:
        """Make or replace a lease.

        Raises:
            UsageError: the id cannot be a file's name.
        """
        check_lease_id(lease_id)
        with self._folder.make_folder(artifact.hex) as folder:
            folder.write(lease_id, encode(expires_ns, now_ns))

    def release(self, artifact: Digest, lease_id: str) -> bool:
        """Remove a lease; False: there was none."""
        check_lease_id(lease_id)
        try:
            with self._folder.folder(artifact.hex) as folder:
                return folder.remove(lease_id)
        except FileNotFoundError:
            return False

    def of(self, artifact: Digest, now_ns: int) -> tuple[Lease, ...]:
        """The leases that hold an artifact now."""
        try:
            folder = self._folder.folder(artifact.hex)
        except FileNotFoundError:
            return ()
        except OSError:
            return (Lease("an unreadable folder of leases", None),)
        with folder:
            found = [
                _read(folder, name) for name in sorted(folder.names()) if not name.startswith(".")
            ]
        return tuple(lease for lease in found if not lease.is_over(now_ns))

    def sweep(self, now_ns: int) -> int:
        """Remove expired leases, temporaries, and folders that are empty then; count the first."""
        count = 0
        for name in self._folder.names():
            try:
                folder = self._folder.folder(name)
            except OSError:
                self._folder.remove(name)  # Not a folder: nobody's lease.
                continue
            with folder:
                for lease_id in folder.names():
                    if lease_id.startswith("."):
                        folder.remove(lease_id)
                    elif _read(folder, lease_id).is_over(now_ns):
                        folder.remove(lease_id)
                        count += 1
            self._folder.remove_if_empty(name)
        return count


def _read(folder: Directory, name: str) -> Lease:
    try:
        return parse(name, folder.read(name, _LEASE_BYTES_MAX))
    except (OSError, DamselflyError):
        return Lease(name, None)
