"""Which files of an artifact somebody wants: glob filters."""

from collections.abc import Sequence
from fnmatch import fnmatchcase


def selects(path: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Tell whether the filters let `path` through: some `include`, or none given; no `exclude`.

    A glob (`*`, `?`, `[...]`; `*` crosses `/`; case counts) is held against the whole path and
    against the file's own name. One that ends in `/` means all that is below that directory.
    """
    if include and not any(_matches(path, glob) for glob in include):
        return False
    return not any(_matches(path, glob) for glob in exclude)


def _matches(path: str, glob: str) -> bool:
    if glob.endswith("/"):
        return fnmatchcase(path, glob + "*")
    return fnmatchcase(path, glob) or fnmatchcase(path.rpartition("/")[2], glob)
