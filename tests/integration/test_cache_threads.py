"""Many threads at one store: writers, readers, a scrub, views and removals at once."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from damselfly.cache.limits import Limits
from damselfly.cache.store import Store
from damselfly.clock import SystemClock
from damselfly.errors import ArtifactNotFoundError, LeaseHeldError
from damselfly.model.digest import Digest
from tests.conformance.store import Sample, noise, pull, sample, served, tree, write_all

LIMITS = Limits(keep_free_bytes=0, free_again_bytes=0, open_files_max=3, sync_interval_s=0.01)


def together(stop: threading.Event, *works: Callable[[], None]) -> None:
    """Run each in a thread; when one fails, tell the others to stop, and raise what it raised."""
    failures: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as exc:
            failures.append(exc)
            stop.set()

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures:
        raise failure


def shards(rng_seed: int, count: int) -> Sample:
    return sample(
        {
            f"shard-{number}": [noise(3000, rng_seed * 1000 + number * 10 + i) for i in range(8)]
            for number in range(count)
        },
        f"x:{rng_seed}",
    )


def test_chunks_are_written_served_and_scrubbed_at_once(tmp_path: Path) -> None:
    of = shards(1, 6)
    order = list(range(of.plan.chunk_count))
    random.Random(1).shuffle(order)
    with Store.open(tmp_path / "store", LIMITS, SystemClock()) as store:
        ingest = store.ingest(of.plan, [None] * len(order), of.everything)
        is_done = threading.Event()

        def write(part: int) -> None:
            for index in order[part::4]:
                ingest.write(index, of.digests[index], of.chunks[index])
                assert served(store, of.digests[index]) == of.chunks[index]

        def write_all_parts() -> None:
            try:
                together(is_done, *(lambda part=part: write(part) for part in range(4)))
            finally:
                is_done.set()

        def read() -> None:
            while not is_done.is_set():
                for digest, chunk in zip(of.digests, of.chunks, strict=True):
                    assert served(store, digest) in {None, chunk}

        def scrub() -> None:
            while not is_done.is_set():
                assert store.verify().bad == ()
                store.usage()

        together(is_done, write_all_parts, read, scrub)

        assert ingest.have().is_full
        ingest.seal(of.manifest)
        ingest.close()
        assert tree(store.view(of.manifest.digest)).keys() == {f.path for f in of.plan.files}
    with Store.open(tmp_path / "store", LIMITS, SystemClock()) as store:
        assert store.reconciled.is_clean


def test_pulls_views_and_removals_at_once_never_show_a_broken_file(tmp_path: Path) -> None:
    samples = [
        sample(
            {"shared": [noise(2000, 7), noise(99, 8)], "own": [noise(500, number)]}, f"x:{number}"
        )
        for number in range(3)
    ]
    known = {Digest.of(chunk): chunk for of in samples for chunk in of.chunks}
    with Store.open(tmp_path / "store", LIMITS, SystemClock()) as store:
        removed = Counter[str]()
        stop = threading.Event()

        def is_enough() -> bool:
            return stop.is_set() or all(removed[of.plan.ref] >= 8 for of in samples)

        def pull_often(of: Sample) -> None:
            turn = 0
            while not is_enough():
                turn += 1
                digests = [None] * of.plan.chunk_count if turn % 2 else of.digests
                with store.ingest(of.plan, digests, of.everything) as ingest:
                    write_all(ingest, of)
                    ingest.seal(of.manifest)
                time.sleep(0)

        def remove_often(of: Sample) -> None:
            while not is_enough():
                try:
                    store.view(of.manifest.digest)
                    store.remove(of.manifest.digest)
                    removed[of.plan.ref] += 1
                except (ArtifactNotFoundError, LeaseHeldError):
                    time.sleep(0)

        def read_often() -> None:
            while not is_enough():
                for digest, chunk in known.items():
                    assert served(store, digest) in {None, chunk}

        def scrub_often() -> None:
            while not is_enough():
                assert store.verify().bad == ()
                store.sync()
                store.gc(leftover_age_s=0)

        together(
            stop,
            *(lambda of=of: pull_often(of) for of in samples),
            *(lambda of=of: remove_often(of) for of in samples),
            read_often,
            scrub_often,
        )

        for of in samples:
            pull(store, of)
            assert tree(store.view(of.manifest.digest)) == {
                file.path: of.content(file.path) for file in of.plan.files
            }
        assert store.verify().bad == ()
    with Store.open(tmp_path / "store", LIMITS, SystemClock()) as store:
        assert store.reconciled.is_clean
