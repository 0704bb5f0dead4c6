"""What this node has of a ref: which artifact, and which of its files. Blocks on the disk.

The store remembers what refs were found to be, by revision: the id of the plan, and for the part of
a plan that somebody chose before anybody had all of it, the id and the choice.

What this node has found for itself is kept apart from what it was told: only the former is true
whatever others say, and answers for a ref that never changes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from damselfly.agent.resolver import Target
from damselfly.cache.store import Store
from damselfly.errors import UsageError
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.plan import Plan
from damselfly.model.ref import Ref
from damselfly.model.selection import selects

Choice = tuple[Sequence[str], Sequence[str]]
"""The globs of `include` and `exclude`."""


@dataclass(frozen=True, slots=True)
class Shown:
    """Files of an artifact by their numbers; None: all of them."""

    artifact: Digest
    files: frozenset[int] | None
    place: str = ""
    """The `ref` of the plan that it was found by; empty where nobody was asked."""


_TOLD = "told"


def revision_of(plan_id: Digest, choice: Choice | None, *, is_told: bool = False) -> str:
    """The revision under which the store remembers a plan, or what was chosen of it alone."""
    if choice is not None:
        return f"{plan_id} {_choice_id(choice)}"
    return f"{plan_id} {_TOLD}" if is_told else str(plan_id)


def plan_of(revision: str) -> Digest | None:
    """The plan that became all of an artifact; None: only what was chosen of it did."""
    plan_id, _, rest = revision.partition(" ")
    return Digest.parse(plan_id) if rest in {"", _TOLD} else None


def chosen(paths: Sequence[str], choice: Choice, ref: Ref) -> frozenset[int]:
    """The numbers of the files that a choice lets through.

    Raises:
        UsageError: none does.
    """
    found = frozenset(number for number, path in enumerate(paths) if selects(path, *choice))
    if not found:
        raise UsageError(
            f"nothing to pull: none of the {len(paths)} files of {ref.safe} passes the filters"
        )
    return found


class Holdings:
    """Looks into the store; holds nothing itself, so any thread may ask."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def of_plan(self, ref: Ref, target: Target, choice: Choice) -> Shown | None:
        """What is here of a ref that was found to be `target`: all that was chosen, or None."""
        plan = target.plan
        known = self.known(ref, plan)
        if known is None and target.manifest is not None:
            known = target.manifest.digest
            is_checked = not target.is_told or known == self.told(ref, plan)
            if not is_checked and any(file.digests for file in plan.files):
                return None  # A pull compares it with what the origin published.
        elif known is None:
            known = self.told(ref, plan)
        if known is not None:
            shown = self._held(self._shown(known, choice, ref))
            return None if shown is None else replace(shown, place=plan.ref)
        revision = revision_of(plan.id, choice)
        part = self._store.artifact_of(str(ref.unpinned.named), revision)
        return None if part is None else self._held(Shown(part, None, plan.ref))

    def known(self, ref: Ref, plan: Plan) -> Digest | None:
        """The artifact that all of this plan became by our own finding, if its manifest is here."""
        return self._became(ref, plan, is_told=False)

    def told(self, ref: Ref, plan: Plan) -> Digest | None:
        """The artifact that a pull here brought of this plan, by what others said of it."""
        return self._became(ref, plan, is_told=True)

    def _became(self, ref: Ref, plan: Plan, *, is_told: bool) -> Digest | None:
        revision = revision_of(plan.id, None, is_told=is_told)
        artifact = self._store.artifact_of(str(ref.unpinned.named), revision)
        manifest = None if artifact is None else self._store.manifest(artifact)
        return artifact if manifest is not None and manifest.is_of(plan) else None

    def was(self, ref: Ref, artifact: Digest) -> bool:
        """Whether the ref was once found to be this artifact, by this node."""
        return self._store.revision_of(str(ref.unpinned.named), artifact) is not None

    def last(self, ref: Ref, choice: Choice) -> Shown | None:
        """What the ref last was, or what its pin says if it was that once; here or not."""
        for revision, artifact in self._store.revisions(str(ref.unpinned.named)):
            is_whole = plan_of(revision) is not None
            if ref.pin not in {None, artifact} or self._store.manifest(artifact) is None:
                continue
            if is_whole:
                return self._shown(artifact, choice, ref)
            if revision.endswith(f" {_choice_id(choice)}"):
                return Shown(artifact, None)
        return None

    def whole(self, ref: Ref) -> Manifest | None:
        """The manifest of all of a ref that never changes, if we once found it out ourselves."""
        for revision, artifact in self._store.revisions(str(ref.unpinned.named)):
            manifest = self._store.manifest(artifact) if " " not in revision else None
            if manifest is not None:
                return manifest
        return None

    def last_held(self, ref: Ref, choice: Choice) -> Shown | None:
        """The same, if it is here."""
        shown = self.last(ref, choice)
        return None if shown is None else self._held(shown)

    def _held(self, shown: Shown) -> Shown | None:
        return shown if self._store.holds(shown.artifact, shown.files) else None

    def _shown(self, artifact: Digest, choice: Choice, ref: Ref) -> Shown:
        manifest = self._store.manifest(artifact)
        if manifest is None or choice == ((), ()):
            return Shown(artifact, None)
        files = chosen([file.path for file in manifest.files], choice, ref)
        return Shown(artifact, None if len(files) == len(manifest.files) else files)


def _choice_id(choice: Choice) -> Digest:
    return Digest.of(json.dumps([list(globs) for globs in choice]).encode())
