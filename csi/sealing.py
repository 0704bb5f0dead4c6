"""A directory shown at a target so that nobody can write through it, at no time and nowhere.

The kernel seals a mount before it is anywhere (5.12 and newer). An older one can seal only what is
mounted: then that is done in a place of our own, from which nothing propagates, and a bind of it
has its flags from the first moment.
"""

import threading
from pathlib import Path

from damselfly.csi import mount
from damselfly.csi.places import through
from damselfly.csi.status import system_error

_VIEW = "view"


class Sealing:
    """Shows directories, sealed. Any thread. `staging` is a directory that is nobody else's.

    Raises:
        DamselflyError: What was left in there cannot be taken away.
    """

    def __init__(self, staging: Path, *, has_trees: bool | None = None) -> None:
        self._staging = staging
        self._has_trees = mount.has_trees() if has_trees is None else has_trees
        self._lock = threading.Lock()
        try:
            mount.unmount_all(str(staging))  # Left by one that died amid a step.
        except OSError as exc:
            raise system_error(f"clearing {staging}", exc) from exc

    def show(self, source: int, target: int) -> None:
        """Show the directory `source` at the directory `target`, upon whatever is mounted there.

        Raises:
            OSError: The kernel refuses; nothing was changed at the target.
        """
        if self._has_trees:
            with mount.sealed_tree(source) as tree:
                mount.attach(tree, target)
        else:
            with self._lock:
                self._show_staged(source, target)

    def _show_staged(self, source: int, target: int) -> None:
        staging = str(self._staging)
        self._staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            mount.mount_private(staging)
            staged = self._staging / _VIEW
            staged.mkdir()
            mount.bind(through(source), str(staged))
            mount.seal(str(staged))
            mount.bind(str(staged), through(target))
        finally:
            mount.unmount_all(staging)
