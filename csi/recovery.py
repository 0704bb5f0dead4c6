"""What the driver finds when it starts: its records, the kernel's mounts, the kubelet's notes.

    record  mounted   the kubelet knows it
    yes     yes       -                     published, and left alone
    yes     no        yes                   a reboot: kept, for the publish that is about to come
    yes     no        no                    nobody's any more: taken away, with its lease
    no      yes       yes                   the record was lost: made again from what is mounted

The kubelet notes every volume in a `vol_data.json` beside its target, before it asks for it and
until it is gone. Leases that belong to no record are found by the first sweep.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from damselfly.clock import Clock
from damselfly.csi.mount import mount_table
from damselfly.csi.mountinfo import mounts_at, paths_of
from damselfly.csi.options import Options
from damselfly.csi.publication import Facts, Mount, Publication
from damselfly.csi.records import Records
from damselfly.csi.targets import Targets
from damselfly.csi.volume import lease_id
from damselfly.errors import DamselflyError, UsageError
from damselfly.model.digest import Digest

logger = logging.getLogger(__name__)

NOTE_BYTES_MAX = 64 * 1024
_VIEWS = "views"
"""The folder of views in a store: `views/<artifact>/<view>`."""
FILES_MAX = 100_000
"""Counted in a volume whose record was lost; a model has thousands at most."""


@dataclass(frozen=True, slots=True)
class Note:
    """A volume as the kubelet notes it."""

    volume_id: str
    target: str


def recover(
    options: Options, targets: Targets, records: Records[Publication], clock: Clock
) -> dict[str, Publication]:
    """Read what there is, mend what can be, and give the records that stand. Blocks.

    Raises:
        ConfigError: The records cannot be read.
    """
    found = records.open()
    notes = {note.target: note for note in kubelet_notes(options, targets)}
    kept: dict[str, Publication] = {}
    for name, record in found.items():
        try:
            if _stands(record, targets, is_known=record.target in notes):
                kept[name] = record
        except DamselflyError as exc:
            logger.warning("record.kept", extra={"target_path": record.target, "error": exc})
            kept[name] = record
    recorded = {record.target for record in kept.values()}
    for note in notes.values():
        if note.target not in recorded and (lost := _adopted(note, options, targets, clock)):
            kept[lost.lease] = lost
    return kept


def kubelet_notes(options: Options, targets: Targets) -> Iterator[Note]:
    """Every volume of ours that the kubelet has a note of."""
    pattern = "pods/*/volumes/kubernetes.io~csi/*/vol_data.json"
    for path in sorted(options.kubelet_root.glob(pattern)):
        try:
            told: object = json.loads(path.read_bytes()[:NOTE_BYTES_MAX])
            if not isinstance(told, dict):
                continue
            fields = cast("dict[str, object]", told)
            handle = fields.get("volumeHandle")
            if fields.get("driverName") == options.driver_name and isinstance(handle, str):
                yield Note(handle, targets.check(str(path.parent / "mount")))
        except (OSError, ValueError, UsageError) as exc:
            logger.warning("note.unreadable", extra={"path": str(path), "error": exc})


def _stands(record: Publication, targets: Targets, *, is_known: bool) -> bool:
    facts = targets.look(record.target, record)
    match facts.mount:
        case Mount.WELL:
            return True
        case Mount.WRITABLE:
            targets.show(record, facts)
            logger.warning("mount.sealed", extra={"target_path": record.target})
            return True
        case Mount.FOREIGN:
            # Not to be touched. The lease goes with the record, the mount is somebody else's.
            logger.warning("record.dropped", extra={"target_path": record.target})
            targets.forget(record)
            return False
        case Mount.NONE | Mount.DEAD if is_known:
            return True
        case Mount.NONE | Mount.DEAD:
            targets.take_away(record.target, record)
            logger.info("volume.dropped", extra={"target_path": record.target})
            return False


def _adopted(note: Note, options: Options, targets: Targets, clock: Clock) -> Publication | None:
    """The record of a mount that has lost its own; None: nothing is mounted there."""
    if targets.look(note.target, None).mount is not Mount.FOREIGN:
        return None
    try:
        place = _place_of(note, mount_table(), options.store)
    except (OSError, ValueError) as exc:  # Gone, or dead, since we looked.
        logger.warning("mount.unrecorded", extra={"target_path": note.target, "error": exc})
        return None
    count, size = _counted(note.target)
    record = Publication(
        volume_id=note.volume_id,
        target=note.target,
        lease=lease_id(options.driver_name, note.volume_id, note.target),
        bytes=size,
        files=count,
        published_ns=clock.wall_ns(),
    )
    if place is not None:
        record = record.but(
            artifact=str(place.artifact), store=str(place.store), path=str(place.path)
        )
    mounted = targets.look(note.target, record).mount
    if mounted not in {Mount.WELL, Mount.WRITABLE}:
        return None
    try:
        targets.show(record, Facts(mount=mounted, record=record, is_fresh=True))
    except DamselflyError as exc:
        logger.warning("mount.unrecorded", extra={"target_path": note.target, "error": exc})
    logger.info("volume.adopted", extra={"target_path": note.target, "artifact": record.artifact})
    return record


@dataclass(frozen=True, slots=True)
class _Place:
    """A view in a store: `<store>/views/<artifact>/<view>`."""

    store: Path
    artifact: Digest
    path: Path


def _place_of(note: Note, table: str, store: Path | None) -> _Place | None:
    """Which view is mounted: one in this store, or in any that is on the same file system.

    Raises:
        OSError: What is mounted cannot be looked at.
        ValueError: Nothing is mounted.
    """
    *_, upper = mounts_at(table, note.target)
    seen = os.stat(note.target)
    # The kernel names directories without links, and the store may have been told with one.
    real = None if store is None else Path(os.path.realpath(store))
    for text in paths_of(table, upper):
        path = Path(text)
        if store is not None and real is not None:
            if not path.is_relative_to(real):
                continue
            path = store / path.relative_to(real)
        parts = path.parts
        try:
            start = len(parts) - 1 - parts[::-1].index(_VIEWS)
            artifact = Digest.parse(f"blake3:{parts[start + 1]}")
            meant = os.stat(path)
        except (ValueError, IndexError, OSError, UsageError):
            continue
        if (meant.st_dev, meant.st_ino) == (seen.st_dev, seen.st_ino):
            return _Place(Path(*parts[:start]), artifact, path)
    return None


def _counted(target: str) -> tuple[int, int]:
    """How many files are below a mount, and their bytes."""
    count = size = 0
    for folder, _, names in os.walk(target):
        for name in names[: FILES_MAX - count]:
            with suppress(OSError):
                size += (Path(folder) / name).lstat().st_size
                count += 1
    return count, size
