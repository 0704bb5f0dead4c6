"""What an `hf://` ref means: a repository of the hub, a revision, and what of it.

    hf://ORG/NAME[@REV][/INSIDE]             a model
    hf://datasets/ORG/NAME[@REV][/INSIDE]    a dataset; `spaces/` and `models/` likewise
    hf://NAME, hf://models/NAME@REV          a model that has no organisation (`gpt2`)
    hf://datasets/NAME, .../NAME@REV         a dataset that has none

REV is a branch, a tag, a commit, or one of the hub's own `refs/pr/N` and `refs/convert/NAME`, and
`main` where there is none. A name after an organisation's is a repository's unless the first one
has a revision already, so what lies inside a repository without an organisation needs its `@REV`.

Names become parts of URLs and of paths on disk, so what the hub would never call anything is
refused here, once for everybody.
"""

import re
from dataclasses import dataclass
from urllib.parse import quote

from damselfly.errors import ManifestError, UsageError
from damselfly.model.paths import check_path
from damselfly.model.ref import Ref

MAIN = "main"
REPOSITORY_CHARS_MAX = 96
"""With the slash: the hub's own limit."""

_KINDS = ("models", "datasets", "spaces")
_NOT_SPOKEN = frozenset({"buckets", "kernels", "collections"})
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}", re.ASCII)
_SPECIAL = {"pr": re.compile(r"[0-9]{1,9}", re.ASCII), "convert": _REVISION}
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_PATH_SAFE = "/-._~!$&'()*+,;=:@"


@dataclass(frozen=True, slots=True)
class HubRef:
    """A repository at a revision; `inside` is a directory or a file of it, empty for all of it."""

    kind: str
    repository: str
    revision: str
    inside: str = ""
    is_directory: bool = True
    """Whether `inside` is surely a directory; without a slash at the end it may be either."""

    @classmethod
    def of(cls, ref: Ref) -> "HubRef":
        """Read an `hf://` ref.

        Raises:
            UsageError: it names what the hub would call nothing.
        """
        if ref.scheme != "hf":
            raise UsageError(f"{ref.safe} is no place on the hub")
        names = [ref.netloc, *ref.decoded_path.strip("/").split("/")]
        names = [name for name in names if name]
        kind = names.pop(0) if names[0] in _KINDS else _KINDS[0]
        if not names or names[0] in _NOT_SPOKEN:
            raise UsageError(f"{ref.safe} names no model, dataset or space of the hub")
        taken = 1 if "@" in names[0] or len(names) == 1 else 2
        *organisation, last = names[:taken]
        name, at, revision = last.partition("@")
        rest = names[taken:]
        if at and revision == "refs" and len(rest) > 1 and rest[0] in _SPECIAL:
            special = _SPECIAL[rest[0]].fullmatch(rest[1])
            revision = "/".join([revision, *rest[:2]]) if special else ""
            rest = rest[2:]
        elif at and not _REVISION.fullmatch(revision):
            revision = ""
        if (at and not revision) or ".." in revision or revision.endswith((".", ".lock")):
            raise UsageError(f"{ref.safe} has a revision that no branch, tag or commit is called")
        repository = "/".join([*organisation, name])
        if len(repository) > REPOSITORY_CHARS_MAX or not all(map(_is_name, [*organisation, name])):
            raise UsageError(f"{ref.safe} names a repository as none of the hub may be called")
        inside = "/".join(rest)
        try:
            inside = inside and check_path(inside)
        except ManifestError as exc:
            raise UsageError(f"{ref.safe} names what no repository has") from exc
        return cls(kind, repository, revision or MAIN, inside, ref.is_directory or not inside)

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit: it means the same for ever."""
        return is_commit(self.revision)

    @property
    def shown(self) -> str:
        """The repository as people know it."""
        return self.repository if self.kind == _KINDS[0] else f"{self.kind}/{self.repository}"

    def ref_at(self, commit: str, *, is_directory: bool) -> str:
        """The same at a commit, as a ref: with a slash at the end if it is a directory."""
        organisation = self.repository.rpartition("/")[0]
        # One that is called like a kind would be read as that.
        is_plain = self.kind == _KINDS[0] and organisation not in {"", *_KINDS}
        place = self.repository if is_plain else f"{self.kind}/{self.repository}"
        inside = f"/{quote(self.inside, safe=_PATH_SAFE)}" if self.inside else ""
        return f"hf://{place}@{commit}{inside}" + ("/" if is_directory else "")


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit, written whole."""
    return _COMMIT.fullmatch(revision) is not None


def _is_name(name: str) -> bool:
    return (
        _NAME.fullmatch(name) is not None
        and "--" not in name
        and ".." not in name
        and not name.endswith(".git")
    )
