"""Steps cut off in the middle: after a crash at any system call, every call goes on from there."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.mounts import mounts_at, mounts_below
from damselfly.clock import SystemClock
from damselfly.csi import mount
from damselfly.csi.options import DRIVER_NAME, Options
from damselfly.csi.publication import Clear, Done, Open, Publication, Show, publish
from damselfly.csi.records import Records
from damselfly.csi.recovery import recover
from damselfly.csi.sealing import Sealing
from damselfly.csi.targets import Targets
from damselfly.csi.volume import Source, Wish, lease_id
from damselfly.model.digest import Digest
from damselfly.model.lease import encode
from tests.integration.csi_driver_node import needs_root

pytestmark = needs_root

ARTIFACT = Digest.of(b"the model")
REF = "https://models.test/llama/"
STEPS_MIN, STEPS_MAX = 5, 60
KERNELS = pytest.mark.parametrize("has_trees", [True, False], ids=["trees", "an old kernel"])


class CrashError(BaseException):
    """The process dies here."""


class Machine:
    """What survives a crash: a store, a kubelet's directory, and the kernel's mounts."""

    def __init__(self, root: Path, *, has_trees: bool) -> None:
        self.root = root
        self.has_trees = has_trees
        self.store = root / "store"
        self.kubelet = root / "kubelet"
        self.view = self.store / "views" / ARTIFACT.hex / "all"
        self.view.mkdir(parents=True)
        (self.view / "weights").write_bytes(b"w" * 1000)
        folder = self.store / "leases" / ARTIFACT.hex
        folder.mkdir(parents=True)
        self.target = self.kubelet / "pods/p/volumes/kubernetes.io~csi/weights/mount"
        self.target.parent.mkdir(parents=True)
        note = {"driverName": DRIVER_NAME, "volumeHandle": "v1"}
        (self.target.parent / "vol_data.json").write_text(json.dumps(note))
        self.wish = Wish(volume_id="v1", target=str(self.target), source=Source(ref=REF))
        self.record = Publication(
            volume_id="v1",
            target=str(self.target),
            lease=lease_id(DRIVER_NAME, "v1", str(self.target)),
            ref=REF,
            artifact=str(ARTIFACT),
            store=str(self.store),
            path=str(self.view),
            bytes=1000,
            files=1,
        )

    def agent_opens(self) -> None:
        """The agent leases it, and shows it."""
        lease = self.store / "leases" / ARTIFACT.hex / self.record.lease
        lease.parent.mkdir(exist_ok=True)
        lease.write_bytes(encode(None, 1))

    def left(self) -> list[str]:
        """What there is of the volume."""
        state = self.kubelet / "plugins" / DRIVER_NAME / "volumes"
        found = [path.name for path in state.glob("*.json")]
        found += [path.name for path in self.store.glob("leases/*/*")]
        found += [str(each.path) for each in mounts_below(self.kubelet)]
        return found + (["target"] if os.path.lexists(self.target) else [])


class Process:
    """One life of the driver's blocking parts."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.options = Options(
            endpoint=Path("/unused"),
            agent_socket="/unused",
            node_id="n",
            kubelet_root=machine.kubelet,
            store=machine.store,
        )
        self.records = Records(self.options.state_folder, Publication)
        sealing = Sealing(self.options.staging_folder, has_trees=machine.has_trees)
        clock = SystemClock()
        self.targets = Targets(machine.kubelet, machine.store, self.records, sealing, clock)
        found = recover(self.options, self.targets, self.records, SystemClock())
        self.record = next(iter(found.values()), None)

    def publish(self) -> None:
        """As `volumes.Volumes` does it."""
        fresh: Publication | None = None
        for _ in range(5):
            facts = self.targets.look(
                str(self.machine.target), fresh or self.record, is_fresh=fresh is not None
            )
            match publish(self.machine.wish, facts):
                case Done():
                    return
                case Clear():
                    self.targets.clear(str(self.machine.target))
                case Open():
                    self.machine.agent_opens()
                    fresh = self.machine.record
                case Show(record):
                    self.targets.show(record, facts)
                    self.record = record
                    return
                case other:
                    raise AssertionError(other)
        raise AssertionError("it never ends")

    def unpublish(self) -> None:
        self.targets.take_away(str(self.machine.target), self.record)


class Fuse:
    """Every step that changes anything takes one from `left`; the one that finds none dies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 10**9
        for name in ("mkdir", "rmdir", "rename", "unlink", "open", "write", "fsync", "fchown"):
            self._fit(monkeypatch, os, name)
        for name in ("_mount", "_unmount", "_open_tree", "_seal", "attach"):
            self._fit(monkeypatch, mount, name)

    def _fit(self, monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> None:
        real = getattr(module, name)

        def step(*args: object, **more: object) -> object:
            if self.left == 0:
                raise CrashError
            self.left -= 1
            return real(*args, **more)

        monkeypatch.setattr(module, name, step)

    def burns_in(self, steps: int, run: Callable[[], None]) -> bool:
        """Run, and die after so many steps; False: there were not so many."""
        self.left = steps
        try:
            run()
        except CrashError:
            return True
        finally:
            self.left = 10**9
        return False


@contextmanager
def a_machine(root: Path, *, has_trees: bool = True) -> Iterator[Machine]:
    try:
        yield Machine(root, has_trees=has_trees)
    finally:
        for found in reversed(mounts_below(root)):
            mount.unmount_all(str(found.path))


def is_well(machine: Machine) -> bool:
    """It is mounted once, read-only, with a lease and a record."""
    (found,) = mounts_at(machine.target)
    return (
        found.options >= {"ro", "nosuid", "nodev"}
        and (machine.target / "weights").stat().st_size == 1000
        and len(machine.left()) == 4
    )


@KERNELS
@pytest.mark.parametrize("then", ["publish", "unpublish", "reboot and publish"])
def test_a_crash_at_any_step_of_a_publish_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str, *, has_trees: bool
) -> None:
    fuse = Fuse(monkeypatch)
    for steps in range(STEPS_MAX):
        with a_machine(tmp_path / str(steps), has_trees=has_trees) as machine:
            crashed = fuse.burns_in(steps, Process(machine).publish)
            if then == "reboot and publish":
                mount.unmount_all(str(machine.target))
            after = Process(machine)
            if then != "unpublish":
                after.publish()
                assert is_well(machine), steps

            after.unpublish()

            # A lease without a record is the agent's answer, lost; the first sweep finds it.
            assert machine.left() in ([], [machine.record.lease]), steps
            if not crashed:
                assert machine.left() == []
                assert steps > STEPS_MIN, "the fuse is fitted to nothing"
                return
    raise AssertionError("a publish has no end")


@pytest.mark.parametrize("then", ["unpublish", "publish"])
def test_a_crash_at_any_step_of_an_unpublish_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    fuse = Fuse(monkeypatch)
    for steps in range(STEPS_MAX):
        with a_machine(tmp_path / str(steps)) as machine:
            process = Process(machine)
            process.publish()
            crashed = fuse.burns_in(steps, process.unpublish)
            after = Process(machine)
            if then == "publish":
                after.publish()
                assert is_well(machine), steps

            after.unpublish()

            assert machine.left() == [], steps
            if not crashed:
                assert steps > STEPS_MIN, "the fuse is fitted to nothing"
                return
    raise AssertionError("an unpublish has no end")


def test_a_crash_at_any_step_of_a_recovery_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuse = Fuse(monkeypatch)
    for steps in range(STEPS_MAX):
        with a_machine(tmp_path / str(steps)) as machine:
            Process(machine).publish()
            shutil.rmtree(machine.kubelet / "plugins")
            shutil.rmtree(machine.store / "leases")
            (machine.store / "leases").mkdir()

            crashed = fuse.burns_in(steps, lambda: after_life(machine))

            after = Process(machine)
            assert is_well(machine), steps
            after.unpublish()
            assert machine.left() == [], steps
            if not crashed:
                assert steps > STEPS_MIN, "the fuse is fitted to nothing"
                return
    raise AssertionError("a recovery has no end")


def after_life(machine: Machine) -> None:
    Process(machine)
