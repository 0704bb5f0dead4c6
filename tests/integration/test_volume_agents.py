"""Volumes of real agents over an origin that wants to know who asks: what is shown, and to whom."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from bench.agents import Fleet, free_addresses
from damselfly.agent.possession import SPANS_MIN
from damselfly.client.answers import Progress, PullRequest, VolumeRequest
from damselfly.errors import (
    ArtifactNotFoundError,
    DamselflyError,
    DeniedError,
    DigestMismatchError,
    OriginDeniedError,
    OriginNotFoundError,
    OriginUnavailableError,
    StoreFullError,
    explain,
)
from tests.integration.volume_origin import (
    FILES,
    OWNER,
    SECRET,
    STRANGER,
    GuardedOrigin,
    files_below,
    guarded_origin,
    leases_of,
    open_volume,
    opened,
    ready,
)

EVERYTHING = sum(map(len, FILES.values()))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path / "fleet") as fleet:
        yield fleet


@pytest.fixture
async def origin(tmp_path: Path) -> AsyncIterator[GuardedOrigin]:
    async with guarded_origin(tmp_path / "model") as origin:
        yield origin


def said(fleet: Fleet, name: str) -> str:
    return (fleet.folder / f"{name}.log").read_text()


def phases(pulls: Sequence[Progress]) -> list[str]:
    return [pull.phase for pull in pulls]


async def test_a_copy_of_this_node_serves_who_was_believed_while_the_origin_is_down(
    fleet: Fleet, origin: GuardedOrigin
) -> None:
    (address,) = free_addresses(1)
    agent = await ready(fleet, "n0", address, [address])
    before = await opened(agent, origin.ref, "v0", OWNER)
    ref = origin.ref
    await origin.down()
    # An agent that begins anew has nothing fresh in its head, only what is on the disk.
    await asyncio.to_thread(agent.process.stop)
    agent = await ready(fleet, "n0", address, [address])

    after = await opened(agent, ref, "v1", OWNER)

    assert after == before
    assert files_below(after.path) == FILES
    assert "origin.replaced" in said(fleet, "n0")
    for who, lease in ((None, "v2"), (STRANGER, "v3")):
        with pytest.raises(OriginUnavailableError):
            await opened(agent, ref, lease, who)
    assert leases_of(fleet, agent) == ["v0", "v1"]


async def test_a_proof_whose_time_is_up_is_asked_for_again(
    fleet: Fleet, origin: GuardedOrigin
) -> None:
    (address,) = free_addresses(1)
    agent = await ready(fleet, "n0", address, [address], "--proof-ttl", "0s")
    await opened(agent, origin.ref, "v0", OWNER)
    origin.tokens = {"another"}

    with pytest.raises(OriginDeniedError, match="with the credentials given"):
        await opened(agent, origin.ref, "v1", OWNER)
    with pytest.raises(OriginDeniedError, match="without credentials"):
        await opened(agent, origin.ref, "v2")

    await origin.down()
    with pytest.raises(OriginUnavailableError):
        await opened(agent, origin.ref, "v3", OWNER)
    assert leases_of(fleet, agent) == ["v0"]


async def test_a_volume_of_a_ref_that_no_prefix_allows_is_refused(
    fleet: Fleet, origin: GuardedOrigin
) -> None:
    (address,) = free_addresses(1)
    options = ("--volume-accept", "https://models.example/")
    agent = await ready(fleet, "n0", address, [address], *options)
    asked = len(origin.asked)

    with pytest.raises(DeniedError, match="--volume-accept"):
        await opened(agent, origin.ref, "v0", OWNER)

    assert len(origin.asked) == asked
    assert leases_of(fleet, agent) == []


async def test_a_proof_is_remembered_for_who_gave_it(fleet: Fleet, origin: GuardedOrigin) -> None:
    (address,) = free_addresses(1)
    agent = await ready(fleet, "n0", address, [address])
    await opened(agent, origin.ref, "v0", OWNER)
    origin.tokens = {"another"}
    asked = len(origin.asked)

    volume = await opened(agent, origin.ref, "v1", OWNER)

    assert files_below(volume.path) == FILES
    assert len(origin.asked) == asked


async def test_who_has_a_copy_from_peers_proves_it_all_the_same(
    fleet: Fleet, origin: GuardedOrigin
) -> None:
    addresses = free_addresses(2)
    one = await ready(fleet, "n0", addresses[0], addresses)
    two = await ready(fleet, "n1", addresses[1], addresses)
    await asyncio.to_thread(fleet.wait_until_met)
    await opened(one, origin.ref, "v0", OWNER)
    reads = len(origin.reads)

    for who in (None, STRANGER):
        with pytest.raises(OriginDeniedError):
            await opened(two, origin.ref, "v1", who)
    volume = await opened(two, origin.ref, "v2", OWNER)

    assert files_below(volume.path) == FILES
    spans = len(origin.reads) - reads
    assert 0 < spans <= SPANS_MIN * len(FILES), "the origin shows a few spans, and no more"
    assert (await asyncio.to_thread(two.client.status)).traffic.bytes_from_peers >= EVERYTHING
    assert leases_of(fleet, two) == ["v2"]


@pytest.mark.parametrize("first", ["stranger", "owner"])
async def test_a_pull_is_not_failed_by_the_refusal_of_another(
    fleet: Fleet, origin: GuardedOrigin, first: str
) -> None:
    origin.open_to_look = True
    origin.may_read.clear()
    (address,) = free_addresses(1)
    agent = await ready(fleet, "n0", address, [address])

    async def pulled(request: PullRequest) -> str:
        *_, last = await asyncio.to_thread(lambda: list(agent.client.pull(request)))
        return str(last)

    stranger = PullRequest(ref=origin.ref)
    owner = stranger.but(credentials=OWNER)
    requests = (stranger, owner) if first == "stranger" else (owner, stranger)
    tasks: dict[PullRequest, asyncio.Task[str]] = {}
    for count, request in enumerate(requests, start=1):
        tasks[request] = asyncio.create_task(pulled(request))
        async with asyncio.timeout(20):
            while phases(await asyncio.to_thread(agent.client.pulls)) != ["fetching"] * count:
                await asyncio.sleep(0.01)
    origin.may_read.set()

    if first == "stranger":
        with pytest.raises(OriginDeniedError):
            await tasks[stranger]
    else:
        assert "blake3:" in await tasks[stranger]  # It waited, and then everything was here.
    assert "blake3:" in await tasks[owner]
    volume = await opened(agent, origin.ref, "v0", OWNER)
    assert files_below(volume.path) == FILES


async def test_a_pin_is_no_way_to_anothers_model(
    fleet: Fleet, origin: GuardedOrigin, tmp_path: Path
) -> None:
    (address,) = free_addresses(1)
    agent = await ready(fleet, "n0", address, [address])
    private = await opened(agent, origin.ref, "v0", OWNER)
    own = tmp_path / "own"
    (own / "tokenizer").mkdir(parents=True)
    for path, data in FILES.items():  # Called the same, as large, and not the same.
        (own / path).write_bytes(data[:2000] + bytes(len(data) - 2000) if data[2000:] else data)

    mine = fleet.start_origin(own, free_addresses(1)[0])
    for ref, error in (
        (f"{mine.url}#{private.artifact}", DigestMismatchError),
        (f"file://{own}/#{private.artifact}", DigestMismatchError),
        (f"file://{tmp_path}/none/#{private.artifact}", OriginNotFoundError),
        (f"{origin.ref}#{private.artifact}", OriginDeniedError),
    ):
        with pytest.raises(error):
            await opened(agent, ref, "v1")

    # Now that it is known what they are, nothing is pulled to find that out.
    with pytest.raises(ArtifactNotFoundError, match="was never"):
        await opened(agent, f"{mine.url}#{private.artifact}", "v1")
    assert leases_of(fleet, agent) == ["v0"]


async def test_a_pin_names_what_a_ref_once_was_here(fleet: Fleet, origin: GuardedOrigin) -> None:
    (address,) = free_addresses(1)
    agent = await ready(fleet, "n0", address, [address])
    old = await opened(agent, origin.ref, "v0", OWNER)
    pinned = f"{origin.ref}#{old.artifact}"
    await origin.down()

    again = await opened(agent, pinned, "v1", OWNER)

    assert again.path == old.path
    with pytest.raises(OriginUnavailableError):
        await opened(agent, pinned, "v2")
    assert leases_of(fleet, agent) == ["v0", "v1"]


async def test_a_volume_that_does_not_fit_is_refused_and_takes_nothing_away(
    fleet: Fleet, origin: GuardedOrigin, tmp_path: Path
) -> None:
    origin.tokens = set()
    (address,) = free_addresses(1)
    size = f"{EVERYTHING + 100}B"
    agent = await ready(fleet, "n0", address, [address], "--store-capacity", size)
    held = await opened(agent, origin.ref, "v0")
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.bin").write_bytes(bytes(1 << 20))

    with pytest.raises(StoreFullError, match="leased by v0"):
        await opened(agent, f"file://{other}/", "v1")

    assert files_below(held.path) == FILES
    assert leases_of(fleet, agent) == ["v0"]


async def test_what_is_not_leased_any_more_makes_room_for_the_next_volume(
    fleet: Fleet, origin: GuardedOrigin, tmp_path: Path
) -> None:
    origin.tokens = set()
    (address,) = free_addresses(1)
    size = f"{EVERYTHING + 100}B"
    agent = await ready(fleet, "n0", address, [address], "--store-capacity", size)
    first = await opened(agent, origin.ref, "v0")
    (lease,) = (fleet.folder / "n0" / "leases").rglob("v0")
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.bin").write_bytes(bytes(1 << 20))

    lease.unlink()
    volume = await opened(agent, f"file://{other}/", "v1")

    assert files_below(volume.path) == {"a.bin": bytes(1 << 20)}
    assert not Path(first.path).exists()
    with pytest.raises(StoreFullError, match="leased by v1"):
        await opened(agent, origin.ref, "v2")


async def test_a_filtered_volume_is_found_again_without_a_pull(
    fleet: Fleet, origin: GuardedOrigin
) -> None:
    origin.tokens = set()
    (address,) = free_addresses(1)
    agent = await ready(fleet, "n0", address, [address])
    request = VolumeRequest(ref=origin.ref, lease="v0", include=("*.json",))
    first = await asyncio.to_thread(open_volume, agent, request)
    await asyncio.to_thread(agent.process.stop)
    agent = await ready(fleet, "n0", address, [address])
    await origin.down()

    again = await asyncio.to_thread(open_volume, agent, request.but(lease="v1"))

    assert again == first
    assert files_below(again.path) == {"config.json": FILES["config.json"]}


async def test_an_agent_lives_on_with_what_was_chosen_of_a_model(
    fleet: Fleet, origin: GuardedOrigin
) -> None:
    origin.tokens = set()
    (address,) = free_addresses(1)
    agent = await ready(fleet, "n0", address, [address])
    await asyncio.to_thread(
        open_volume, agent, VolumeRequest(ref=origin.ref, lease="v0", include=("*.json",))
    )
    await asyncio.to_thread(agent.process.stop)
    joined = said(fleet, "n0").count("swarm.joined")

    # It seeds what it has, and looks what to tell the homes of refs about it.
    agent = await ready(fleet, "n0", address, [address])
    async with asyncio.timeout(20):
        while said(fleet, "n0").count("swarm.joined") == joined:
            await asyncio.sleep(0.01)
    volume = await opened(agent, origin.ref, "v1")

    assert files_below(volume.path) == FILES
    assert agent.process.is_alive


async def test_refusals_say_what_was_refused_and_not_the_secret(
    fleet: Fleet, origin: GuardedOrigin
) -> None:
    (address,) = free_addresses(1)
    agent = await ready(fleet, "n0", address, [address])
    origin.tokens = {"another"}

    with pytest.raises(DamselflyError) as caught:
        await opened(agent, origin.ref, "v0", OWNER)

    assert origin.ref in explain(caught.value)
    assert SECRET not in explain(caught.value)
