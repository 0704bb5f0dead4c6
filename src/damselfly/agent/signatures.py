"""Nothing that must be signed is shown before its signature was verified here.

    pull:    resolved ── is there a signature? ── fetched ── verified ── sealed
    volume:  held ── verified before, or now ── shown

What is verified: that `model.sig` of the artifact is by whom the rule of the ref trusts, and that
it is about these very files, by digests that this node has computed of what it holds. A selection
brings the signature with it, and then its files are judged, and the names of all others.

A verdict is kept with the artifact, for the trust that it was reached with: it counts for another
ref of the same trust, and for none other. Rules may change at any time, so they are looked up when
it counts, not when a pull begins.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import TypeVar

from damselfly.agent.holdings import Shown, plan_of
from damselfly.agent.signature_rules import Require, Rule, Rules
from damselfly.agent.whole_digest import whole_content, whole_digests
from damselfly.cache.report import Verdict
from damselfly.cache.store import Store
from damselfly.errors import NotFoundError, SignatureError, explain
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest, ManifestFile
from damselfly.model.plan import Plan, PlannedFile
from damselfly.model.ref import Ref
from damselfly.model.statement import SIGNATURE_BYTES_MAX, SIGNATURE_NAME
from damselfly.origin import signature
from damselfly.origin.signature import Method, Trust

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Found:
    """A verdict that was reached just now, or one that was `kept` before."""

    key: Digest
    method: Method
    signer: str
    files: frozenset[int]
    kept: Verdict | None = None


class Signatures:
    """What the rules ask of pulls and volumes. Blocks, but for what is awaited."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()

    def number_in(self, ref: Ref, plan: Plan) -> int | None:
        """The signature's file in a plan, which must be pulled too; None: no rule needs one.

        Raises:
            SignatureError: there must be one and is none, or nobody can be trusted now.
        """
        rule = self.rules.rule_for(ref)
        if rule is None:
            return None
        with _told(ref):
            rule.trust()  # Whoever is trusted must be known before gigabytes are fetched.
            number = _number_in(plan.files)
            if number is None:
                _check_absent(rule)
            else:
                _check_size(plan.files[number].bytes)
            return number

    async def judged(
        self,
        store: Store,
        workers: Executor,
        ref: Ref,
        manifest: Manifest,
        plan: Plan,
        chosen: frozenset[int],
    ) -> Found | None:
        """Judge what a pull has brought, before it is sealed: the files `chosen` of its plan.

        None: no rule asks for a signature, or there is none and need not be.

        Raises:
            SignatureError: it is not genuine; names the ref and the reason.
            ChunkNotFoundError: a chunk has gone meanwhile.
        """
        paths = {plan.files[number].path for number in chosen}
        numbers = frozenset(
            number for number, file in enumerate(manifest.files) if file.path in paths
        )
        case = _Case(
            ref,
            manifest,
            numbers,
            frozenset(file.path for file in plan.files) - paths,
            # What is pinned may be a part that somebody chose; and it is what was meant.
            is_whole=ref.pin is None,
        )
        return await _stoppable(workers, partial(self._judged, store, case))

    async def are_genuine(
        self, store: Store, workers: Executor, ref: Ref, shown: Shown, plan: Plan | None = None
    ) -> bool:
        """Whether what is held may be shown; False: only a pull can tell.

        The `plan` that the ref was just found to be says what was published there. Without it
        counts how this node got the artifact by the very ref.

        Raises:
            SignatureError: it may not.
        """
        try:
            return await _stoppable(workers, partial(self._are_genuine, store, ref, shown, plan))
        except NotFoundError:
            return False  # It was evicted while it was read.

    def keep(self, store: Store, manifest: Manifest, found: Found) -> Verdict:
        """Keep a verdict with its artifact, which is sealed by now. Blocks."""
        if found.kept is not None:
            return found.kept
        return store.keep_verdict(
            manifest.digest, found.key, str(found.method), found.signer, found.files
        )

    # --- in a worker ---------------------------------------------------------------------------

    def _are_genuine(
        self, store: Store, ref: Ref, shown: Shown, plan: Plan | None, stopped: Event
    ) -> bool:
        if self.rules.rule_for(ref) is None:
            return True
        manifest = store.manifest(shown.artifact)
        if manifest is None:
            return False
        number = _number_in(manifest.files)
        revision = store.revision_of(str(ref.unpinned.named), shown.artifact)
        if plan is None and revision is None and ref.pin is None:
            return False  # Another ref brought it: there may be more files where this one leads.
        if plan is not None:
            is_whole = manifest.is_of(plan)
        else:
            is_whole = revision is not None and plan_of(revision) is not None
        if number is None and not is_whole:
            return False  # What was left out when it was pulled may be the signature.
        numbers = frozenset(range(len(manifest.files))) if shown.files is None else shown.files
        if number is not None:
            numbers |= {number}
        if not store.holds(shown.artifact, numbers):
            return False
        judged = {manifest.files[at].path for at in numbers}
        published = {file.path for file in manifest.files}
        if plan is not None:
            published |= {file.path for file in plan.files}
        is_whole = ref.pin is None and (is_whole or plan is not None)
        case = _Case(ref, manifest, numbers, frozenset(published - judged), is_whole=is_whole)
        found = self._judged(store, case, stopped)
        if found is not None:
            self.keep(store, manifest, found)
        return True

    def _judged(self, store: Store, case: "_Case", stopped: Event) -> Found | None:
        rule = self.rules.rule_for(case.ref)
        if rule is None:
            return None
        manifest = case.manifest
        with _told(case.ref):
            trust = rule.trust()
            number = _number_in(manifest.files)
            if (number is None and SIGNATURE_NAME in case.others) or (
                number is not None and number not in case.numbers
            ):
                raise SignatureError("the rules changed while it was pulled: pull it again")
            if number is None:
                _check_absent(rule)
                return None
            key = case.key(trust)
            for verdict in store.verdicts(manifest.digest):
                if verdict.trust == key and case.numbers <= verdict.files:
                    return Found(key, trust.method, verdict.signer, verdict.files, verdict)
            _check_size(manifest.files[number].bytes)
            content = whole_content(store, manifest.files[number])
            digests = whole_digests(store, manifest, case.numbers - {number}, stopped)
            signer = signature.verify(
                content, trust, digests, case.others, is_whole=case.is_whole, stopped=stopped
            )
        extra = {"ref": case.ref.safe, "artifact": str(manifest.digest), "signer": signer}
        logger.info("signature.verified", extra=extra | {"files": len(digests)})
        return Found(key, trust.method, signer, case.numbers)


@dataclass(frozen=True, slots=True)
class _Case:
    """Files of an artifact to be judged by their numbers, and the paths of those that are not."""

    ref: Ref
    manifest: Manifest
    numbers: frozenset[int]
    others: frozenset[str]
    is_whole: bool
    """There are no more files than these where they were published."""

    def key(self, trust: Trust) -> Digest:
        """What a verdict is kept under: who was trusted, and what is judged but the artifact."""
        beside = sorted(self.others.difference(file.path for file in self.manifest.files))
        if self.is_whole and not beside:
            return trust.digest
        return Digest.of(json.dumps([str(trust.digest), self.is_whole, beside]).encode())


async def _stoppable(workers: Executor, work: Callable[[Event], _T]) -> _T:
    """Do `work` in a worker; whoever is cancelled stops it."""
    stopped = Event()
    try:
        return await asyncio.get_running_loop().run_in_executor(workers, work, stopped)
    except asyncio.CancelledError:
        stopped.set()
        raise


@contextmanager
def _told(ref: Ref) -> Generator[None]:
    try:
        yield
    except SignatureError as exc:
        raise SignatureError(f"{ref.safe} is not accepted: {explain(exc)}") from None


def _check_absent(rule: Rule) -> None:
    if rule.require is Require.REQUIRED:
        raise SignatureError(
            f"there is no {SIGNATURE_NAME}, and the rule for {rule.prefix} requires one"
        )


def _check_size(size: int) -> None:
    if size > SIGNATURE_BYTES_MAX:
        raise SignatureError(f"{SIGNATURE_NAME} has {size} bytes, more than {SIGNATURE_BYTES_MAX}")


def _number_in(files: Sequence[PlannedFile | ManifestFile]) -> int | None:
    return next((at for at, file in enumerate(files) if file.path == SIGNATURE_NAME), None)
