"""Members, a desk, liars and deaths: nothing wrong is sealed, and nobody honest waits for ever."""

from hypothesis import given, settings, strategies as st

from damselfly.model.digest import Digest
from damselfly.p2p.hashing import Found, Hash, HashDesk, Hashing, HashReport, Refuse
from damselfly.p2p.messages import AgentID, SwarmID

SWARM = SwarmID("blake3:" + "0" * 64)
TICK_S = 0.25
FILES = 4


def sha(text: str) -> str:
    return f"sha256:{Digest.of(text.encode()).hex}"


def content(file: int) -> Digest:
    return Digest.of(b"content %d" % file)


def lie(file: int, kind: str, digest: str) -> Found:
    match kind:
        case "match":
            return Found(file, content(file), digest)
        case "other":
            return Found(file, Digest.of(b"?"), digest)
        case _:
            return Found(file, content(file), sha("a lie"))


class Member:
    """One honest member, whose reading of a file takes some time."""

    def __init__(self, number: int, truth: dict[int, str], published: dict[int, str]) -> None:
        self.agent = AgentID(f"10.0.0.{number}:1")
        self.truth = truth
        self.core = Hashing(
            {file: (digest,) for file, digest in published.items()},
            dict.fromkeys(published, 1000),
            now=0.0,
        )
        self.reading: dict[int, int] = {}
        self.hashed: set[int] = set()
        self.refused: Refuse | None = None
        self.is_dead = False

    def step(self, desk: HashDesk | None, now: float) -> None:
        for file in [file for file, left in self.reading.items() if left <= 0]:
            del self.reading[file]
            self.hashed.add(file)
            self.core.hashed(Found(file, content(file), self.truth[file]), now)
        for file in self.reading:
            self.reading[file] -= 1
        while (action := self.core.next_action(now)) is not None:
            match action:
                case Hash(file):
                    self.reading[file] = 3
                case Refuse():
                    self.refused = action
        if self.core.is_report_due(now):
            progress = {file: 1000 - 100 * left for file, left in self.reading.items()}
            report = self.core.next_report(self.agent, "boot", FILES, progress, now)
            if desk is None:
                self.core.unheard(now)
            else:
                self.core.heard(desk.reported(HashReport.parse(report.to_json()), now), now)

    @property
    def is_done(self) -> bool:
        return self.is_dead or self.refused is not None or not self.core.unsettled


@settings(deadline=None, max_examples=150)
@given(
    wrong=st.sets(st.integers(0, FILES - 1)),
    lies=st.lists(st.tuples(st.integers(0, FILES - 1), st.sampled_from(["match", "other", "bad"]))),
    deaths=st.dictionaries(st.integers(0, 3), st.integers(0, 20), max_size=2),
    silence=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    members=st.integers(1, 4),
)
def test_everybody_ends_and_only_liars_can_make_a_wrong_file_pass(
    wrong: set[int],
    lies: list[tuple[int, str]],
    deaths: dict[int, int],
    silence: tuple[int, int],
    members: int,
) -> None:
    published = {file: sha(f"file {file}") for file in range(FILES)}
    truth = {f: sha(f"wrong {f}") if f in wrong else digest for f, digest in published.items()}
    swarm = [Member(number, truth, published) for number in range(members)]
    desk = HashDesk(SWARM, FILES)
    for number, (file, kind) in enumerate(lies[:20]):
        liar = AgentID(f"10.9.9.{number}:1")
        desk.reported(
            HashReport(liar, "boot", FILES, 0, found=(lie(file, kind, published[file]),)), 0.0
        )
    for member in swarm:
        for file in range(FILES):
            member.core.here(file, 1.0, content(file), 0.0)

    for tick in range(200):
        now = tick * TICK_S
        for number, member in enumerate(swarm):
            member.is_dead |= deaths.get(number, 1 << 30) <= tick
            if not member.is_done:
                member.step(None if silence[0] <= tick < silence[1] else desk, now)

    lied_to = {file for file, kind in lies if kind == "match"}
    for member in swarm:
        assert member.is_done, member.core
        if member.is_dead:
            continue
        if member.refused is not None:
            assert member.refused.file in wrong
            assert member.refused.file in member.hashed, "nobody fails by hearsay"
        else:
            assert wrong <= lied_to, "what nobody lied about is found out"
