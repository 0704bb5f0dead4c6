"""What the Hugging Face hub's own client would call a ref: which repository, at which revision.

    hf://ORG/NAME@REV                     ORG/NAME; `hub_ref.py` has the rest of these refs
    https://HOST/ORG/NAME/resolve/REV/    ORG/NAME at REV: the hub's own addresses, and its mirrors'
    https://HOST/any/path/ORG/NAME/       ORG/NAME: the last two names of the path
    https://HOST/NAME/                    HOST/NAME: the host is a single name's organisation
    file:///NAME                          local/NAME

An `hf://` ref is called what it says, for the hub refuses what may not be. Elsewhere what a
repository may not be called is spelt another way: runs of other characters become one `_`, `--` and
`..` become `-` and `.`, names end at 47 characters. So two refs may get the same name; they are two
artifacts all the same, in two views.
"""

import re
from dataclasses import dataclass

from damselfly.errors import UsageError
from damselfly.model.digest import Digest
from damselfly.model.hub_ref import MAIN, HubRef, is_commit
from damselfly.model.ref import Ref

WORD_CHARS_MAX = 47
"""The client takes at most 96 characters, with the slash."""
COMMIT_DIGITS = 40

_RESOLVED = re.compile(r"(.+)/resolve/([^/]+)")
_STRANGE = re.compile(r"[^A-Za-z0-9_.-]+", re.ASCII)
_BRANCH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository at a revision, as the hub's client looks for it in its cache.

    `revision` has 40 hex digits: the commit that the ref was found at or names, else the first
    digits of the artifact's digest. `branches` are the names that stand for it, `main` always among
    them. `organisation` is empty for the few repositories that have none, and `inside` is the
    directory of the repository that the artifact is, empty where it is all of it.
    """

    organisation: str
    name: str
    revision: str
    branches: tuple[str, ...] = (MAIN,)
    kind: str = "models"
    inside: str = ""

    @classmethod
    def of(cls, ref: Ref, artifact: Digest, place: str = "") -> "HubName":
        """Find the name of a ref that was found to be `artifact`, at `place`.

        Who says where it was found may lie: nothing but a commit of the very repository is taken.

        Raises:
            UsageError: an `hf://` ref that the hub would call nothing.
        """
        if ref.scheme == "hf":
            return cls._of_hub(HubRef.of(ref), artifact, place)
        path = ref.decoded_path.strip("/")
        said = ""
        if match := _RESOLVED.fullmatch(path):
            path, said = match.groups()
        names = path.split("/")
        if not said:
            names[-1], _, said = names[-1].partition("@")
        host = ref.netloc.partition(":")[0] or "local"
        organisation = names[-2] if len(names) > 1 else host
        return cls(
            _word(organisation),
            _word(names[-1]),
            said if is_commit(said) else artifact.hex[:COMMIT_DIGITS],
            _branches(said),
        )

    @classmethod
    def _of_hub(cls, meant: HubRef, artifact: Digest, place: str) -> "HubName":
        found = _found(place)
        if found is None or (found.kind, found.repository) != (meant.kind, meant.repository):
            found = meant
        commit = found.revision if found.is_pinned else meant.revision
        organisation, _, name = meant.repository.rpartition("/")
        inside = meant.inside
        if found is not meant and not found.is_directory:
            inside = inside.rpartition("/")[0]  # A single file lies beside its neighbours.
        return cls(
            organisation,
            name,
            commit if is_commit(commit) else artifact.hex[:COMMIT_DIGITS],
            _branches(meant.revision),
            meant.kind,
            inside,
        )

    @property
    def folder(self) -> str:
        """The repository's directory in the client's cache."""
        return "--".join([self.kind, *self.repository.split("/")])

    @property
    def repository(self) -> str:
        """What the client is asked for."""
        return f"{self.organisation}/{self.name}" if self.organisation else self.name


def _found(place: str) -> HubRef | None:
    try:
        return HubRef.of(Ref.parse(place))
    except UsageError:
        return None


def _branches(said: str) -> tuple[str, ...]:
    is_branch = not is_commit(said) and _BRANCH.fullmatch(said) is not None
    return tuple(sorted({MAIN, said} if is_branch else {MAIN}))


def _word(text: str) -> str:
    word = _STRANGE.sub("_", text)
    word = re.sub(r"--+", "-", re.sub(r"\.\.+", ".", word)).strip("-.")[:WORD_CHARS_MAX]
    word = word.removesuffix(".git").strip("-.")
    return word or "model"
