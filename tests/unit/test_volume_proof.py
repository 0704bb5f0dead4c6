"""Who may see what is cached: names of askers, and for how long they are believed."""

import pytest
from hypothesis import given, strategies as st

from damselfly.agent.proof import asker_of, is_believed, is_needed, telling_file
from damselfly.model.plan import Plan, PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS, Access

KEY = bytes(range(32))
REF = Ref.parse("https://host/m/?signature=x")
S = 1_000_000_000


def test_the_same_who_asks_the_same_has_one_name() -> None:
    assert asker_of(KEY, REF, Access("t")) == asker_of(KEY, REF, Access("t"))


def test_a_pin_changes_nothing_about_who_may_read() -> None:
    pinned = Ref.parse(f"{REF}#blake3:{'0' * 64}")

    assert asker_of(KEY, pinned, ANONYMOUS) == asker_of(KEY, REF, ANONYMOUS)


def test_nobody_is_somebody_and_everybody_is_another() -> None:
    kinds = [
        ANONYMOUS,
        Access("t"),
        Access("u"),
        Access(username="t"),
        Access(username="t", password=""),
        Access(username="t", password="u"),
        Access(username="tu"),
        Access(username="", password="tu"),
    ]
    refs = [REF, Ref.parse("https://host/m/"), Ref.parse("https://host/m")]

    askers = {asker_of(KEY, ref, access) for ref in refs for access in kinds}

    assert len(askers) == len(kinds) * len(refs)
    assert asker_of(bytes(32), REF, ANONYMOUS) not in askers


@given(st.integers(0, 2**62), st.integers(0, 2**62), st.integers(0, 10**7))
def test_a_proof_is_believed_from_when_it_was_until_its_time_is_up(
    proved_ns: int, now_ns: int, ttl_s: int
) -> None:
    believed = is_believed(proved_ns, now_ns, float(ttl_s))

    assert believed == (proved_ns <= now_ns < proved_ns + ttl_s * S)


def test_what_was_never_proved_is_not_believed() -> None:
    assert not is_believed(None, 5 * S, 3600)


def test_without_a_time_to_live_everything_is_proved_each_time() -> None:
    assert not is_believed(5 * S, 5 * S, 0)


@pytest.mark.parametrize(
    ("text", "needed"), [("file:///m/", False), ("http://h/m/", True), ("https://h/m/", True)]
)
def test_only_files_of_this_machine_need_no_proof(text: str, needed: bool) -> None:
    assert is_needed(Ref.parse(text)) is needed


def test_the_largest_file_tells() -> None:
    plan = Plan.of(
        "https://h/m/",
        [
            PlannedFile("README.md", (10,)),
            PlannedFile("a.safetensors", (400, 1)),
            PlannedFile("b.safetensors", (401,)),
        ],
    )

    assert telling_file(plan).path == "b.safetensors"
