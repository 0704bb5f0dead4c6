"""The table of what a publish does, fact by fact."""

import itertools

import pytest

from damselfly.csi.publication import (
    Clear,
    Command,
    Done,
    Facts,
    Mount,
    Open,
    Publication,
    Refuse,
    Show,
    publish,
)
from damselfly.csi.status import Code, code_of
from damselfly.csi.volume import Source, Wish

WISH = Wish(volume_id="v1", target="/k/pods/p/mount", source=Source(ref="https://h/m/"))
RECORD = Publication(
    volume_id="v1",
    target=WISH.target,
    lease="l",
    ref="https://h/m/",
    artifact="blake3:00",
    store="/store",
    path="/store/views/00/all",
)
ADOPTED = Publication(volume_id="v1", target=WISH.target, lease="l")


def refusal(command: Command) -> Code:
    assert isinstance(command, Refuse)
    return code_of(command.error)


@pytest.mark.parametrize(
    ("mount", "is_held", "expected"),
    [
        (Mount.WELL, False, Done()),
        (Mount.WRITABLE, False, Show(RECORD)),
        (Mount.DEAD, True, Clear()),
        (Mount.NONE, True, Show(RECORD)),  # after a reboot
        (Mount.NONE, False, Open()),  # and with the store wiped meanwhile
    ],
)
def test_what_has_a_record(mount: Mount, is_held: bool, expected: Command) -> None:
    assert publish(WISH, Facts(mount=mount, record=RECORD, is_held=is_held)) == expected


@pytest.mark.parametrize(
    ("mount", "is_held", "expected"),
    [
        (Mount.NONE, True, Show(RECORD)),
        (Mount.WELL, False, Show(RECORD)),  # mounted before, and its record was lost
        (Mount.WRITABLE, False, Show(RECORD)),
        (Mount.DEAD, True, Clear()),
    ],
)
def test_what_was_just_opened(mount: Mount, is_held: bool, expected: Command) -> None:
    facts = Facts(mount=mount, record=RECORD, is_fresh=True, is_held=is_held)

    assert publish(WISH, facts) == expected


def test_without_a_record_the_agent_is_asked_whatever_is_mounted() -> None:
    assert publish(WISH, Facts(mount=Mount.NONE)) == Open()
    assert publish(WISH, Facts(mount=Mount.FOREIGN)) == Open()
    assert publish(WISH, Facts(mount=Mount.DEAD)) == Clear()


def test_something_else_at_the_target_is_not_touched() -> None:
    for is_fresh in (False, True):
        facts = Facts(mount=Mount.FOREIGN, record=RECORD, is_fresh=is_fresh)

        assert refusal(publish(WISH, facts)) is Code.FAILED_PRECONDITION


def test_a_view_that_is_not_to_be_seen_is_a_mistake_of_the_deployment() -> None:
    facts = Facts(mount=Mount.NONE, record=RECORD, is_fresh=True, is_held=False)

    assert refusal(publish(WISH, facts)) is Code.FAILED_PRECONDITION


@pytest.mark.parametrize(
    "other",
    [
        {"volume_id": "v2"},
        {"ref": "https://h/other/"},
        {"include": ("*.json",)},
        {"exclude": ("*.json",)},
        {"layout": "hf-cache"},
    ],
)
def test_other_arguments_for_the_same_target_are_a_conflict_whatever_is_mounted(
    other: dict[str, object],
) -> None:
    for mount, is_held in itertools.product(Mount, (False, True)):
        facts = Facts(mount=mount, record=RECORD.but(**other), is_held=is_held)

        assert refusal(publish(WISH, facts)) is Code.ALREADY_EXISTS


def test_a_mount_whose_record_was_lost_is_taken_for_what_is_wanted() -> None:
    assert publish(WISH, Facts(mount=Mount.WELL, record=ADOPTED)) == Done()
    assert publish(WISH, Facts(mount=Mount.NONE, record=ADOPTED)) == Open()
    other = ADOPTED.but(volume_id="v2")
    assert refusal(publish(WISH, Facts(mount=Mount.WELL, record=other))) is Code.ALREADY_EXISTS


def test_under_a_mount_that_lives_nothing_is_ever_taken_away() -> None:
    records = (None, RECORD, ADOPTED, RECORD.but(volume_id="v2"))
    alive = (Mount.WELL, Mount.WRITABLE, Mount.FOREIGN)
    for mount, record, is_fresh, is_held in itertools.product(
        alive, records, (False, True), (False, True)
    ):
        facts = Facts(mount=mount, record=record, is_fresh=is_fresh, is_held=is_held)

        assert publish(WISH, facts) != Clear()
