"""What is at a target, and the steps that change it. Blocking: for a worker's thread.

Publishing goes record, directory, mount, which is sealed from its first moment; taking away goes
mount, directory, lease, record. A crash anywhere leaves the record, by which either can be gone
through again.
"""

import errno
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from damselfly.clock import Clock
from damselfly.csi import mount
from damselfly.csi.leases import Leases
from damselfly.csi.mountinfo import MountLine, mounts_at
from damselfly.csi.places import folder_below, through
from damselfly.csi.publication import Facts, Mount, Publication
from damselfly.csi.records import Records
from damselfly.csi.sealing import Sealing
from damselfly.csi.status import CSIError, KernelError, PreconditionError, system_error
from damselfly.errors import UsageError
from damselfly.model.digest import Digest

logger = logging.getLogger(__name__)

TARGET_MODE = 0o750
TARGET_BYTES_MAX = 4096


class Targets:
    """Looks at targets and changes them. Any thread, one at a time for the same target."""

    def __init__(
        self,
        kubelet_root: Path,
        store: Path | None,
        records: Records[Publication],
        sealing: Sealing,
        clock: Clock,
    ) -> None:
        self._root = Path(os.path.realpath(kubelet_root))
        self._told_root = kubelet_root
        self._store = store
        self._records = records
        self._sealing = sealing
        self._clock = clock

    def check(self, target: str) -> str:
        """A target as it is called from here on: without links above the kubelet's directory.

        Raises:
            UsageError: It is no path below the kubelet's directory.
        """
        if not target:
            raise UsageError("target_path is missing")
        path = Path(os.path.normpath(target))
        if not path.is_absolute() or "\0" in target or len(os.fsencode(target)) > TARGET_BYTES_MAX:
            raise UsageError(f"target_path {target[:200]!r} is not an absolute path")
        for root in (self._told_root, self._root):
            if path.is_relative_to(root) and path != root:
                return str(self._root / path.relative_to(root))
        raise UsageError(
            f"target_path {target[:200]!r} is not below {self._told_root}: --kubelet-root says"
            " where the kubelet keeps its pods, and only what is mounted there is seen by them"
        )

    # --- looking ------------------------------------------------------------------------------

    def look(self, target: str, record: Publication | None, *, is_fresh: bool = False) -> Facts:
        """What is so at a target now."""
        mounted = self._mounted(target, mounts_at(mount.mount_table(), target), record)
        is_held = mounted is Mount.NONE and record is not None and self._is_held(record)
        return Facts(mount=mounted, record=record, is_fresh=is_fresh, is_held=is_held)

    def _mounted(self, target: str, lines: list[MountLine], record: Publication | None) -> Mount:
        if not lines:
            return Mount.NONE
        upper = lines[-1]
        try:
            seen = os.stat(target)
        except OSError as exc:
            return Mount.DEAD if exc.errno in mount.DEAD else Mount.FOREIGN
        if upper.is_gone:
            return Mount.DEAD
        if record is None:
            return Mount.FOREIGN
        if record.path:
            try:
                meant = os.stat(record.path)
            except OSError:
                # Not to be seen any more, but what is mounted is alive: rule 2.
                if not upper.root.endswith("/" + "/".join(Path(record.path).parts[-2:])):
                    return Mount.FOREIGN
            else:
                if (meant.st_dev, meant.st_ino) != (seen.st_dev, seen.st_ino):
                    return Mount.FOREIGN
        return Mount.WELL if upper.is_sealed else Mount.WRITABLE

    def _is_held(self, record: Publication) -> bool:
        if not record.path:
            return False
        try:
            with folder_below(self._store_of(record), Path(record.path)):
                return True
        except (OSError, CSIError):
            return False

    def _store_of(self, record: Publication) -> Path:
        """The store that a view lies in: the one we were told of, whatever the agent says."""
        if self._store is not None:
            return self._store
        return Path(record.store)

    # --- publishing ---------------------------------------------------------------------------

    def show(self, record: Publication, facts: Facts) -> None:
        """Lease, record, and mount if need be.

        A mount that can be written through gets a sealed one on top. Sealing it where it is would
        change our copy of it and not the host's, and to take it away first would show an empty
        directory to a container that starts just then.

        Raises:
            DamselflyError: It did not work; what was made is as it was left.
        """
        try:
            self._hold(record)
            if facts.is_fresh:
                self._records.put(record.lease, record)
            with self._parent(record.target) as (parent, name):
                if facts.mount is Mount.NONE:
                    self._mount(record, parent, name)
                elif facts.mount is not Mount.WELL:
                    with _opened(record.target, parent, name) as target:
                        self._sealing.show(target, target)
        except OSError as exc:
            raise system_error(
                f"mounting {record.path or 'the volume'} at {record.target}", exc
            ) from exc

    def _hold(self, record: Publication) -> None:
        # The lease first, then a look at the view (in `_mount`): an eviction looks in that order.
        if record.artifact:
            artifact = Digest.parse(record.artifact)
            Leases(self._store_of(record)).hold(artifact, record.lease, self._clock.wall_ns())

    def _mount(self, record: Publication, parent: int, name: str) -> None:
        with suppress(FileExistsError):
            os.mkdir(name, TARGET_MODE, dir_fd=parent)
        with _opened(record.target, parent, name) as target:
            if os.listdir(through(target)):
                raise PreconditionError(f"{record.target} is not empty: not hiding what is in it")
            with folder_below(self._store_of(record), Path(record.path)) as view:
                self._sealing.show(view, target)

    @contextmanager
    def _parent(self, target: str) -> Generator[tuple[int, str]]:
        """The directory that a target lies in, opened without following links, and its name."""
        path = Path(target)
        with folder_below(self._root, path.parent) as folder:
            yield folder, path.name

    # --- taking away --------------------------------------------------------------------------

    def clear(self, target: str) -> None:
        """Take away what is mounted at a target. The directory stays.

        Raises:
            CSIError: It cannot be taken away.
        """
        try:
            with self._parent(target) as (parent, name):
                mount.unmount_all(through(parent, name))
        except FileNotFoundError:
            pass
        except OSError as exc:
            raise system_error(f"unmounting {target}", exc) from exc

    def take_away(
        self, target: str, record: Publication | None, *, leaves_foreign: bool = False
    ) -> None:
        """Take away everything that a publish makes; what is not there is as well.

        What is at the target and not a publish's (a file, a directory that is not empty) is an
        error, unless it is to be left where it is.

        Raises:
            CSIError: Something could not be taken away; the record is still there.
        """
        try:
            self.clear(target)
            self._remove_folder(target)
        except (KernelError, PreconditionError):
            if not leaves_foreign or self._is_mounted(target):
                raise
        if record is not None:
            self.forget(record)

    def _remove_folder(self, target: str) -> None:
        try:
            with self._parent(target) as (parent, name):
                os.rmdir(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        except OSError as exc:
            raise system_error(f"removing the directory {target}", exc) from exc

    def _is_mounted(self, target: str) -> bool:
        return bool(mounts_at(mount.mount_table(), target))

    def forget(self, record: Publication) -> None:
        """Give the lease back and remove the record, in that order.

        Raises:
            CSIError: The record cannot be removed.
        """
        self.release(record)
        self._records.remove(record.lease)

    def release(self, record: Publication) -> None:
        """Give a lease back. If the store does not let us, a later sweep does it."""
        if not record.artifact:
            return
        try:
            Leases(self._store_of(record)).release(Digest.parse(record.artifact), record.lease)
        except (OSError, UsageError) as exc:
            logger.warning("lease.kept", extra={"lease": record.lease, "error": exc})


@contextmanager
def _opened(target: str, parent: int, name: str) -> Generator[int]:
    """A descriptor of a target: of the mount that is uppermost, if there is one."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        opened = os.open(name, flags, dir_fd=parent)
    except OSError as exc:
        if exc.errno in {errno.ELOOP, errno.ENOTDIR}:
            raise PreconditionError(f"{target} is a link or a file") from exc
        raise
    try:
        yield opened
    finally:
        os.close(opened)
