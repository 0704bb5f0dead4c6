"""Where things lie in the store's directory. Pure: names only.

    LOCK                       flock of the agent that has the store open; holds its pid
    format                     `1`: which layout this is
    catalog.sqlite (-wal -shm) the account
    partial/<row>              a file that lacks chunks, under its number in the catalog
    files/<content hex>        a file that had all of them once; the inode that views share
    views/<artifact>/<view>/   a tree of hard links, handed to pods
    leases/<artifact>/<lease>  a small JSON file each; made and removed by other processes too
    tmp/                       what is being built; emptied at every start

Folders are 0755; a file of `files/` is 0444, so that any pod may read it.
"""

import re
from collections.abc import Iterable

from damselfly.errors import UsageError
from damselfly.model.digest import Digest

FORMAT = 1
LOCK = "LOCK"
MARKER = "format"
CATALOG = "catalog.sqlite"
PARTIAL = "partial"
FILES = "files"
VIEWS = "views"
LEASES = "leases"
TMP = "tmp"
FOLDERS = (PARTIAL, FILES, VIEWS, LEASES, TMP)

FULL_VIEW = "all"

_LEASE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}", re.ASCII)


def check_lease_id(lease_id: str) -> str:
    """Give the id back if it can be a file's name.

    Raises:
        UsageError: it has a slash, starts with a dot, is empty or too long.
    """
    if not _LEASE_ID.fullmatch(lease_id):
        raise UsageError(f"{lease_id[:80]!r} cannot name a lease: letters, digits, '_', '-', '.'")
    return lease_id


def view_name(files: Iterable[int] | None) -> str:
    """The name of a view of these file numbers; None is the view of all of them."""
    if files is None:
        return FULL_VIEW
    text = ",".join(str(number) for number in sorted(files))
    return Digest.of(text.encode()).hex[:32]
