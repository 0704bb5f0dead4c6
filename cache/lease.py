"""The folder of leases. `model/lease.py` has their format, and the rules for who makes one."""

from damselfly.cache.directory import Directory
from damselfly.errors import DamselflyError
from damselfly.model.digest import Digest
from damselfly.model.lease import LEASE_BYTES_MAX, Lease, check_lease_id, encode, parse


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
        return parse(name, folder.read(name, LEASE_BYTES_MAX))
    except (OSError, DamselflyError):
        return Lease(name, None)
