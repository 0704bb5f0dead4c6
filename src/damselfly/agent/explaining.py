"""What is told of the last pulls: who served each chunk, and why the origin was asked."""

from collections import deque

from damselfly.agent.fault import fault_of
from damselfly.agent.pull import Pull
from damselfly.client.answers import Explained, ExplainedFile, ExplainedRun
from damselfly.model.plan import Plan
from damselfly.p2p.journal import Entry, Journal

PULLS_MAX = 64
CHUNKS_MAX = 1 << 20
"""Of all pulls that are remembered, 10 bytes each."""


class Remembered:
    """The last pulls of this agent, those that run among them. Belongs to one event loop."""

    def __init__(self) -> None:
        self._pulls: deque[Pull] = deque()

    def add(self, pull: Pull) -> None:
        """A pull began: forget the oldest, if there are too many."""
        self._pulls.append(pull)
        while len(self._pulls) > PULLS_MAX or (
            len(self._pulls) > 1 and self._chunks() > CHUNKS_MAX
        ):
            self._pulls.popleft()

    def latest(self) -> tuple[Pull, ...]:
        """The pulls, latest first."""
        return tuple(reversed(self._pulls))

    def _chunks(self) -> int:
        return sum(len(pull.journal) for pull in self._pulls)


def explained(pull: Pull) -> Explained:
    """Tell of one pull what its journal knows."""
    plan = pull.plan
    progress = pull.progress()
    files = _files(plan, pull.journal, pull.wanted) if plan is not None else ()
    known = sum(run.chunks for file in files for run in file.runs)
    return Explained(
        ref=pull.ref.safe,
        artifact=progress.artifact,
        phase=progress.phase,
        policy=pull.policy,
        began_ns=pull.began_ns,
        seconds=round(progress.seconds, 3),
        chunks=pull.wanted.bit_count(),
        chunks_missing=pull.wanted.bit_count() - known,
        files=files,
        error=fault_of(pull.failure).message if pull.failure is not None else None,
    )


def _files(plan: Plan, journal: Journal, wanted: int) -> tuple[ExplainedFile, ...]:
    files: list[ExplainedFile] = []
    for number, file in enumerate(plan.files):
        indexes = plan.indexes(number)
        if len(indexes) and not wanted >> indexes.start & 1:
            continue
        runs = _runs(plan, indexes, list(journal.entries(indexes)))
        files.append(ExplainedFile(path=file.path, bytes=file.bytes, runs=runs))
    return tuple(files)


def _runs(plan: Plan, indexes: range, entries: list[Entry]) -> tuple[ExplainedRun, ...]:
    groups: list[list[Entry]] = []
    for entry in entries:
        if groups and groups[-1][-1].how == entry.how and groups[-1][-1].index + 1 == entry.index:
            groups[-1].append(entry)
        else:
            groups.append([entry])
    runs: list[ExplainedRun] = []
    for group in groups:
        first = group[0]
        asked_s = min(entry.asked_s for entry in group)
        ended_s = max(entry.asked_s + entry.took_s for entry in group)
        runs.append(
            ExplainedRun(
                first=first.index - indexes.start,
                chunks=len(group),
                bytes=sum(plan.lengths[entry.index] for entry in group),
                source=first.how.source,
                by=first.how.by,
                why=first.how.why,
                asked_s=round(asked_s, 3),
                seconds=round(ended_s - asked_s, 3),
            )
        )
    return tuple(runs)
