"""What the store keeps of the versions of files: while they are here, and for one ref alone."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from damselfly.cache.limits import Limits
from damselfly.cache.store import Store
from damselfly.model.plan import Plan
from tests.conformance.store import HandClock, model, pull

SAMPLE = model()
REF = "hf://org/name"
LIMITS = Limits(keep_free_bytes=0, free_again_bytes=0)


def test_a_version_is_remembered_while_its_file_is_here(tmp_path: Path) -> None:
    plan = Plan(SAMPLE.plan.ref, tuple(replace(f, version="blob:1") for f in SAMPLE.plan.files))
    file = max(plan.files, key=lambda file: file.bytes)
    with Store.open(tmp_path / "store", LIMITS, HandClock()) as store:
        pull(store, SAMPLE)
        store.keep_versions(REF, plan, SAMPLE.manifest)

        found = store.same_version(REF, file)
        assert found is not None
        assert tuple(chunk.length for chunk in found.chunks) == file.lengths
        assert store.same_version("hf://org/other", file) is None
        assert store.same_version(REF, replace(file, version="blob:2")) is None
        assert store.same_version(REF, replace(file, path="another")) is None
        assert store.same_version(REF, replace(file, lengths=(1,))) is None

        store.remove(SAMPLE.manifest.digest)
        assert store.same_version(REF, file) is None
    with closing(sqlite3.connect(tmp_path / "store" / "catalog.sqlite")) as connection:
        assert connection.execute("SELECT COUNT(*) FROM version").fetchone() == (0,)


@pytest.mark.parametrize("version", ["", "modified:now", 'etag:W/"1"', "etag:blake3:00"])
def test_a_version_that_two_contents_may_have_counts_for_nothing(version: str) -> None:
    assert not replace(SAMPLE.plan.files[0], version=version).is_versioned
