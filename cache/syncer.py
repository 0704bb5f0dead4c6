"""Durability, off the path of a write: chunks are marked once they are on disk for good.

A commit survives kill -9 without any of this. For a power cut, a thread writes the files back
(`fdatasync`) every 256 MiB or 2 s, then clears the chunks' rows in `unsynced`, then checkpoints the
catalog, which makes these and all earlier commits durable. Commits without chunks (a lease touches
its artifact, a ref is remembered) are checkpointed every 2 s too: nothing else would end the log.
After a power cut (another boot id) whatever is still in `unsynced` is re-hashed, not refetched.
"""

import logging
import os
import threading
from collections.abc import Mapping, Sequence

from damselfly.cache import disk
from damselfly.cache.files import Files
from damselfly.cache.limits import Limits
from damselfly.errors import DamselflyError, explain

logger = logging.getLogger(__name__)


class Syncer:
    """A thread. `note` from any thread, `flush` to wait until all that was noted is durable."""

    def __init__(self, files: Files, limits: Limits) -> None:
        self._files = files
        self._limits = limits
        self._changed = threading.Condition()
        self._noted: dict[int, list[int]] = {}
        self._noted_bytes = 0
        self._is_stopping = False
        self._pass = threading.Lock()  # One pass at a time.
        self._thread = threading.Thread(target=self._run, name="store-syncer", daemon=True)

    def start(self, unsynced: dict[int, list[int]]) -> None:
        """Begin, with what an earlier run left."""
        self._noted = unsynced
        self._thread.start()

    def stop(self, *, flush: bool) -> None:
        """End the thread; with `flush`, after a last pass."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()
        if flush:
            self.flush()

    def note(self, file: int, number: int | None, length: int) -> None:
        """A chunk (or with None, the file as such) is new on disk."""
        with self._changed:
            numbers = self._noted.setdefault(file, [])
            if number is not None:
                numbers.append(number)
            was_due = self._is_due()
            self._noted_bytes += length
            if not was_due and (self._is_due() or len(self._noted) == 1):
                self._changed.notify()

    def _is_due(self) -> bool:
        return self._noted_bytes >= self._limits.sync_bytes

    def _run(self) -> None:
        while True:
            with self._changed:
                interval_s = self._limits.sync_interval_s
                if self._changed.wait_for(lambda: self._noted or self._is_stopping, interval_s):
                    self._changed.wait_for(lambda: self._is_due() or self._is_stopping, interval_s)
                if self._is_stopping:
                    return
            try:
                self.flush()
            except DamselflyError as exc:
                logger.warning("store.unsynced", extra={"error": explain(exc)})

    def flush(self) -> None:
        """Make everything that was noted durable.

        Raises:
            IntegrityError: the disk could not.
        """
        catalog = self._files.catalog
        with self._pass:
            with self._changed:
                noted, self._noted, self._noted_bytes = self._noted, {}, 0
            try:
                self._write_back(noted)
            except BaseException:
                with self._changed:  # Not their bytes: it is tried again later, not at once.
                    for file, numbers in noted.items():
                        self._noted.setdefault(file, []).extend(numbers)
                raise
            if catalog.is_dirty:
                catalog.checkpoint()

    def _write_back(self, noted: Mapping[int, Sequence[int]]) -> None:
        if not noted:
            return
        with disk.disk_errors("writing chunks back to disk"):
            synced = [file for file in noted if self._sync_file(file)]
            os.fsync(self._files.partial.fd)
            os.fsync(self._files.files.fd)
        with self._files.catalog.change() as change:
            for file in synced:
                change.set_synced(file, noted[file])

    def _sync_file(self, file: int) -> bool:
        try:
            row, fd = self._files.open_by_id(file)
        except FileNotFoundError:
            return False  # Evicted meanwhile, or lost.
        try:
            # `fsync`, not `fdatasync`, once it is placed: its mtime is compared after a power cut.
            (os.fsync if row.is_placed else os.fdatasync)(fd)
        finally:
            os.close(fd)
        return True
