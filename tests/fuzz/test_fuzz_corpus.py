"""The fuzzer's targets on valid input, on what was once found, and on both of them damaged."""

import random

import pytest

from tests.fuzz.corpus import CORPUS, SEEDS, inputs
from tests.fuzz.targets import TARGETS

DAMAGES = 60


def test_every_target_has_seeds_and_every_corpus_a_target() -> None:
    assert SEEDS.keys() == TARGETS.keys()
    folders = {folder.name for folder in CORPUS.iterdir()} if CORPUS.exists() else set[str]()
    assert folders <= TARGETS.keys()


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_target_reads_or_refuses(name: str) -> None:
    for data in inputs(name):
        TARGETS[name](data)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_target_reads_or_refuses_what_is_damaged(name: str) -> None:
    dice = random.Random(name)
    for data in inputs(name):
        for _ in range(DAMAGES):
            damaged = bytearray(data)
            at = dice.randrange(len(damaged) + 1)
            damaged[at : at + dice.randrange(4)] = dice.randbytes(dice.randrange(4))
            TARGETS[name](bytes(damaged))
