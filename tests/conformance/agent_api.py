"""What every agent does on its socket, asked by the client: one suite, whoever serves.

A subclass gives the fixture `served`. Each question is asked in a thread, so the agent may live in
the test's event loop or in a process of its own.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from damselfly.client.agent import AgentClient
from damselfly.client.answers import (
    BadChunk,
    CapacityRequest,
    Credentials,
    Opened,
    Progress,
    Pulled,
    PullRequest,
    Verified,
    VolumeRequest,
)
from damselfly.errors import (
    ArtifactNotFoundError,
    CancelledError,
    JobNotFoundError,
    LeaseHeldError,
    OriginDeniedError,
    OriginNotFoundError,
    UsageError,
    explain,
)
from damselfly.model.digest import Digest
from damselfly.model.lease import lease_path

T = TypeVar("T")
TOKEN = "conformance-s3cret"
OWNER = Credentials(token=TOKEN)


@dataclass(frozen=True)
class Served:
    """An agent with an empty store, and what it can reach.

    `hold` keeps a pull that begins after it from ending before `release`. `files` must have one
    that matches `*.safetensors` and one that does not. `private_ref` has the same files for who
    shows `TOKEN`.
    """

    socket: Path
    ref: str
    files: Mapping[str, bytes]
    missing_ref: str
    private_ref: str
    hold: Callable[[], None]
    release: Callable[[], None]

    @property
    def client(self) -> AgentClient:
        """A client of it."""
        return AgentClient(str(self.socket))

    @property
    def request(self) -> PullRequest:
        """Everything."""
        return PullRequest(ref=self.ref)


async def pulled(served: Served, request: PullRequest | None = None) -> Pulled:
    """Pull to the end."""

    def pull() -> Pulled:
        *_, last = served.client.pull(request or served.request)
        assert isinstance(last, Pulled)
        return last

    return await asyncio.to_thread(pull)


async def ask(question: Callable[..., T], *args: object) -> T:
    """Ask in a thread."""
    return await asyncio.to_thread(question, *args)


async def told(items: Iterable[T]) -> list[T]:
    """Everything that a stream says."""
    return await asyncio.to_thread(lambda: list(items))


def last_of(client: AgentClient, request: VolumeRequest) -> Opened:
    """What a volume's stream ends with."""
    *_, last = client.open_volume(request)
    assert isinstance(last, Opened)
    return last


async def opened(served: Served, request: VolumeRequest) -> Opened:
    """Open a volume to the end."""
    return await asyncio.to_thread(last_of, served.client, request)


def lease_of(volume: Opened, lease: str) -> Path:
    """Where the volume's lease has to lie."""
    return Path(volume.store) / lease_path(Digest.parse(volume.artifact), lease)


def leases_below(store: str) -> list[str]:
    """The ids of all leases of a store."""
    folder = Path(store, "leases")
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def files_below(view: str) -> dict[str, bytes]:
    """The files of a view."""
    root = Path(view)
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def next_of(items: Iterator[T]) -> T:
    """The next item (a StopIteration cannot leave a thread)."""
    return next(items)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a state."""
    async with asyncio.timeout(20):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.01)


class AgentAPIConformance:
    """See the module."""

    async def test_a_pull_ends_with_a_view_of_the_files(self, served: Served) -> None:
        done = await pulled(served)

        assert files_below(done.path) == served.files
        assert done.files == len(served.files)
        assert done.bytes == sum(map(len, served.files.values()))
        sources = done.bytes_from_origin + done.bytes_from_peers + done.bytes_from_store
        assert sources == done.bytes
        assert done.artifact.startswith("blake3:")

    async def test_progress_only_grows(self, served: Served) -> None:
        items = await told(served.client.pull(served.request))

        moments = [item for item in items if isinstance(item, Progress)]
        done = [item.bytes_done for item in moments]
        assert done == sorted(done)
        assert all(item.bytes_done <= item.bytes_total for item in moments)

    async def test_what_is_in_the_store_is_not_fetched_again(self, served: Served) -> None:
        first = await pulled(served)

        again = await pulled(served)

        assert again.artifact == first.artifact
        assert (again.bytes_from_origin, again.bytes_from_peers) == (0, 0)

    async def test_filters_choose_files(self, served: Served) -> None:
        only = PullRequest(ref=served.ref, include=("*.safetensors",))
        but = PullRequest(ref=served.ref, exclude=("*.safetensors",))

        weights = files_below((await pulled(served, only)).path)
        rest = files_below((await pulled(served, but)).path)

        assert weights
        assert set(weights) == {path for path in served.files if path.endswith(".safetensors")}
        assert set(rest) >= set(served.files) - set(weights)

    async def test_what_the_origin_lacks_is_said_by_name(self, served: Served) -> None:
        with pytest.raises(OriginNotFoundError):
            await pulled(served, PullRequest(ref=served.missing_ref))

    async def test_what_is_no_ref_is_refused(self, served: Served) -> None:
        with pytest.raises(UsageError):
            await pulled(served, PullRequest(ref="no ref"))

    async def test_hanging_up_leaves_the_pull_going(self, served: Served) -> None:
        served.hold()
        items = served.client.pull(served.request)
        await ask(next_of, items)

        await ask(items.close)

        running = await ask(served.client.pulls)
        assert [pull.ref for pull in running] == [served.ref]
        served.release()
        assert files_below((await pulled(served)).path) == served.files

    async def test_the_same_pull_is_joined(self, served: Served) -> None:
        served.hold()
        first = asyncio.create_task(pulled(served))
        second = asyncio.create_task(pulled(served))
        await until(lambda: len(served.client.pulls()) > 0)

        assert len(await ask(served.client.pulls)) == 1
        served.release()
        assert (await first).artifact == (await second).artifact

    async def test_cancelling_ends_the_pull_for_everybody(self, served: Served) -> None:
        served.hold()
        watchers = [asyncio.create_task(pulled(served)) for _ in range(2)]
        await until(lambda: len(served.client.pulls()) > 0)

        cancelled = await ask(served.client.cancel, served.ref)

        assert [item.ref for item in cancelled] == [served.ref]
        for watcher in watchers:
            with pytest.raises(CancelledError):
                await watcher
        await until(lambda: not served.client.pulls())
        with pytest.raises(JobNotFoundError):
            await ask(served.client.cancel, served.ref)
        served.release()

    async def test_a_cancelled_pull_can_be_started_again(self, served: Served) -> None:
        served.hold()
        watcher = asyncio.create_task(pulled(served))
        await until(lambda: len(served.client.pulls()) > 0)
        await ask(served.client.cancel, served.ref)
        with pytest.raises(CancelledError):
            await watcher
        served.release()
        await until(lambda: not served.client.pulls())

        done = await pulled(served)

        assert files_below(done.path) == served.files

    async def test_the_store_lists_what_it_holds(self, served: Served) -> None:
        assert await ask(served.client.artifacts) == []
        done = await pulled(served)

        (held,) = await ask(served.client.artifacts)

        assert held.artifact == done.artifact
        assert served.ref in held.refs
        assert held.bytes == held.bytes_held == done.bytes
        assert held.files == done.files

    async def test_a_pin_keeps_until_it_is_taken_away(self, served: Served) -> None:
        done = await pulled(served)

        assert (await ask(served.client.pin, done.artifact)).pinned
        with pytest.raises(LeaseHeldError):
            await ask(served.client.remove, done.artifact)
        assert not (await ask(served.client.unpin, done.artifact)).pinned

        assert (await ask(served.client.remove, done.artifact)).artifact == done.artifact
        assert await ask(served.client.artifacts) == []

    async def test_an_artifact_goes_by_digest_digits_or_ref(self, served: Served) -> None:
        done = await pulled(served)
        digits = done.artifact.removeprefix("blake3:")

        for name in (done.artifact, digits, digits[:6], f"blake3:{digits[:8]}", served.ref):
            assert (await ask(served.client.pin, name)).artifact == done.artifact

    async def test_what_the_store_lacks_is_said_by_name(self, served: Served) -> None:
        for question in (served.client.remove, served.client.pin, served.client.unpin):
            with pytest.raises(ArtifactNotFoundError):
                await ask(question, "00ff00ff00ff")

    async def test_a_sound_store_verifies(self, served: Served) -> None:
        done = await pulled(served)

        items = await told(served.client.verify(done.artifact))

        last = items[-1]
        assert isinstance(last, Verified)
        assert (last.artifacts, last.bytes, last.chunks_bad) == (1, done.bytes, 0)
        assert not [item for item in items if isinstance(item, BadChunk)]

    async def test_a_flipped_bit_is_named_and_repaired(self, served: Served) -> None:
        done = await pulled(served)
        path = max(served.files, key=lambda path: len(served.files[path]))
        place = Path(done.path, path)
        place.chmod(0o644)
        damaged = bytearray(place.read_bytes())
        damaged[-1] ^= 1
        with place.open("r+b") as file:
            file.write(damaged)

        items = await told(served.client.verify(None, repair=True))

        last = items[-1]
        assert isinstance(last, Verified)
        assert [item.path for item in items if isinstance(item, BadChunk)] == [path]
        assert (last.chunks_bad, last.chunks_repaired) == (1, 1)
        assert files_below((await pulled(served)).path) == served.files

    async def test_the_status_shows_the_pulls(self, served: Served) -> None:
        served.hold()
        watcher = asyncio.create_task(pulled(served))
        await until(lambda: len(served.client.pulls()) > 0)

        status = await ask(served.client.status)

        assert status.state == "ready"
        assert [pull.ref for pull in status.pulls] == [served.ref]
        served.release()
        await watcher

    async def test_gc_takes_nothing_that_is_held(self, served: Served) -> None:
        done = await pulled(served)

        await ask(served.client.gc)

        assert files_below((await pulled(served)).path) == served.files
        assert [item.artifact for item in await ask(served.client.artifacts)] == [done.artifact]

    async def test_the_doctor_knows_the_configuration(self, served: Served) -> None:
        diagnosis = await ask(served.client.doctor)

        assert {check.verdict for check in diagnosis.checks} <= {"ok", "warning", "bad"}
        assert "agent.listen" in {setting.key for setting in diagnosis.settings}

    # --- volumes ------------------------------------------------------------------------------

    async def test_a_volume_shows_the_files_and_is_leased(self, served: Served) -> None:
        volume = await opened(served, VolumeRequest(ref=served.ref, lease="v1"))

        assert files_below(volume.path) == served.files
        assert volume.files == len(served.files)
        assert volume.bytes == sum(map(len, served.files.values()))
        assert Path(volume.path).is_relative_to(volume.store)
        assert lease_of(volume, "v1").is_file()
        with pytest.raises(LeaseHeldError):
            await ask(served.client.remove, volume.artifact)

    async def test_removing_the_leases_file_gives_it_back(self, served: Served) -> None:
        volume = await opened(served, VolumeRequest(ref=served.ref, lease="v1"))

        lease_of(volume, "v1").unlink()

        assert (await ask(served.client.remove, volume.artifact)).artifact == volume.artifact
        assert not Path(volume.path).exists()

    async def test_a_volume_of_what_is_here_is_opened_at_once(self, served: Served) -> None:
        first = await opened(served, VolumeRequest(ref=served.ref, lease="v1"))

        items = await told(served.client.open_volume(VolumeRequest(ref=served.ref, lease="v2")))

        assert items == [first]
        assert leases_below(first.store) == ["v1", "v2"]

    async def test_the_same_volume_is_opened_again_under_its_lease(self, served: Served) -> None:
        request = VolumeRequest(ref=served.ref, lease="v1")
        first = await opened(served, request)

        again = await opened(served, request)

        assert again == first
        assert leases_below(first.store) == ["v1"]

    async def test_volumes_of_one_ref_are_one_pull(self, served: Served) -> None:
        served.hold()
        leases = [f"v{number}" for number in range(20)]
        requests = [VolumeRequest(ref=served.ref, lease=lease) for lease in leases]
        with ThreadPoolExecutor(len(leases)) as threads:
            volumes = [threads.submit(last_of, served.client, request) for request in requests]
            await until(lambda: len(served.client.pulls()) > 0)

            running = await ask(served.client.pulls)
            served.release()
            shown = {await asyncio.wrap_future(volume) for volume in volumes}

        assert len(running) == 1
        assert len(shown) == 1
        assert leases_below(shown.pop().store) == sorted(leases)

    async def test_hanging_up_leaves_the_pull_going_and_no_lease(self, served: Served) -> None:
        served.hold()
        items = served.client.open_volume(VolumeRequest(ref=served.ref, lease="v1"))
        await ask(next_of, items)
        await until(lambda: len(served.client.pulls()) > 0)

        await ask(items.close)

        assert len(await ask(served.client.pulls)) == 1
        served.release()
        volume = await opened(served, VolumeRequest(ref=served.ref, lease="v2"))
        assert files_below(volume.path) == served.files
        await until(lambda: leases_below(volume.store) == ["v2"])

    async def test_filters_choose_the_files_of_a_volume(self, served: Served) -> None:
        request = VolumeRequest(ref=served.ref, lease="v1", include=("*.safetensors",))

        shown = files_below((await opened(served, request)).path)

        wanted = {path for path in served.files if path.endswith(".safetensors")}
        assert set(shown) == wanted

    async def test_a_volume_in_the_hubs_layout_has_a_snapshot(self, served: Served) -> None:
        request = VolumeRequest(ref=served.ref, lease="v1", layout="hf-cache")

        volume = await opened(served, request)

        (repository,) = Path(volume.path).glob("models--*--*")
        revision = (repository / "refs" / "main").read_text()
        assert files_below(str(repository / "snapshots" / revision)) == served.files

    async def test_a_volume_that_cannot_be_leaves_no_lease(self, served: Served) -> None:
        volume = await opened(served, VolumeRequest(ref=served.ref, lease="here"))

        for request, error in (
            (VolumeRequest(ref=served.missing_ref, lease="v1"), OriginNotFoundError),
            (VolumeRequest(ref=served.private_ref, lease="v2"), OriginDeniedError),
            (VolumeRequest(ref="no ref", lease="v3"), UsageError),
            (VolumeRequest(ref=served.ref, lease="../v4"), UsageError),
            (VolumeRequest(ref=served.ref, lease="v5", layout="zip"), UsageError),
        ):
            with pytest.raises(error):
                await opened(served, request)

        assert leases_below(volume.store) == ["here"]

    async def test_a_private_copy_is_shown_to_who_may_see_it_alone(self, served: Served) -> None:
        private = VolumeRequest(ref=served.private_ref, lease="v1", credentials=OWNER)
        volume = await opened(served, private)

        for lease, credentials in (("v2", None), ("v3", Credentials(token="wrong-s3cret"))):
            stranger = private.but(lease=lease, credentials=credentials)
            with pytest.raises(OriginDeniedError) as caught:
                await opened(served, stranger)
            assert "s3cret" not in explain(caught.value)

        assert files_below(volume.path) == served.files
        assert await opened(served, private.but(lease="v4")) == volume
        assert leases_below(volume.store) == ["v1", "v4"]

    async def test_credentials_open_a_private_pull(self, served: Served) -> None:
        request = PullRequest(ref=served.private_ref)
        with pytest.raises(OriginDeniedError):
            await pulled(served, request)

        done = await pulled(served, request.but(credentials=OWNER))

        assert files_below(done.path) == served.files

    async def test_what_is_being_copied_is_kept_until_nobody_listens(self, served: Served) -> None:
        items = served.client.pull(served.request.but(hold=True))
        while not isinstance(done := await ask(next_of, items), Pulled):
            pass

        with pytest.raises(LeaseHeldError):
            await ask(served.client.remove, done.artifact)
        assert (await ask(served.client.status)).store.leases == 1
        await ask(items.close)

        await until(lambda: served.client.status().store.leases == 0)
        assert (await ask(served.client.remove, done.artifact)).artifact == done.artifact

    async def test_the_status_counts_leases_and_pins(self, served: Served) -> None:
        volume = await opened(served, VolumeRequest(ref=served.ref, lease="v1"))
        await ask(served.client.pin, volume.artifact)

        store = (await ask(served.client.status)).store

        assert (store.leases, store.pins) == (1, 1)

    async def test_the_capacity_counts_what_is_here(self, served: Served) -> None:
        question = CapacityRequest(ref=served.ref)
        before = await ask(served.client.capacity, question)
        volume = await opened(served, VolumeRequest(ref=served.ref, lease="v1"))

        after = await ask(served.client.capacity, question)

        assert (before.ref_bytes, before.ref_bytes_held) == (None, 0)
        assert (after.ref_bytes, after.ref_bytes_held) == (volume.bytes, volume.bytes)
        assert after.available_bytes >= volume.bytes
        anything = await ask(served.client.capacity, CapacityRequest())
        assert anything.available_bytes > 0
        assert anything.ref_bytes is None
