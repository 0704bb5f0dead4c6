"""Volumes that were created: what CreateVolume promised, until DeleteVolume.

A volume of ours is a wish written down: creating one pulls nothing. The record is there so that the
same name with other arguments is refused, as CSI wants it, also after a restart. It is no more than
that: a volume of many nodes may be deleted on another node than it was created on, and leaves its
record behind, so where there are too many the oldest goes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from damselfly.client.record import Record
from damselfly.csi.status import ConflictError, RangeError
from damselfly.csi.volume import FOREIGN_PREFIXES, recorded

NAME_BYTES_MAX = 512


class Created(Record):
    """The record of a created volume.

    `attributes` are pairs `key=value`, sorted, with the model as it may be written down.
    """

    volume_id: str
    name: str
    attributes: tuple[str, ...]
    capacity_bytes: int = 0
    created_ns: int = 0
    format: int = 1


@dataclass(frozen=True, slots=True)
class Range:
    """How large a volume is asked to be. A model is as large as it is: this is kept, not used."""

    required_bytes: int
    limit_bytes: int

    def check(self) -> None:
        """Check that some size is in it.

        Raises:
            RangeError: None is.
        """
        if self.required_bytes < 0 or self.limit_bytes < 0:
            raise RangeError("a capacity below zero")
        if 0 < self.limit_bytes < self.required_bytes:
            raise RangeError(
                f"at least {self.required_bytes} bytes and at most {self.limit_bytes}: no size"
            )

    def holds(self, capacity_bytes: int) -> bool:
        """A volume of that size is one of those asked for."""
        return capacity_bytes >= self.required_bytes and (
            self.limit_bytes == 0 or capacity_bytes <= self.limit_bytes
        )


def own_attributes(parameters: Mapping[str, str]) -> dict[str, str]:
    """The parameters that are ours: those that Kubernetes adds name a claim, and may differ."""
    return {key: value for key, value in parameters.items() if not key.startswith(FOREIGN_PREFIXES)}


def create(
    volume_id: str,
    name: str,
    parameters: Mapping[str, str],
    asked: Range,
    before: Created | None,
    *,
    now_ns: int,
) -> Created:
    """The record of a volume that is created: the one from before, if there is one.

    Raises:
        RangeError: No size is in the range.
        UsageError: The model is no ref.
        ConflictError: The name was given to another volume.
    """
    asked.check()
    pairs = _pairs(own_attributes(parameters))
    if before is None:
        return Created(
            volume_id=volume_id,
            name=name,
            attributes=pairs,
            capacity_bytes=asked.required_bytes,
            created_ns=now_ns,
        )
    if before.attributes != pairs:
        raise ConflictError(f"a volume {name} was created with other parameters")
    if not asked.holds(before.capacity_bytes):
        raise ConflictError(
            f"a volume {name} was created with {before.capacity_bytes} bytes, which is not what is"
            " asked for now"
        )
    return before


def _pairs(attributes: Mapping[str, str]) -> tuple[str, ...]:
    kept = {
        key: recorded(value.strip()) if key == "model" else value
        for key, value in attributes.items()
    }
    return tuple(sorted(f"{key}={value}" for key, value in kept.items()))
