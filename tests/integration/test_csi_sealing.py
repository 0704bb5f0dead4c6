"""What a pod gets is what the host sees: looked at from outside of the driver's mount namespace.

A driver in a container shares the pods' directory with the host, and nothing else.
"""

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.mounts import mounts_at, mounts_below, no_mounts_left
from tests.integration.csi_driver_node import REF, Node, needs_root, run, running

pytestmark = needs_root

CONTAINER = ("unshare", "--mount", "--propagation", "unchanged")
SEALED = {"ro", "nosuid", "nodev"}
SHOW = """
import os, sys
from pathlib import Path
from damselfly.csi.sealing import Sealing

staging, has_trees, source, target = sys.argv[1:]
source, target = (os.open(path, os.O_PATH | os.O_DIRECTORY) for path in (source, target))
Sealing(Path(staging), has_trees=has_trees == "True").show(source, target)
"""


def share(folder: Path) -> None:
    """Make a directory what `/var/lib/kubelet/pods` is on a node: shared with containers."""
    folder.mkdir(parents=True, exist_ok=True)
    run("mount", "--bind", str(folder), str(folder))
    run("mount", "--make-shared", str(folder))


def error_of_a_write(folder: Path) -> int | None:
    """What the kernel says to somebody who writes there."""
    try:
        (folder / "written").touch()
    except OSError as exc:
        return exc.errno
    return None


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node whose driver is in a container."""
    with no_mounts_left(tmp_path):
        share(tmp_path / "kubelet/pods")
        with running(tmp_path, "--publish-wait", "1s", prefix=CONTAINER) as node:
            yield node


def test_the_host_sees_a_volume_that_nobody_can_write_through(node: Node) -> None:
    target = node.target()

    node.driver.publish("v1", target, {"model": REF})

    (seen,) = mounts_at(target)
    assert seen.options >= SEALED
    assert error_of_a_write(target) == errno.EROFS


def test_a_driver_in_a_new_container_finds_all_sealed_and_takes_it_away_on_the_host(
    node: Node,
) -> None:
    target = node.target(handle="v1")
    node.driver.publish("v1", target, {"model": REF})
    before = mounts_at(target)

    node.restart()
    node.driver.publish("v1", target, {"model": REF})
    after = mounts_at(target)
    node.driver.unpublish("v1", target)

    assert after == before
    assert not [line for line in node.log() if line["event"] == "mount.sealed"]
    assert not mounts_at(target)
    assert not target.exists()


def test_what_the_host_can_write_through_gets_a_sealed_mount_on_top_there_too(node: Node) -> None:
    target = node.target(handle="v1")
    node.driver.publish("v1", target, {"model": REF})
    run("mount", "-o", "remount,bind,rw", str(target))
    assert error_of_a_write(target) is None

    node.restart()

    assert mounts_at(target)[-1].options >= SEALED
    assert error_of_a_write(target) == errno.EROFS
    node.driver.unpublish("v1", target)
    assert not mounts_at(target)


@pytest.mark.parametrize("has_trees", [True, False], ids=["trees", "an old kernel"])
def test_a_view_is_sealed_outside_of_the_namespace_that_mounted_it(
    tmp_path: Path, *, has_trees: bool
) -> None:
    view, pods, staging = tmp_path / "view", tmp_path / "pods", tmp_path / "staging"
    target = pods / "target"
    view.mkdir()
    with no_mounts_left(tmp_path):
        share(pods)
        target.mkdir()

        run(
            *CONTAINER,
            sys.executable,
            "-c",
            SHOW,
            str(staging),
            str(has_trees),
            *map(str, (view, target)),
        )

        (seen,) = mounts_at(target)
        assert seen.options >= SEALED
        assert error_of_a_write(target) == errno.EROFS
        assert not mounts_below(staging)


@pytest.mark.parametrize("has_trees", [True, False], ids=["trees", "an old kernel"])
def test_other_flags_of_the_store_are_kept(tmp_path: Path, *, has_trees: bool) -> None:
    store, target = tmp_path / "store", tmp_path / "target"
    with no_mounts_left(tmp_path):
        store.mkdir()
        target.mkdir()
        run("mount", "-t", "tmpfs", "-o", "noexec,noatime", "tmpfs", str(store))

        show = [sys.executable, "-c", SHOW, str(tmp_path / "staging"), str(has_trees)]
        subprocess.run([*show, str(store), str(target)], check=True)

        (seen,) = mounts_at(target)
        assert seen.options >= SEALED | {"noexec", "noatime"}
        assert not mounts_below(tmp_path / "staging")
