"""Views: read-only trees of hard links, what pods and `pull` are given.

    views/<artifact>/all/...        every file of the artifact
    views/<artifact>/<32 hex>/...   a selection of them, or another layout (tree.py)

A tree is built in `tmp/` and renamed into place, so a tree that is there is whole. Later it is only
ever mended in place, name by name, each by a rename: its directories may be bind-mounted into pods,
and a mount follows the directory, not its name. Each link is compared with the account when a view
is handed out.
"""

import errno
import os
import stat
from pathlib import PurePosixPath

from damselfly.cache.catalog import Catalog, FileRow
from damselfly.cache.directory import READ_ONLY, Directory, temporary_name
from damselfly.cache.files import Files, ino_of
from damselfly.cache.tree import BLOBS, Link, Text, Tree
from damselfly.errors import IntegrityError
from damselfly.model.bitmap import Bitmap
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest

_TEXT_BYTES_MAX = 256


class Views:
    """The folder of views. The caller serialises changes; `OSError` passes through."""

    def __init__(self, folder: Directory, tmp: Directory, files: Files, catalog: Catalog) -> None:
        self._folder = folder
        self._tmp = tmp
        self._files = files
        self._catalog = catalog

    def ensure(self, artifact: Digest, name: str, tree: Tree) -> bool:
        """Make the tree, or mend the one that is there; True: it is new.

        Raises:
            FileNotFoundError: a file of it is gone from the store.
        """
        with self._folder.make_folder(artifact.hex) as home:
            found = home.stat(name)
            if found is not None and stat.S_ISDIR(found.st_mode):
                with home.folder(name) as folder:
                    self._mend(folder, tree)
                return False
            home.remove(name)
            temporary = temporary_name()
            with self._tmp.make_folder(temporary) as folder:
                self._mend(folder, tree)
            self._tmp.move(temporary, home, name)
        return True

    def _mend(self, folder: Directory, tree: Tree) -> None:
        for name in set(folder.names()) - tree.keys():
            folder.remove(name)
        for name, entry in tree.items():
            match entry:
                case FileRow():
                    found = folder.stat(name)
                    if found is None or ino_of(found) != entry.ino:
                        self._link(entry, folder, name, found)
                case Link():
                    if folder.read_link(name) != entry.target:
                        temporary = temporary_name()
                        self._tmp.make_link(temporary, entry.target)
                        self._place(temporary, folder, name, folder.stat(name))
                case Text():
                    if _text(folder, name) != entry.data:
                        temporary = temporary_name()
                        self._tmp.write(temporary, entry.data, READ_ONLY)
                        self._place(temporary, folder, name, folder.stat(name))
                case _:
                    with folder.make_folder(name) as below:
                        self._mend(below, entry)

    def _place(
        self, temporary: str, folder: Directory, name: str, found: os.stat_result | None
    ) -> None:
        if found is not None and stat.S_ISDIR(found.st_mode):
            folder.remove(name)
        self._tmp.move(temporary, folder, name)

    def _link(
        self, row: FileRow, folder: Directory, name: str, found: os.stat_result | None
    ) -> None:
        assert row.content is not None, "only a whole file is shown"
        temporary = temporary_name()
        try:
            self._files.files.link(row.content.hex, self._tmp, temporary)
        except OSError as exc:
            if exc.errno != errno.EMLINK:
                raise
            # ext4 stops at 65,000 names; a small file that everybody has may get there.
            self._copy(row, temporary)
        self._place(temporary, folder, name, found)

    def _copy(self, row: FileRow, temporary: str) -> None:
        source = self._files.open(row)
        try:
            target = self._tmp.create(temporary)
            try:
                offset = 0
                while count := os.sendfile(target, source, offset, row.bytes - offset):
                    offset += count
                os.fchmod(target, READ_ONLY)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def remove(self, artifact: Digest) -> None:
        """Take an artifact's trees away: in one step for who looks, then for good."""
        temporary = temporary_name()
        try:
            self._folder.move(artifact.hex, self._tmp, temporary)
        except FileNotFoundError:
            return
        self._tmp.remove(temporary)

    def reconcile(self) -> int:
        """Remove trees that the account does not have, and accounts without a tree; count both."""
        accounted = self._catalog.views()
        seen: set[tuple[Digest, str]] = set()
        known = {digest.hex: digest for digest, _ in accounted}
        count = 0
        for home_name in self._folder.names():
            artifact = known.get(home_name)
            if artifact is None:
                count += self._folder.remove(home_name)
                continue
            with self._folder.make_folder(home_name) as home:
                for name in home.names():
                    found = home.stat(name)
                    is_tree = found is not None and stat.S_ISDIR(found.st_mode)
                    if is_tree and (artifact, name) in accounted:
                        seen.add((artifact, name))
                    else:
                        count += home.remove(name)
        missing = accounted.keys() - seen
        if missing:
            with self._catalog.change() as change:
                for digest, name in missing:
                    change.drop_view(digest, name)
        return count + len(missing)

    def rescue(self, row: FileRow) -> bool:
        """Find a placed file's inode in a view, when `files/` has lost it, and link it back."""
        if row.content is None or not row.is_placed:
            return False
        views = self._catalog.views()
        for digest, number in self._catalog.users_of_file(row.id):
            data = self._catalog.manifest(digest)
            assert data is not None, "an artifact has a manifest"
            files = Manifest.parse(data).files
            for (artifact, name), bits in views.items():
                if artifact != digest or number not in Bitmap.parse(len(files), bits):
                    continue
                home = f"{digest.hex}/{name}"
                if self._link_back(row, f"{home}/{files[number].path}") or any(
                    self._link_back(row, f"{home}/{folder}/{BLOBS}/{row.content.hex}")
                    for folder in self._folders_of(digest, name)
                ):
                    return True
        return False

    def _folders_of(self, artifact: Digest, name: str) -> list[str]:
        """The directories at the top of a view: one of them has the blobs, in the hub's layout."""
        try:
            with self._folder.folder(artifact.hex) as home, home.folder(name) as view:
                return view.names()
        except OSError:
            return []

    def _link_back(self, row: FileRow, path: str) -> bool:
        assert row.content is not None, "only a placed file is looked for"
        *folders, name = PurePosixPath(path).parts
        opened: list[Directory] = []
        try:
            folder = self._folder
            for part in folders:
                folder = folder.folder(part)
                opened.append(folder)
            found = folder.stat(name)
            if found is None or ino_of(found) != row.ino or found.st_size != row.bytes:
                return False
            temporary = temporary_name()
            folder.link(name, self._tmp, temporary)
            self._files.files.remove(row.content.hex)
            self._tmp.move(temporary, self._files.files, row.content.hex)
        except OSError:
            return False
        else:
            return True
        finally:
            for folder in opened:
                folder.close()


def _text(folder: Directory, name: str) -> bytes | None:
    try:
        return folder.read(name, _TEXT_BYTES_MAX)
    except (FileNotFoundError, IntegrityError):
        return None
