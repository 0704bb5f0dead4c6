"""The note of a push: written, read back, and refused where it breaks a rule."""

import pytest
from hypothesis import given, strategies as st

from damselfly.origin.push_journal import Journal, Session

JOURNAL = Journal("owner", {"a/b.bin": Session("id+/=", "blake3:00", 5 << 20)})


def test_a_note_is_read_as_it_was_written() -> None:
    assert Journal.parse(JOURNAL.canonical()) == JOURNAL


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"owner":"owner"', b'"owner":""'),
        (b'"owner":"owner"', b'"owner":"a\\nb"'),
        (b'"owner":"owner"', b'"owner":7'),
        (b"damselfly-push/1", b"damselfly-push/2"),
        (b"5242880", b"0"),
        (b"5242880", b'"5"'),
        (b'"name":"id+/="', b'"name":"id", "more":1'),
        (b'"sessions":{', b'"sessions":[{'),
    ],
)
def test_a_note_that_breaks_a_rule_is_none(old: bytes, new: bytes) -> None:
    data = JOURNAL.canonical()
    assert old in data

    with pytest.raises(ValueError, match=r"."):
        Journal.parse(data.replace(old, new))


@given(st.binary(max_size=100))
def test_any_bytes_are_a_note_or_none(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Journal.parse(data)
