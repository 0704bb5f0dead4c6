"""Where things lie in the store's directory. Pure: names only.

    LOCK                       flock of the agent that has the store open; holds its pid
    format                     `1`: which layout this is
    catalog.sqlite (-wal -shm) the account
    proof.key                  key of the digests of credentials, for the agent alone (proofs.py)
    partial/<row>              a file that lacks chunks, under its number in the catalog
    files/<content hex>        a file that had all of them once; the inode that views share
    views/<artifact>/<view>/   a tree of hard links, handed to pods (tree.py: two layouts)
    leases/<artifact>/<lease>  a small JSON file each; made and removed by other processes too
    tmp/                       what is being built; emptied at every start

Folders are 0755; a file of `files/` is 0444, so that any pod may read it.
"""

from collections.abc import Iterable

from damselfly.model import lease
from damselfly.model.digest import Digest
from damselfly.model.hub import HubName

FORMAT = 1
LOCK = "LOCK"
MARKER = "format"
CATALOG = "catalog.sqlite"
PROOF_KEY = "proof.key"
PARTIAL = "partial"
FILES = "files"
VIEWS = "views"
LEASES = lease.FOLDER
TMP = "tmp"
FOLDERS = (PARTIAL, FILES, VIEWS, LEASES, TMP)

FULL_VIEW = "all"


def view_name(files: Iterable[int] | None, hub: HubName | None = None) -> str:
    """The name of a view of these file numbers; None is the view of all of them.

    A view in the hub's layout shows its name inside, so each name has a view of its own.
    """
    if files is None and hub is None:
        return FULL_VIEW
    text = FULL_VIEW if files is None else ",".join(str(number) for number in sorted(files))
    if hub is not None:
        inside = [f"/{hub.inside}"] if hub.inside else []
        text = "\n".join([text, hub.folder, hub.revision, *hub.branches, *inside])
    return Digest.of(text.encode()).hex[:32]
