"""What the Hugging Face hub's own client would call a ref: which repository, at which revision.

    hf://ORG/NAME@REV                     ORG/NAME at REV
    https://HOST/ORG/NAME/resolve/REV/    ORG/NAME at REV: the hub's own addresses, and its mirrors'
    https://HOST/any/path/ORG/NAME/       ORG/NAME: the last two names of the path
    https://HOST/NAME/                    HOST/NAME: the host is a single name's organisation
    file:///NAME                          local/NAME

What a repository may not be called is spelt another way: runs of other characters become one `_`,
`--` and `..` become `-` and `.`, names end at 47 characters. So two refs may get the same name;
they are two artifacts all the same, in two views.
"""

import re
from dataclasses import dataclass

from damselfly.model.digest import Digest
from damselfly.model.ref import Ref

MAIN = "main"
WORD_CHARS_MAX = 47
"""The client takes at most 96 characters, with the slash."""
COMMIT_DIGITS = 40

_RESOLVED = re.compile(r"(.+)/resolve/([^/]+)")
_STRANGE = re.compile(r"[^A-Za-z0-9_.-]+", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_BRANCH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository at a revision, as the hub's client looks for it in its cache.

    `revision` has 40 hex digits: the commit that the ref names, else the first digits of the
    artifact's digest. `branches` are the names that stand for it, `main` always among them.
    """

    organisation: str
    name: str
    revision: str
    branches: tuple[str, ...] = (MAIN,)

    @classmethod
    def of(cls, ref: Ref, artifact: Digest) -> "HubName":
        """Find the name of a ref that was found to be `artifact`."""
        path = ref.decoded_path.strip("/")
        said = ""
        if match := _RESOLVED.fullmatch(path):
            path, said = match.groups()
        names = path.split("/")
        if not said:
            names[-1], _, said = names[-1].partition("@")
        host = ref.netloc.partition(":")[0] or "local"
        organisation = names[-2] if len(names) > 1 else host
        is_commit = _COMMIT.fullmatch(said) is not None
        branches = {MAIN, said} if not is_commit and _BRANCH.fullmatch(said) else {MAIN}
        return cls(
            _word(organisation),
            _word(names[-1]),
            said if is_commit else artifact.hex[:COMMIT_DIGITS],
            tuple(sorted(branches)),
        )

    @property
    def folder(self) -> str:
        """The repository's directory in the client's cache."""
        return f"models--{self.organisation}--{self.name}"

    @property
    def repository(self) -> str:
        """What the client is asked for."""
        return f"{self.organisation}/{self.name}"


def _word(text: str) -> str:
    word = _STRANGE.sub("_", text)
    word = re.sub(r"--+", "-", re.sub(r"\.\.+", ".", word)).strip("-.")[:WORD_CHARS_MAX]
    word = word.removesuffix(".git").strip("-.")
    return word or "model"
