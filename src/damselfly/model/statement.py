"""What a signature of a model says, and whether files are what it says.

A signature by OpenSSF Model Signing with its `files` method lists every file of a directory with
its SHA-256, and the paths that it says nothing about. It is as strict about what is not listed as
about what is: a file that nobody signed could be the one that is loaded.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from damselfly.errors import SignatureError
from damselfly.model.paths import is_bookkeeping

SIGNATURE_NAME = "model.sig"
"""Where OpenSSF Model Signing looks for a signature: beside the files."""
SIGNATURE_BYTES_MAX = 16 << 20
"""A hundred thousand files: as many as an artifact has."""
_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Statement:
    """The SHA-256 (hex) of each file by path, and the paths that are left out with all below."""

    files: Mapping[str, str]
    ignored: tuple[str, ...]

    def check(self, digests: Mapping[str, str], others: Iterable[str], *, is_whole: bool) -> None:
        """Compare with an artifact: the digests of files, and the paths of its other files.

        The content of `others` is not judged, but their names are. With `is_whole` these are all
        the files that were published; else somebody chose some of them.

        Raises:
            SignatureError: a file is not the one that was signed, was not signed, or is missing;
                names it.
        """
        ignored = [path for path in map(_relative, self.ignored) if path is not None]
        if "" in ignored:
            raise SignatureError("it ignores every file")
        wrong = [path for path, digest in digests.items() if self.files.get(path, digest) != digest]
        if wrong:
            raise SignatureError(f"{_named(wrong)} is not what was signed")
        present = {*digests, *others}
        if unsigned := [
            path
            for path in present - self.files.keys()
            if path != SIGNATURE_NAME and not _is_ignored(path, ignored)
        ]:
            raise SignatureError(f"{_named(unsigned)} was not signed")
        missing = [path for path in self.files.keys() - present if not is_bookkeeping(path)]
        if is_whole and missing:
            raise SignatureError(f"{_named(missing)} was signed and is missing")
        if not present & self.files.keys():
            raise SignatureError("it covers none of the files")


def _relative(path: str) -> str | None:
    """A path that is ignored, in the form that artifacts' paths have; None: it lies elsewhere."""
    names = [name for name in path.split("/") if name not in {"", "."}]
    return None if path.startswith("/") or ".." in names else "/".join(names)


def _is_ignored(path: str, ignored: Iterable[str]) -> bool:
    return any(path == one or path.startswith(f"{one}/") for one in ignored)


def _named(paths: Iterable[str]) -> str:
    found = sorted(paths)
    named = ", ".join(repr(path[:200]) for path in found[:_NAMES_SHOWN])
    more = len(found) - _NAMES_SHOWN
    return f"{named} (and {more} more)" if more > 0 else named
