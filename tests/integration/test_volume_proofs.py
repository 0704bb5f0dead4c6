"""Proofs on disk: kept across restarts, bounded, and useless without the store's key."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from damselfly.cache import proofs
from damselfly.cache.limits import Limits
from damselfly.cache.store import Store
from damselfly.clock import SystemClock
from damselfly.model.digest import Digest

ASKER = Digest.of(b"somebody")


def opened(root: Path) -> Store:
    return Store.open(root, Limits(), SystemClock())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_a_proof_and_the_key_outlive_the_agent(root: Path) -> None:
    with opened(root) as store:
        key = store.proofs.key
        store.proofs.add(ASKER, 7)

    with opened(root) as store:
        assert store.proofs.key == key
        assert store.proofs.proved_ns(ASKER) == 7
        assert store.proofs.proved_ns(Digest.of(b"somebody else")) is None


def test_only_the_agent_may_read_the_key(root: Path) -> None:
    with opened(root) as store:
        assert len(store.proofs.key) == 32
        assert repr(store.proofs.key) not in repr(store.proofs)

    assert (root / "proof.key").stat().st_mode & 0o777 == 0o600


def test_two_stores_have_two_keys(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as one, opened(tmp_path / "b") as other:
        assert one.proofs.key != other.proofs.key


@pytest.mark.parametrize("text", [b"", b"short", b"x" * 33])
def test_a_key_that_cannot_be_one_is_replaced(root: Path, text: bytes) -> None:
    opened(root).close()
    (root / "proof.key").write_bytes(text)

    with opened(root) as store:
        assert len(store.proofs.key) == 32
        assert store.proofs.key == (root / "proof.key").read_bytes()


def test_a_refusal_ends_a_proof(root: Path) -> None:
    with opened(root) as store:
        store.proofs.add(ASKER, 7)

        store.proofs.drop(ASKER)
        store.proofs.drop(ASKER)

        assert store.proofs.proved_ns(ASKER) is None


def test_of_too_many_proofs_the_oldest_go(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "PROOFS_MAX", 3)
    askers = [Digest.of(b"%d" % number) for number in range(5)]
    with opened(root) as store:
        for number, asker in enumerate(askers):
            store.proofs.add(asker, number)

        kept = [asker for asker in askers if store.proofs.proved_ns(asker) is not None]

    assert kept == askers[2:]


def test_a_store_of_before_proofs_is_taken_over(root: Path) -> None:
    opened(root).close()
    with closing(sqlite3.connect(root / "catalog.sqlite")) as connection:
        connection.executescript(
            "DROP TRIGGER version_gone; DROP TABLE version; DROP TABLE signature;"
            "DROP TRIGGER whole_gone; DROP TABLE whole;"
            " DROP TABLE proof; PRAGMA user_version = 1"
        )
    (root / "proof.key").unlink()

    with opened(root) as store:
        store.proofs.add(ASKER, 7)
        assert store.proofs.proved_ns(ASKER) == 7
