"""What the driver remembers, one small JSON file each, written so that a crash leaves old or new.

They lie below the kubelet's directory: on the node's disk, which outlives every container.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from damselfly.client.record import Record
from damselfly.csi.status import system_error
from damselfly.errors import ConfigError, RemoteProtocolError

logger = logging.getLogger(__name__)

FORMAT = 1
RECORD_BYTES_MAX = 64 * 1024
_SUFFIX = ".json"

R = TypeVar("R", bound=Record)


class Records(Generic[R]):
    """A folder of records of one kind, by name. Used by one thread at a time per name."""

    def __init__(self, folder: Path, kind: type[R]) -> None:
        self._folder = folder
        self._kind = kind

    def open(self) -> dict[str, R]:
        """Make the folder if need be, and read every record. What cannot be read is left alone.

        Raises:
            ConfigError: The folder cannot be made or read.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return dict(self._read_all())
        except OSError as exc:
            raise ConfigError(f"reading the driver's records in {self._folder}") from exc

    def _read_all(self) -> Iterator[tuple[str, R]]:
        for path in sorted(self._folder.iterdir()):
            if path.is_dir():
                continue  # Records of another kind.
            if path.name.startswith("."):
                path.unlink()  # Never finished: whoever wrote it died.
                continue
            try:
                text = path.read_bytes()[:RECORD_BYTES_MAX]
                record = self._kind.parse(json.loads(text))
                if getattr(record, "format", FORMAT) != FORMAT:
                    raise RemoteProtocolError("written by a newer driver")
            except (OSError, ValueError, RemoteProtocolError) as exc:
                logger.warning("record.unreadable", extra={"path": str(path), "error": exc})
                continue
            yield path.name.removesuffix(_SUFFIX), record

    def put(self, name: str, record: R) -> None:
        """Write a record; when this returns it is on the disk.

        Raises:
            DamselflyError: It cannot be written; the old one is as it was.
        """
        unfinished = self._folder / f".{name}"
        try:
            with unfinished.open("wb") as file:
                file.write(json.dumps(record.to_json(), sort_keys=True).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(self._folder / f"{name}{_SUFFIX}")
            self._sync()
        except OSError as exc:
            with suppress(OSError):
                unfinished.unlink()
            raise system_error(f"writing the record {name}", exc) from exc

    def remove(self, name: str) -> None:
        """Remove a record; none there is as well.

        Raises:
            DamselflyError: It cannot be removed.
        """
        try:
            (self._folder / f"{name}{_SUFFIX}").unlink(missing_ok=True)
            self._sync()
        except OSError as exc:
            raise system_error(f"removing the record {name}", exc) from exc

    def _sync(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
