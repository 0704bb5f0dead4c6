"""The store on a real disk: its promises, and what it does when the disk is not as it was left."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from damselfly.cache.limits import Limits
from damselfly.cache.store import Store
from tests.conformance.store import HandClock, Opener, StoreConformance

LIMITS = Limits(keep_free_bytes=0, free_again_bytes=0)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def opened(tmp_path: Path, clock: HandClock) -> Opener:
    @contextmanager
    def open_it() -> Iterator[Store]:
        with Store.open(tmp_path / "store", LIMITS, clock) as store:
            yield store

    return open_it


class TestDiskStore(StoreConformance):
    pass
