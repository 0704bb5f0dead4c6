"""Views in the hub's layout: hard links, links that stay inside, and mended like any other."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from damselfly.cache.limits import Limits
from damselfly.cache.store import Store
from damselfly.model.hub import HubName
from tests.conformance.store import HandClock, model, noise, pull, sample

LIMITS = Limits(keep_free_bytes=0, free_again_bytes=0)
NAME = HubName("acme", "tiny", "0" * 40, ("main", "v1"))
REPOSITORY = "models--acme--tiny"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    with Store.open(root, LIMITS, HandClock()) as store:
        yield store


def test_a_snapshot_links_to_blobs_that_share_the_stores_inodes(store: Store) -> None:
    one = model()
    artifact = pull(store, one)
    plain = store.view(artifact)

    view = store.view(artifact, hub=NAME)

    snapshot = view / REPOSITORY / "snapshots" / NAME.revision
    for file in one.plan.files:
        link = snapshot / file.path
        target = os.readlink(link)
        assert not os.path.isabs(target)
        assert link.resolve().parent == view / REPOSITORY / "blobs"
        assert link.read_bytes() == one.content(file.path)
        assert link.stat().st_ino == (plain / file.path).stat().st_ino
    assert (view / REPOSITORY / "refs" / "main").read_text() == NAME.revision
    assert (view / REPOSITORY / "refs" / "v1").read_text() == NAME.revision
    assert (view / "hub" / REPOSITORY).resolve() == view / REPOSITORY


def test_no_link_of_a_view_leaves_it(store: Store) -> None:
    view = store.view(pull(store, model()), hub=NAME)

    for parent, folders, names in os.walk(view):
        for name in (*folders, *names):
            assert (Path(parent) / name).resolve().is_relative_to(view)


def test_files_of_one_content_are_one_blob(store: Store) -> None:
    twins = sample({"a.bin": [noise(100, 1)], "deep/er/b.bin": [noise(100, 1)]})

    view = store.view(pull(store, twins), hub=NAME)

    assert len(list((view / REPOSITORY / "blobs").iterdir())) == 1
    snapshot = view / REPOSITORY / "snapshots" / NAME.revision
    assert (snapshot / "a.bin").read_bytes() == (snapshot / "deep/er/b.bin").read_bytes()


def test_a_selection_in_the_hubs_layout_has_no_more_than_it(store: Store) -> None:
    artifact = pull(store, model())

    view = store.view(artifact, frozenset({0}), hub=NAME)

    files = [path.name for path in view.rglob("*") if path.is_symlink() and path.is_file()]
    assert files == ["config.json"]
    assert len(list((view / REPOSITORY / "blobs").iterdir())) == 1


def test_each_layout_and_each_name_has_a_view_of_its_own(store: Store) -> None:
    artifact = pull(store, model())
    names = [None, NAME, HubName("acme", "tiny", "1" * 40), HubName("acme", "other", "0" * 40)]

    views = {store.view(artifact, files, hub) for hub in names for files in (None, frozenset({0}))}

    assert len(views) == 8


def test_what_was_changed_in_a_view_is_mended_in_place(store: Store) -> None:
    artifact = pull(store, model())
    view = store.view(artifact, hub=NAME)
    snapshot = view / REPOSITORY / "snapshots" / NAME.revision
    before = view.stat().st_ino
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("/etc/passwd")
    (snapshot / "empty").unlink()
    (snapshot / "empty").mkdir()
    (snapshot / "stranger").write_text("x")
    (view / REPOSITORY / "refs" / "main").unlink()
    shutil.rmtree(view / REPOSITORY / "blobs")
    (view / "hub" / REPOSITORY).unlink()

    again = store.view(artifact, hub=NAME)

    assert again == view
    assert view.stat().st_ino == before
    assert (snapshot / "config.json").read_bytes() == model().content("config.json")
    assert (snapshot / "empty").read_bytes() == b""
    assert not (snapshot / "stranger").exists()
    assert (view / REPOSITORY / "refs" / "main").read_text() == NAME.revision
    assert (view / "hub" / REPOSITORY / "refs" / "main").exists()


def test_the_view_survives_a_restart_and_saves_a_lost_file(root: Path, store: Store) -> None:
    artifact = pull(store, model())
    view = store.view(artifact, hub=NAME)
    store.close()
    lost = max((root / "files").iterdir(), key=lambda path: path.stat().st_size)
    lost.unlink()

    with Store.open(root, LIMITS, HandClock()) as again:
        assert again.reconciled.files_recovered == 1
        assert again.reconciled.views_dropped == 0
        assert lost.exists()
        assert again.view(artifact, hub=NAME) == view


def test_a_removal_takes_the_view_along(store: Store, root: Path) -> None:
    artifact = pull(store, model())
    store.view(artifact, hub=NAME)

    store.remove(artifact)

    assert list((root / "views").iterdir()) == []
    assert list((root / "files").iterdir()) == []


def test_nothing_of_a_view_is_writable_for_others(store: Store) -> None:
    view = store.view(pull(store, model()), hub=NAME)

    for path in (view, *view.rglob("*")):
        if not path.is_symlink():
            assert path.stat().st_mode & 0o222 in ({0o200} if path.is_dir() else {0})
