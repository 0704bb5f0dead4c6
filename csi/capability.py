"""What a caller wants to do with a volume, and whether we can: mount it, read-only, and no more.

Kubernetes asks for the first access mode of a claim, and for SINGLE_NODE_WRITER if the volume is
the pod's own, whatever is done with it: both are accepted, and the mount is read-only all the same.
"""

from collections.abc import Iterable

from damselfly.csi.proto import csi_pb2
from damselfly.csi.status import PreconditionError
from damselfly.errors import UsageError

_MODE = csi_pb2.VolumeCapability.AccessMode
MODES = frozenset(
    {
        _MODE.SINGLE_NODE_WRITER,
        _MODE.SINGLE_NODE_READER_ONLY,
        _MODE.MULTI_NODE_READER_ONLY,
        _MODE.MULTI_NODE_MULTI_WRITER,
    }
)
MANY_NODES = frozenset({_MODE.MULTI_NODE_READER_ONLY, _MODE.MULTI_NODE_MULTI_WRITER})
MOUNT_FLAGS = frozenset({"ro", "nosuid", "nodev"})
"""Options that a volume may ask for: those that every volume has."""
_PLAIN_OPTIONS = frozenset(
    {
        *("async", "atime", "defaults", "dev", "diratime", "dirsync", "exec", "lazytime"),
        *("noatime", "nodiratime", "noexec", "norelatime", "nostrictatime", "relatime"),
        *("remount", "rw", "strictatime", "suid", "sync"),
    }
)
"""Options that mount(8) itself knows, of which none is a secret."""


def check_capability(capability: csi_pb2.VolumeCapability) -> None:
    """Check one capability.

    Raises:
        UsageError: It is incomplete.
        PreconditionError: It is one that we do not have.
    """
    kind = capability.WhichOneof("access_type")
    if kind is None:
        raise UsageError("volume_capability says neither mount nor block")
    mode = capability.access_mode.mode
    if mode == _MODE.UNKNOWN:
        raise UsageError("volume_capability has no access mode")
    if kind == "block":
        raise PreconditionError("a model is a file system: there is no block device of it")
    if mode not in MODES:
        name = _MODE.Mode.Name(mode) if mode in _MODE.Mode.values() else str(mode)
        raise PreconditionError(f"the access mode {name} is not supported")
    if unknown := set(capability.mount.mount_flags) - MOUNT_FLAGS:
        # CSI: an option may be a secret. Those that every mount(8) knows are none.
        told = sorted(unknown & _PLAIN_OPTIONS)
        if hidden := len(unknown - _PLAIN_OPTIONS):
            told.append(f"{hidden} more" if told else f"{hidden} that are not told here")
        raise UsageError(
            f"mount options that are not supported: {', '.join(told)};"
            " every volume is ro,nosuid,nodev"
        )


def check_capabilities(capabilities: Iterable[csi_pb2.VolumeCapability]) -> None:
    """Check what a volume is created for: all of them, and at least one.

    Raises:
        UsageError: There is none, or one is incomplete or one that we do not have.
    """
    given = list(capabilities)
    if not given:
        raise UsageError("volume_capabilities are missing")
    for capability in given:
        try:
            check_capability(capability)
        except PreconditionError as exc:
            raise UsageError("volume_capabilities cannot be had") from exc
