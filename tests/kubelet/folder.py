"""The folder of one volume of a pod, as the kubelet keeps it.

pods/<uid>/volumes/kubernetes.io~csi/<name>/       made by the kubelet, 0750
    vol_data.json                                  the kubelet's
    mount/                                         the driver's, from the first byte to the last
"""

import contextlib
from pathlib import Path

from bench.mounts import mounts_at


def make(folder: Path, data: bytes) -> None:
    """Make the folder and write `vol_data.json`, but not `mount`."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o750)
    (folder / "vol_data.json").write_bytes(data)


def remove(folder: Path) -> str | None:
    """Take away what is the kubelet's, and an empty `mount`; tell what hinders it.

    A `mount` that is a mount, or has something in it, is not the kubelet's to remove.
    """
    target = folder / "mount"
    if mounts_at(target):
        return f"{target} is still mounted"
    try:
        target.rmdir()
    except FileNotFoundError:
        pass
    except OSError as exc:
        return str(exc)
    (folder / "vol_data.json").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
        for parent in (folder.parent, folder.parent.parent, folder.parent.parent.parent):
            parent.rmdir()  # Until one is not empty: other volumes of the pod.
    return None
