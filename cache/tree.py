"""What a view consists of, before it is made: names and what lies under them. Pure.

    plain       path/of/a/file                                the file

    hf-cache    models--ORG--NAME/blobs/<content hex>         the file
                models--ORG--NAME/refs/main                   the revision
                models--ORG--NAME/snapshots/<revision>/path   a link to the blob
                hub/models--ORG--NAME                         a link to models--ORG--NAME

The second is what the hub's client keeps in `HF_HUB_CACHE`, and what it finds below `HF_HOME` under
`hub`: a volume may be mounted as either. Links are relative and stay inside the tree, because a
pod sees it at another path than we do. A blob is called by its content here, not by what an origin
says of it: two files that lie about their digest must not become one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from damselfly.cache.catalog import FileRow
from damselfly.cache.directory import check_name
from damselfly.model.hub import HubName

HUB = "hub"
BLOBS = "blobs"


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link inside the tree."""

    target: str


@dataclass(frozen=True, slots=True)
class Text:
    """A small file that no artifact has."""

    data: bytes


Leaf = FileRow | Link | Text
Tree = dict[str, "Leaf | Tree"]


def plain_tree(entries: Iterable[tuple[str, FileRow]]) -> Tree:
    """The files as they are at the origin."""
    return _tree(entries)


def hub_tree(entries: Iterable[tuple[str, FileRow]], name: HubName) -> Tree:
    """The files as the hub's client keeps them."""
    return _tree(_hub_entries(entries, name))


def _hub_entries(
    entries: Iterable[tuple[str, FileRow]], name: HubName
) -> Iterator[tuple[str, Leaf]]:
    yield f"{HUB}/{name.folder}", Link(f"../{name.folder}")
    for branch in name.branches:
        # Without a newline: the client takes all of it for the revision.
        yield f"{name.folder}/refs/{branch}", Text(name.revision.encode())
    blobs: set[str] = set()
    within = f"{name.inside}/" if name.inside else ""
    for below, row in entries:
        assert row.content is not None, "only a whole file is shown"
        path = within + below
        blob = row.content.hex
        if blob not in blobs:
            blobs.add(blob)
            yield f"{name.folder}/{BLOBS}/{blob}", row
        up = "../" * (2 + path.count("/"))
        yield f"{name.folder}/snapshots/{name.revision}/{path}", Link(f"{up}{BLOBS}/{blob}")


def _tree(entries: Iterable[tuple[str, Leaf]]) -> Tree:
    root: Tree = {}
    for path, leaf in entries:
        *folders, name = map(check_name, path.split("/"))
        folder = root
        for part in folders:
            below = folder.setdefault(part, {})
            assert isinstance(below, dict), "a manifest has no file where a directory is"
            folder = below
        folder[name] = leaf
    return root
