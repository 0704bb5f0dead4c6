"""What every agent does on its socket, asked by the client: one suite, whoever serves.

A subclass gives the fixture `served`. Each question is asked in a thread, so the agent may live in
the test's event loop or in a process of its own.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from damselfly.client.agent import AgentClient
from damselfly.client.answers import BadChunk, Progress, Pulled, PullRequest, Verified
from damselfly.errors import (
    ArtifactNotFoundError,
    CancelledError,
    JobNotFoundError,
    LeaseHeldError,
    OriginNotFoundError,
    UsageError,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Served:
    """An agent with an empty store, and what it can reach.

    `hold` keeps a pull that begins after it from ending before `release`. `files` must have one
    that matches `*.safetensors` and one that does not.
    """

    socket: Path
    ref: str
    files: Mapping[str, bytes]
    missing_ref: str
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


def files_below(view: str) -> dict[str, bytes]:
    """The files of a view."""
    root = Path(view)
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def next_of(items: Iterator[Progress | Pulled]) -> Progress | Pulled:
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
