"""The driver's leases in the agent's store: files, so that they go while the agent is away.

The store belongs to the agent's user, who could put a link in our way: every step is taken from
directory to directory, and what we make gets the owner of the directory it is in.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from damselfly.csi.places import folder_below, through
from damselfly.csi.status import PreconditionError
from damselfly.errors import UsageError
from damselfly.model.digest import Digest
from damselfly.model.lease import FOLDER, check_lease_id, encode

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER_MODE = 0o755
_FILE_MODE = 0o644


class Leases:
    """The leases in one store. Nothing is remembered: each question reads the disk."""

    def __init__(self, store: Path) -> None:
        self._store = store

    def hold(self, artifact: Digest, lease_id: str, now_ns: int) -> None:
        """Make a lease without an end, if it is not there; it is on the disk when this returns.

        Raises:
            OSError: It cannot be made.
        """
        check_lease_id(lease_id)
        with folder_below(self._store, self._store / FOLDER) as leases:
            _make_folder(leases, artifact.hex)
        with folder_below(self._store, self._store / FOLDER / artifact.hex) as folder:
            with suppress(FileNotFoundError):
                os.stat(lease_id, dir_fd=folder, follow_symlinks=False)
                return
            unfinished = f".{lease_id}"
            with suppress(FileNotFoundError):
                os.unlink(unfinished, dir_fd=folder)
            file = os.open(unfinished, _NEW, _FILE_MODE, dir_fd=folder)
            try:
                owner = os.stat(folder)
                os.fchown(file, owner.st_uid, owner.st_gid)
                os.write(file, encode(None, now_ns))
                os.fsync(file)
            finally:
                os.close(file)
            os.rename(unfinished, lease_id, src_dir_fd=folder, dst_dir_fd=folder)
            _sync(folder)

    def release(self, artifact: Digest, lease_id: str) -> bool:
        """Remove a lease; False: there was none, or no such store any more.

        Raises:
            OSError: It is there and cannot be removed.
        """
        check_lease_id(lease_id)
        try:
            with folder_below(self._store, self._store / FOLDER / artifact.hex) as folder:
                os.unlink(lease_id, dir_fd=folder)
        except (FileNotFoundError, PreconditionError):
            return False
        return True

    def release_everywhere(self, lease_id: str) -> int:
        """Remove a lease of which it is not known what it holds; returns how many there were."""
        return sum(
            self.release(artifact, lease_id)
            for artifact, found in self.beginning_with(lease_id)
            if found == lease_id
        )

    def beginning_with(self, prefix: str) -> list[tuple[Digest, str]]:
        """Every lease whose id begins so, with what it holds."""
        return list(self._beginning_with(prefix))

    def _beginning_with(self, prefix: str) -> Iterator[tuple[Digest, str]]:
        for name in self._names(self._store / FOLDER):
            try:
                artifact = Digest.parse(f"blake3:{name}")
            except UsageError:
                continue
            for lease_id in self._names(self._store / FOLDER / name):
                if lease_id.startswith(prefix):
                    yield artifact, lease_id

    def _names(self, path: Path) -> list[str]:
        with suppress(OSError, PreconditionError), folder_below(self._store, path) as folder:
            return sorted(os.listdir(through(folder)))
        return []


def _make_folder(parent: int, name: str) -> None:
    """Make a directory with its parent's owner, if it is not there."""
    with suppress(FileExistsError):
        os.mkdir(name, _FOLDER_MODE, dir_fd=parent)
        owner = os.stat(parent)
        os.chown(name, owner.st_uid, owner.st_gid, dir_fd=parent, follow_symlinks=False)
        _sync(parent)


def _sync(folder: int) -> None:
    """See that the names in a directory are on the disk."""
    # Ours cannot be asked for that: it was opened as a place to go on from, and no more.
    readable = os.open(through(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(readable)
    finally:
        os.close(readable)
