"""The driver's volumes from inside: forgotten ones, limits, and what a hostile store can do."""

import asyncio
import errno
import json
import os
import shutil
import threading
from collections.abc import AsyncIterator, Generator
from dataclasses import replace
from pathlib import Path

import pytest

from bench.driver import mount_capability
from bench.mounts import mounts_at, mounts_below
from damselfly.client.agent import AgentClient
from damselfly.client.answers import Opened, Progress, VolumeRequest
from damselfly.clock import SystemClock
from damselfly.csi import mount, recovery
from damselfly.csi.controller import Controller
from damselfly.csi.created import Created
from damselfly.csi.exclusive import Exclusive
from damselfly.csi.leases import Leases
from damselfly.csi.node import HealthyNode
from damselfly.csi.opening import Agent, Opening
from damselfly.csi.options import DRIVER_NAME, Limits, Options
from damselfly.csi.proto import csi_pb2
from damselfly.csi.publication import Publication
from damselfly.csi.records import Records
from damselfly.csi.recovery import recover
from damselfly.csi.sealing import Sealing
from damselfly.csi.status import ConflictError, PendingError, PreconditionError, VolumeNotFoundError
from damselfly.csi.stores import SeenStore, Stores
from damselfly.csi.targets import Targets
from damselfly.csi.volume import Source, Wish, lease_id
from damselfly.csi.volumes import Volumes
from damselfly.errors import CapacityError, RemoteProtocolError, UsageError
from damselfly.model.digest import Digest
from tests.fakes.volume_agent import VolumeAgent, model
from tests.integration.csi_driver_node import REF, needs_root, run

pytestmark = needs_root

PATIENCE_S = 20.0
DIGEST = Digest.of(b"m")


class Bench:
    """Volumes in this process, and the agent behind them."""

    def __init__(self, root: Path, fake: VolumeAgent) -> None:
        self.root = root
        self.fake = fake
        self.options = Options(
            endpoint=Path("/unused"),
            agent_socket=str(fake.socket),
            node_id="n",
            kubelet_root=root / "kubelet",
            store=fake.store,
            limits=Limits(forgotten_s=0.0),
        )

    def volumes(self, exclusive: Exclusive, agent: Agent | None = None) -> Volumes:
        clock = SystemClock()
        state = self.options.state_folder
        records = Records(state, Publication)
        self.targets = Targets(
            self.options.kubelet_root,
            self.options.store,
            records,
            Sealing(self.options.staging_folder),
            clock,
        )
        published = recover(self.options, self.targets, records, clock)
        agent = agent or AgentClient(self.options.agent_socket)
        stores = Stores(self.options.store, Records(state / "stores", SeenStore), (), exclusive)
        return Volumes(self.options, self.targets, agent, published, stores, exclusive, clock)

    def wish(self, pod: str = "p1", volume_id: str = "v1") -> Wish:
        target = self.root / "kubelet/pods" / pod / "volumes/kubernetes.io~csi/w/mount"
        target.parent.mkdir(parents=True, exist_ok=True)
        return Wish(volume_id=volume_id, target=str(target), source=Source(ref=REF))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    with VolumeAgent(tmp_path) as agent:
        agent.models[REF] = model()
        yield Bench(tmp_path, agent)
    for found in reversed(mounts_below(tmp_path)):
        mount.unmount_all(str(found.path))


@pytest.fixture
async def exclusive() -> AsyncIterator[Exclusive]:
    async with Exclusive(4) as exclusive:
        yield exclusive


async def begun(volumes: Volumes, wish: Wish) -> None:
    """Begin to publish, and hang up."""
    with pytest.raises(PendingError):
        await volumes.publish(wish, {}, 0.0)


async def until(volumes: Volumes, wish: Wish, *, ended: bool) -> None:
    opening = volumes._openings[wish.target]
    if ended:
        await asyncio.wait_for(opening.ended.wait(), PATIENCE_S)


async def test_what_was_opened_and_never_asked_for_again_is_given_back(
    bench: Bench, exclusive: Exclusive
) -> None:
    volumes, wish = bench.volumes(exclusive), bench.wish()
    await begun(volumes, wish)
    await until(volumes, wish, ended=True)
    assert bench.fake.leases()
    assert mounts_at(Path(wish.target)) == []  # Nothing is mounted unless somebody waits for it.

    await volumes.sweep()

    assert volumes._openings == {}
    assert bench.fake.leases() == set()


async def test_what_is_still_being_pulled_for_nobody_is_given_up(
    bench: Bench, exclusive: Exclusive
) -> None:
    bench.fake.may_go_on.clear()
    volumes, wish = bench.volumes(exclusive), bench.wish()
    await begun(volumes, wish)
    opening = volumes._openings[wish.target]

    await volumes.sweep()
    await asyncio.wait_for(opening.ended.wait(), PATIENCE_S)
    bench.fake.may_go_on.set()
    await exclusive.step(wish.target, nothing)

    assert volumes._openings == {}


async def nothing() -> None:
    return


async def test_a_sweep_takes_nothing_from_who_is_waiting(
    bench: Bench, exclusive: Exclusive
) -> None:
    bench.fake.may_go_on.clear()
    volumes, wish = bench.volumes(exclusive), bench.wish()
    call = asyncio.create_task(volumes.publish(wish, {}, PATIENCE_S))
    while not any(opening.waiting for opening in volumes._openings.values()):
        await asyncio.sleep(0)

    await volumes.sweep()
    bench.fake.may_go_on.set()
    await call
    await volumes.sweep()

    assert len(mounts_at(Path(wish.target))) == 1
    assert len(bench.fake.leases()) == 1


async def test_a_call_that_waits_hears_of_an_unpublish(bench: Bench, exclusive: Exclusive) -> None:
    bench.fake.may_go_on.clear()
    volumes, wish = bench.volumes(exclusive), bench.wish()
    call = asyncio.create_task(volumes.publish(wish, {}, PATIENCE_S))
    while not any(opening.waiting for opening in volumes._openings.values()):
        await asyncio.sleep(0)

    await volumes.unpublish(wish.volume_id, wish.target)

    with pytest.raises(PendingError, match="unpublished meanwhile"):
        await call
    assert mounts_at(Path(wish.target)) == []
    assert volumes._openings == {}


async def test_a_publish_after_an_unpublish_begins_anew(bench: Bench, exclusive: Exclusive) -> None:
    bench.fake.may_go_on.clear()
    volumes, wish = bench.volumes(exclusive), bench.wish()
    await begun(volumes, wish)
    await volumes.unpublish(wish.volume_id, wish.target)
    bench.fake.may_go_on.set()

    await volumes.publish(wish, {}, PATIENCE_S)

    assert len(mounts_at(Path(wish.target))) == 1
    assert len(bench.fake.leases()) == 1


class Late:
    """An agent that leases and answers when it may."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self.is_asked = threading.Event()
        self.may_answer = threading.Event()

    def open_volume(self, request: VolumeRequest) -> Generator[Progress | Opened]:
        self.is_asked.set()
        assert self.may_answer.wait(PATIENCE_S)
        Leases(self._store).hold(DIGEST, request.lease, 1)
        yield Opened(
            ref=request.ref,
            artifact=str(DIGEST),
            path=str(self._store / "views" / "x"),
            store=str(self._store),
            bytes=1,
            files=1,
        )


async def test_a_lease_that_comes_after_the_unpublish_goes_also_in_a_store_nobody_told_of(
    bench: Bench, exclusive: Exclusive
) -> None:
    bench.options = replace(bench.options, store=None)
    agent = Late(bench.fake.store)
    volumes, wish = bench.volumes(exclusive, agent), bench.wish()
    await begun(volumes, wish)
    opening = volumes._openings[wish.target]
    assert await asyncio.to_thread(agent.is_asked.wait, PATIENCE_S)

    await volumes.unpublish(wish.volume_id, wish.target)
    agent.may_answer.set()
    await asyncio.wait_for(opening.ended.wait(), PATIENCE_S)
    await exclusive.step(wish.target, nothing)

    assert opening.opened is not None
    assert bench.fake.leases() == set()


async def test_what_was_opened_in_a_store_nobody_told_of_goes_with_the_unpublish(
    bench: Bench, exclusive: Exclusive
) -> None:
    bench.options = replace(bench.options, store=None)
    volumes, wish = bench.volumes(exclusive), bench.wish()
    await begun(volumes, wish)
    await until(volumes, wish, ended=True)
    assert bench.fake.leases()

    await volumes.unpublish(wish.volume_id, wish.target)

    assert bench.fake.leases() == set()


async def test_volumes_being_opened_are_limited(bench: Bench, exclusive: Exclusive) -> None:
    bench.options = replace(bench.options, limits=Limits(openings_max=1))
    bench.fake.may_go_on.clear()
    volumes = bench.volumes(exclusive)
    await begun(volumes, bench.wish())

    with pytest.raises(PendingError, match="1 volumes are being opened"):
        await volumes.publish(bench.wish("p2", "v2"), {}, PATIENCE_S)


async def test_volumes_that_are_published_are_limited(bench: Bench, exclusive: Exclusive) -> None:
    bench.options = replace(bench.options, limits=Limits(records_max=1))
    volumes = bench.volumes(exclusive)
    await volumes.publish(bench.wish(), {}, PATIENCE_S)

    with pytest.raises(CapacityError):
        await volumes.publish(bench.wish("p2", "v2"), {}, PATIENCE_S)

    await volumes.publish(bench.wish(), {}, PATIENCE_S)


class Liar:
    """An agent that says it opened something that it has no business with."""

    def __init__(self, bench: Bench, **lies: object) -> None:
        self._bench = bench
        self._lies = lies

    def open_volume(self, request: VolumeRequest) -> Generator[Progress | Opened]:
        opened = Opened(
            ref=request.ref,
            artifact=str(DIGEST),
            path=str(self._bench.fake.store / "views" / "x"),
            store=str(self._bench.fake.store),
            bytes=1,
            files=1,
        )
        yield opened.but(**self._lies)


@pytest.mark.parametrize(
    "lies", [{"path": "/etc"}, {"path": "views/x"}, {"artifact": "x"}, {"path": "/s/../etc"}]
)
async def test_an_answer_that_cannot_be_true_is_not_mounted(
    bench: Bench, exclusive: Exclusive, lies: dict[str, object]
) -> None:
    volumes = bench.volumes(exclusive, Liar(bench, **lies))

    with pytest.raises(RemoteProtocolError):
        await volumes.publish(bench.wish(), {}, PATIENCE_S)

    assert mounts_below(bench.root) == []


async def test_nothing_outside_of_the_store_that_we_were_told_of_is_mounted(
    bench: Bench, exclusive: Exclusive, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    volumes = bench.volumes(exclusive, Liar(bench, store=str(tmp_path), path=str(secret)))

    with pytest.raises(PreconditionError):
        await volumes.publish(bench.wish(), {}, PATIENCE_S)

    assert mounts_below(bench.root) == []


async def test_a_link_in_the_store_leads_nowhere(
    bench: Bench, exclusive: Exclusive, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (bench.fake.store / "views" / "x").symlink_to(secret)
    volumes = bench.volumes(exclusive, Liar(bench))

    with pytest.raises(PreconditionError):
        await volumes.publish(bench.wish(), {}, PATIENCE_S)

    assert mounts_below(bench.root) == []


def test_a_lease_is_its_folders_owners(tmp_path: Path) -> None:
    (tmp_path / "leases").mkdir()
    os.chown(tmp_path / "leases", 1234, 2345)

    Leases(tmp_path).hold(DIGEST, "l1", 1)
    Leases(tmp_path).hold(DIGEST, "l1", 2)

    lease = tmp_path / "leases" / DIGEST.hex / "l1"
    for path in (lease, lease.parent):
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)
    assert lease.stat().st_mode & 0o777 == 0o644
    assert list(lease.parent.iterdir()) == [lease]


def test_a_link_among_leases_leads_nowhere(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "l1").touch()
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / DIGEST.hex).symlink_to(victim)

    with pytest.raises(PreconditionError):
        Leases(tmp_path).hold(DIGEST, "l2", 1)

    assert not Leases(tmp_path).release(DIGEST, "l1")
    assert Leases(tmp_path).beginning_with("l") == []
    assert [path.name for path in victim.iterdir()] == ["l1"]


def test_a_lease_is_found_without_knowing_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "leases").mkdir()
    for digest in (DIGEST, Digest.of(b"n")):
        Leases(tmp_path).hold(digest, "l1", 1)
        Leases(tmp_path).hold(digest, "l11", 1)

    assert Leases(tmp_path).release_everywhere("l1") == 2

    assert {lease for _, lease in Leases(tmp_path).beginning_with("l")} == {"l11"}


async def test_a_record_that_does_not_know_what_it_holds_keeps_its_lease(
    bench: Bench, exclusive: Exclusive
) -> None:
    volumes, wish = bench.volumes(exclusive), bench.wish()
    await volumes.publish(wish, {}, PATIENCE_S)
    held = bench.fake.leases()
    record = volumes._records[wish.target]
    volumes._records[wish.target] = record.but(artifact="", store="", path="")

    await volumes.sweep()

    assert bench.fake.leases() == held != set()


async def test_a_volume_that_is_mounted_needs_no_secret_that_can_be_read(
    bench: Bench, exclusive: Exclusive
) -> None:
    volumes, wish = bench.volumes(exclusive), bench.wish()
    await volumes.publish(wish, {}, PATIENCE_S)

    await volumes.publish(wish, {"tokn": "x"}, PATIENCE_S)

    with pytest.raises(UsageError, match="'HF_TOKEN'"):
        await volumes.publish(bench.wish("p2", "v2"), {"tokn": "x"}, PATIENCE_S)
    assert len(mounts_at(Path(wish.target))) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
async def test_a_driver_starts_though_a_record_cannot_be_mended(
    bench: Bench, exclusive: Exclusive, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    volumes, wish = bench.volumes(exclusive), bench.wish()
    await volumes.publish(wish, {}, PATIENCE_S)
    run("mount", "-o", "remount,bind,rw", wish.target)

    def refuse(*_: object) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(Leases, "hold", refuse)
    again = bench.volumes(exclusive)

    assert wish.target in again.published


@pytest.mark.parametrize("error", [ValueError("not enough values"), OSError(errno.ENOENT, "gone")])
async def test_a_driver_starts_though_a_mount_goes_while_it_is_looked_at(
    bench: Bench, exclusive: Exclusive, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    volumes, wish = bench.volumes(exclusive), bench.wish()
    await volumes.publish(wish, {}, PATIENCE_S)
    note = {"driverName": DRIVER_NAME, "volumeHandle": "v1"}
    (Path(wish.target).parent / "vol_data.json").write_text(json.dumps(note))
    shutil.rmtree(bench.options.state_folder)

    def vanish(*_: object) -> None:
        raise error

    monkeypatch.setattr(recovery, "paths_of", vanish)

    assert bench.volumes(exclusive).published == {}


async def test_a_signature_in_a_ref_is_in_no_record(bench: Bench, exclusive: Exclusive) -> None:
    ref = f"{REF}?X-Signature=hidden"
    bench.fake.models[ref] = model()
    wish = replace(bench.wish(), source=Source(ref=ref))
    await bench.volumes(exclusive).publish(wish, {}, PATIENCE_S)
    files = [path for path in bench.options.state_folder.rglob("*") if path.is_file()]

    volumes = bench.volumes(exclusive)
    await volumes.publish(wish, {}, PATIENCE_S)

    assert files
    assert "hidden" not in "".join(path.read_text() for path in files)
    for other in (REF, f"{REF}?X-Signature=other"):
        with pytest.raises(ConflictError):
            await volumes.publish(replace(wish, source=Source(ref=other)), {}, PATIENCE_S)


async def test_of_too_many_created_volumes_the_oldest_is_forgotten(
    bench: Bench, exclusive: Exclusive
) -> None:
    options = replace(bench.options, limits=Limits(records_max=2))
    records = Records(options.state_folder / "created", Created)
    client = AgentClient(str(bench.fake.socket))
    volumes = bench.volumes(exclusive)

    def controller() -> Controller:
        created = records.open()
        return Controller(options, volumes, records, created, client, exclusive, SystemClock())

    names = [f"pvc-{number}" for number in (3, 1, 2, 0)]
    for name in names:  # A new one each time: what is remembered is on the disk.
        request = csi_pb2.CreateVolumeRequest(
            name=name,
            parameters={"model": REF},
            volume_capabilities=[mount_capability("MULTI_NODE_READER_ONLY")],
        )
        await controller().CreateVolume(request, None)  # type: ignore[arg-type]

    assert set(records.open()) == set(names[-2:])


async def test_an_end_that_comes_with_the_timeout_is_an_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, limits = SystemClock(), Limits()
    request = VolumeRequest(ref=REF, lease="l")
    opening = Opening(bench.wish(), request, Late(bench.fake.store), clock, limits, lambda _: None)

    async def ended_too_late() -> bool:
        opening.ended.set()
        raise TimeoutError

    monkeypatch.setattr(opening.ended, "wait", ended_too_late)

    assert await opening.wait(clock.monotonic_s() + PATIENCE_S)
    assert opening.waiting == 0


def test_the_name_of_a_lease_is_on_the_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leases").mkdir()
    synced: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)

    Leases(tmp_path).hold(DIGEST, "l1", 1)

    folder = tmp_path / "leases" / DIGEST.hex
    assert synced == [str(folder.parent), str(folder / ".l1"), str(folder)]


async def test_the_health_of_a_mount_is_told(bench: Bench, exclusive: Exclusive) -> None:
    volumes, wish = bench.volumes(exclusive), bench.wish()
    await volumes.publish(wish, {}, PATIENCE_S)
    node = HealthyNode(bench.options, volumes, bench.targets, AgentClient(str(bench.fake.socket)))
    request = csi_pb2.NodeGetVolumeHealthRequest(volume_id="v1", volume_publish_path=wish.target)

    well = await node.NodeGetVolumeHealth(request, None)  # type: ignore[arg-type]
    run("mount", "-o", "remount,bind,rw", wish.target)
    writable = await node.NodeGetVolumeHealth(request, None)  # type: ignore[arg-type]
    mount.unmount_all(wish.target)
    run("mount", "-t", "tmpfs", "none", wish.target)
    foreign = await node.NodeGetVolumeHealth(request, None)  # type: ignore[arg-type]
    bench.fake.stop()
    storage = await node.NodeGetStorageHealth(
        csi_pb2.NodeGetStorageHealthRequest(),
        None,  # type: ignore[arg-type]
    )

    assert list(well.volume_health.health_statuses) == []
    (status,) = writable.volume_health.health_statuses
    assert (status.status, status.reason) == (csi_pb2.DEGRADED, "MountWritable")
    (status,) = foreign.volume_health.health_statuses
    assert (status.status, status.reason) == (csi_pb2.INACCESSIBLE, "MountForeign")
    assert [each.status for each in storage.backend_health] == [csi_pb2.STORAGE_DEGRADED]
    request.volume_id = "another"
    with pytest.raises(VolumeNotFoundError):
        await node.NodeGetVolumeHealth(request, None)  # type: ignore[arg-type]


def test_leases_of_ours_are_told_by_their_name() -> None:
    assert lease_id(DRIVER_NAME, "v", "/t").startswith(f"{DRIVER_NAME}-")
