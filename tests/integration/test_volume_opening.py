"""Opening volumes over a real store, amid what may go wrong between any two of its steps."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import cast

import pytest

from damselfly.agent.holdings import Shown
from damselfly.agent.preparation import Wish
from damselfly.agent.pull import Pull, Workshop
from damselfly.agent.resolver import Resolver, Target
from damselfly.agent.settings import VolumeSettings
from damselfly.agent.swarms import Swarms
from damselfly.agent.volume import ATTEMPTS, VolumeLimits, Volumes
from damselfly.cache.limits import Limits
from damselfly.cache.store import Store
from damselfly.client.answers import Credentials, Opened, Progress, VolumeRequest
from damselfly.errors import (
    ArtifactNotFoundError,
    CancelledError,
    DamselflyError,
    OriginDeniedError,
    OriginUnavailableError,
    StoreFullError,
    UnavailableError,
    UsageError,
)
from damselfly.model.digest import Digest
from damselfly.model.plan import Plan, PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS, Access
from damselfly.origin.registry import Origins
from tests.conformance.store import HandClock, model, pull
from tests.fakes.peers import until
from tests.integration.pull_workshop import SampleStream

REF = "https://host/acme/tiny/"
SAMPLE = model(ref=REF)
ARTIFACT = SAMPLE.manifest.digest
REQUEST = VolumeRequest(ref=REF, lease="v1")


class FakeWeb:
    """What is at the origin: resolves, proves, and counts how often it was asked."""

    shared = True

    def __init__(self) -> None:
        self.tokens: set[str | None] = {None}
        self.is_down = False
        self.is_planned_only = False
        self.resolved = 0
        self.proved = 0
        self.plan = SAMPLE.plan
        self.proved_at: list[Ref] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def resolve(self, ref: Ref, access: Access, policy: str = "auto") -> Target:
        self.resolved += 1
        await self.may_answer.wait()
        self._look(access, "resolving")
        return Target(self.plan, None if self.is_planned_only else SAMPLE.manifest)

    async def prove(self, ref: Ref, file: PlannedFile, access: Access) -> None:
        self.proved += 1
        self.proved_at.append(ref)
        assert file.path == "weights/a.safetensors"
        self._look(access, "proving")

    @asynccontextmanager
    async def open(
        self, ref: Ref, file: PlannedFile, start: int, stop: int, access: Access
    ) -> AsyncGenerator[SampleStream]:
        self._look(access, "showing")
        yield SampleStream(SAMPLE.content(file.path)[start:stop])

    def _look(self, access: Access, doing: str) -> None:
        if self.is_down:
            raise OriginUnavailableError(doing)
        if access.token not in self.tokens:
            raise OriginDeniedError(doing)

    def for_ref(self, ref: Ref) -> "FakeWeb":
        return self


class FakePull:
    """A pull that brings the sample, unless it is told to fail or to wait."""

    def __init__(self, wish: Wish, target: Target) -> None:
        self.wish = wish
        self.target = target
        self.ended = asyncio.Event()
        self.failure: DamselflyError | None = None
        self.shown: Shown | None = None
        self.artifact: Digest | None = None
        self.watcher_count = 0
        self.plan = SAMPLE.plan

    @contextmanager
    def watched(self) -> Generator[None]:
        self.watcher_count += 1
        try:
            yield
        finally:
            self.watcher_count -= 1

    def progress(self) -> Progress:
        return Progress(ref=self.wish.ref.safe, phase="fetching")


class Bench:
    """Volumes, and everything around them that a test wants to turn."""

    def __init__(self, store: Store, tasks: asyncio.TaskGroup, clock: HandClock) -> None:
        self.store = store
        self.clock = clock
        self.web = FakeWeb()
        self.pulls: list[FakePull] = []
        self.after_pull: Callable[[], None] = lambda: None
        self.failure: DamselflyError | None = None
        self.may_pull = asyncio.Event()
        self.may_pull.set()
        self.workers = ThreadPoolExecutor(4)
        self._tasks = tasks
        shop = Workshop(
            store,
            cast("Origins", self.web),
            cast("Resolver", self.web),
            cast("Swarms", None),
            self.workers,
            clock,
        )
        limits = VolumeLimits(preparations_max=4)
        self.volumes = Volumes(VolumeSettings(proof_ttl_s=1000.0), shop, self._begin, tasks, limits)

    def _begin(self, wish: Wish, target: Target) -> Pull:
        one = FakePull(wish, target)
        self.pulls.append(one)
        self._tasks.create_task(self._run(one))
        return cast("Pull", one)

    async def _run(self, one: FakePull) -> None:
        await self.may_pull.wait()
        if self.failure is not None:
            one.failure = self.failure
        else:
            pull(self.store, SAMPLE)
            self.store.remember(REF, str(SAMPLE.plan.id), ARTIFACT)
            one.shown = Shown(ARTIFACT, None)
            self.after_pull()
        one.ended.set()

    async def open(self, request: VolumeRequest = REQUEST) -> Opened:
        """Open to the end."""
        items = [item async for item in self.volumes.open(request)]
        assert isinstance(items[-1], Opened)
        assert all(isinstance(item, Progress) for item in items[:-1])
        return items[-1]

    def leases(self) -> list[str]:
        """What the disk says."""
        folder = self.store.path / "leases"
        return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def store(tmp_path: Path, clock: HandClock) -> Iterator[Store]:
    limits = Limits(keep_free_bytes=0, free_again_bytes=0)
    with Store.open(tmp_path / "store", limits, clock) as store:
        yield store


Benched = Callable[[Callable[[Bench], Awaitable[None]]], Awaitable[None]]


@pytest.fixture
async def bench(store: Store, clock: HandClock) -> AsyncIterator[Bench]:
    ended = asyncio.Event()
    made: asyncio.Future[Bench] = asyncio.get_running_loop().create_future()

    async def hold() -> None:
        async with asyncio.TaskGroup() as tasks:
            one = Bench(store, tasks, clock)
            made.set_result(one)
            await ended.wait()
            one.may_pull.set()
            one.web.may_answer.set()
            await one.volumes.stop()

    holding = asyncio.create_task(hold())  # A task group is entered and left by one task.
    bench = await made
    yield bench
    ended.set()
    await holding
    bench.workers.shutdown()


async def test_what_nobody_has_is_pulled_leased_and_shown(bench: Bench) -> None:
    volume = await bench.open()

    assert volume.artifact == str(ARTIFACT)
    assert Path(volume.path, "config.json").read_bytes() == SAMPLE.content("config.json")
    assert bench.leases() == ["v1"]
    assert (len(bench.pulls), bench.web.resolved, bench.web.proved) == (1, 1, 1)


async def test_what_is_pulled_is_what_was_proved_with_the_same_credentials(bench: Bench) -> None:
    bench.web.tokens = {"s3cret"}

    await bench.open(REQUEST.but(credentials=Credentials(token="s3cret")))

    (one,) = bench.pulls
    assert one.target == Target(SAMPLE.plan, SAMPLE.manifest, place=Ref.parse(REF))
    assert bench.web.proved_at == [one.target.place]
    assert one.wish.access == Access(token="s3cret")
    assert bench.web.resolved == 1


@pytest.mark.parametrize(
    "place",
    ["https://evil.example/tiny/", "https://host/acme/", "http://host/acme/tiny/", "file:///etc/"],
)
async def test_a_plan_that_leads_elsewhere_is_proved_and_read_at_the_ref_itself(
    bench: Bench, place: str
) -> None:
    bench.web.plan = Plan(place, SAMPLE.plan.files)

    await bench.open()

    assert bench.web.proved_at == [Ref.parse(REF)]
    assert [one.target.place for one in bench.pulls] == [Ref.parse(REF)]


async def test_a_pod_without_credentials_is_nobody_and_not_the_agent(bench: Bench) -> None:
    await bench.open()
    await bench.open(REQUEST.but(lease="v2", credentials=Credentials()))

    assert {one.wish.access for one in bench.pulls} == {ANONYMOUS}
    assert not ANONYMOUS.is_own


async def test_what_is_fresh_is_shown_without_a_word(bench: Bench) -> None:
    await bench.open()

    again = [item async for item in bench.volumes.open(REQUEST.but(lease="v2"))]

    assert [type(item) for item in again] == [Opened]
    assert (len(bench.pulls), bench.web.resolved, bench.web.proved) == (1, 1, 1)


async def test_what_is_not_fresh_is_looked_at_again_and_not_pulled(bench: Bench) -> None:
    await bench.open()
    bench.clock.now_s += 100

    await bench.open(REQUEST.but(lease="v2"))

    assert (len(bench.pulls), bench.web.resolved, bench.web.proved) == (1, 2, 1)


async def test_a_known_plan_without_a_manifest_is_found_here_too(bench: Bench) -> None:
    bench.web.is_planned_only = True
    await bench.open()
    bench.clock.now_s += 100

    await bench.open(REQUEST.but(lease="v2"))

    assert (len(bench.pulls), bench.web.resolved) == (1, 2)


async def test_an_eviction_between_pull_and_lease_is_pulled_again(
    bench: Bench, store: Store
) -> None:
    evictions = [1]

    def evict() -> None:
        if evictions:
            evictions.pop()
            store.remove(ARTIFACT)

    bench.after_pull = evict

    volume = await bench.open()

    assert len(bench.pulls) == 2
    assert Path(volume.path, "config.json").exists()
    assert bench.leases() == ["v1"]


async def test_an_eviction_of_what_was_fresh_is_noticed(bench: Bench, store: Store) -> None:
    await bench.open()
    store.release(ARTIFACT, "v1")
    store.remove(ARTIFACT)

    volume = await bench.open(REQUEST.but(lease="v2"))

    assert len(bench.pulls) == 2
    assert Path(volume.path, "config.json").exists()
    assert bench.leases() == ["v2"]


async def test_a_store_that_evicts_it_every_time_is_too_small(bench: Bench, store: Store) -> None:
    def evict() -> None:
        store.remove(ARTIFACT)

    bench.after_pull = evict

    with pytest.raises(StoreFullError, match="evicted 3 times"):
        await bench.open()

    assert len(bench.pulls) == ATTEMPTS
    assert bench.leases() == []


async def test_a_file_that_was_damaged_meanwhile_is_pulled_again(
    bench: Bench, store: Store
) -> None:
    volume = await bench.open()
    place = Path(volume.path, "weights/a.safetensors")
    place.chmod(0o644)
    place.write_bytes(bytes(place.stat().st_size))

    again = await bench.open(REQUEST.but(lease="v2"))

    assert len(bench.pulls) == 2
    assert Path(again.path, "weights/a.safetensors").read_bytes() == SAMPLE.content(
        "weights/a.safetensors"
    )


async def test_a_failed_pull_fails_the_volume_and_leaves_no_lease(bench: Bench) -> None:
    bench.failure = StoreFullError("no room")

    with pytest.raises(StoreFullError, match="no room"):
        await bench.open()

    assert bench.leases() == []


async def test_nobody_waits_for_the_credentials_of_another(bench: Bench) -> None:
    bench.web.tokens = {"mine"}
    mine = REQUEST.but(credentials=Credentials(token="mine"))
    await bench.open(mine)

    for credentials in (None, Credentials(token="other")):
        with pytest.raises(OriginDeniedError):
            await bench.open(REQUEST.but(lease="v2", credentials=credentials))

    assert bench.leases() == ["v1"]


async def test_believed_is_who_proved_it_as_long_as_the_time_is_not_up(bench: Bench) -> None:
    await bench.open()
    bench.web.is_down = True
    bench.clock.now_s += 900

    served = await bench.open(REQUEST.but(lease="v2"))
    bench.clock.now_s += 200

    assert served.artifact == str(ARTIFACT)
    with pytest.raises(OriginUnavailableError, match="whether these credentials open it"):
        await bench.open(REQUEST.but(lease="v3"))
    assert bench.leases() == ["v1", "v2"]


async def test_a_refusal_ends_what_was_believed(bench: Bench) -> None:
    await bench.open()
    bench.clock.now_s += 1100
    bench.web.tokens = set()
    with pytest.raises(OriginDeniedError):
        await bench.open(REQUEST.but(lease="v2"))

    bench.web.is_down = True
    bench.clock.now_s -= 1100  # Even if the clock is set back.

    with pytest.raises(OriginUnavailableError):
        await bench.open(REQUEST.but(lease="v3", include=("*.json",)))


async def test_who_hangs_up_before_the_end_leaves_the_pull_going(bench: Bench) -> None:
    bench.may_pull.clear()
    async with aclosing(bench.volumes.open(REQUEST)) as items:
        assert isinstance(await anext(items), Progress)

    bench.may_pull.set()
    await bench.open(REQUEST.but(lease="v2"))

    assert len(bench.pulls) == 1
    assert bench.leases() == ["v2"]


async def test_an_answer_that_nobody_took_gives_the_lease_back(bench: Bench) -> None:
    async with aclosing(bench.volumes.open(REQUEST)) as items:
        while not isinstance(await anext(items), Opened):
            pass
        assert bench.leases() == ["v1"]

    assert bench.leases() == []


async def test_a_lease_that_was_there_before_stays(bench: Bench, store: Store) -> None:
    store.lease(ARTIFACT, "v1")

    async with aclosing(bench.volumes.open(REQUEST)) as items:
        while not isinstance(await anext(items), Opened):
            pass

    assert bench.leases() == ["v1"]


async def test_who_gives_up_does_not_take_the_lease_from_who_asked_again(bench: Bench) -> None:
    async with aclosing(bench.volumes.open(REQUEST)) as first:
        while not isinstance(await anext(first), Opened):
            pass
        await bench.open(REQUEST)

    assert bench.leases() == ["v1"]


async def test_the_last_of_those_who_give_up_gives_the_lease_back(bench: Bench) -> None:
    async with aclosing(bench.volumes.open(REQUEST)) as first:
        while not isinstance(await anext(first), Opened):
            pass
        async with aclosing(bench.volumes.open(REQUEST)) as second:
            while not isinstance(await anext(second), Opened):
                pass
        assert bench.leases() == ["v1"]

    assert bench.leases() == []


async def test_a_caller_cancelled_at_any_moment_leaves_no_lease(bench: Bench) -> None:
    await bench.open(REQUEST.but(lease="kept"))

    for delay in range(12):
        opening = asyncio.create_task(bench.open())
        for _ in range(delay):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait({opening})
        if opening.cancelled():
            await settled(bench)
            assert bench.leases() == ["kept"], delay
        else:
            bench.store.release(ARTIFACT, "v1")


async def settled(bench: Bench) -> None:
    """Wait until what a cancelled caller left to others is done."""
    async with asyncio.timeout(5):
        while bench.volumes.is_busy:
            await asyncio.sleep(0.001)


async def test_the_two_layouts_of_a_volume_share_its_lease(bench: Bench) -> None:
    plain = await bench.open()

    hub = await bench.open(REQUEST.but(layout="hf-cache"))

    assert hub.artifact == plain.artifact
    assert hub.path != plain.path
    assert Path(hub.path, "models--acme--tiny", "refs", "main").read_text() == ARTIFACT.hex[:40]
    assert bench.leases() == ["v1"]


async def test_a_preparation_can_be_cancelled_while_it_resolves(bench: Bench) -> None:
    bench.web.may_answer.clear()
    opening = asyncio.create_task(bench.open())
    async with asyncio.timeout(5):
        while not bench.volumes.resolving():
            await asyncio.sleep(0)

    (one,) = bench.volumes.resolving()
    assert one.task is not None
    one.task.cancel()

    with pytest.raises(CancelledError):
        await opening
    assert bench.volumes.resolving() == []


async def test_too_many_volumes_at_once_are_asked_to_come_again(bench: Bench) -> None:
    bench.web.may_answer.clear()
    requests = [REQUEST.but(ref=f"https://host/m{number}/") for number in range(5)]
    openings = [asyncio.create_task(bench.open(request)) for request in requests[:4]]
    async with asyncio.timeout(5):
        while len(bench.volumes.resolving()) < 4:
            await asyncio.sleep(0)

    with pytest.raises(UnavailableError, match="4 volumes"):
        await bench.open(requests[4])

    bench.web.may_answer.set()
    await asyncio.gather(*openings)


@pytest.mark.parametrize(
    "change",
    [
        {"lease": ".hidden"},
        {"layout": "zip"},
        {"include": ("x",) * 300},
        {"credentials": Credentials(token="a b")},
        {"credentials": Credentials(token="a", username="b")},
        {"include": ("nothing-is-called-this",)},
    ],
)
async def test_what_makes_no_sense_is_refused(bench: Bench, change: dict[str, object]) -> None:
    await bench.open(REQUEST.but(lease="v0"))

    with pytest.raises(UsageError):
        await bench.open(REQUEST.but(**change))

    assert bench.leases() == ["v0"]


async def test_a_pin_that_was_never_here_is_looked_up_and_refused(bench: Bench) -> None:
    other = Digest.of(b"another")

    with pytest.raises(ArtifactNotFoundError, match="was never"):
        await bench.open(REQUEST.but(ref=f"{REF}#{other}"))

    assert bench.pulls == []
    assert bench.leases() == []


async def test_a_pin_that_was_here_is_shown_without_a_word(bench: Bench) -> None:
    await bench.open()
    bench.clock.now_s += 500

    items = [item async for item in bench.volumes.open(REQUEST.but(ref=f"{REF}#{ARTIFACT}"))]

    assert [type(item) for item in items] == [Opened]
    assert (bench.web.resolved, bench.web.proved) == (1, 1)


async def test_a_pull_that_a_volume_waits_for_is_a_watched_one(bench: Bench) -> None:
    bench.may_pull.clear()
    async with aclosing(bench.volumes.open(REQUEST)) as items:
        while not bench.pulls:
            await anext(items)

        await until(lambda: bench.pulls[0].watcher_count == 1)
        bench.may_pull.set()
        assert [item async for item in items][-1].event == "done"

    assert bench.pulls[0].watcher_count == 0
