"""Records cross the socket as JSON and come back as they were."""

import json

import pytest
from hypothesis import assume, given, strategies as st

from damselfly.client import answers
from damselfly.client.record import TEXT_LENGTH_MAX, Record
from damselfly.errors import RemoteProtocolError

KINDS = [
    kind
    for kind in vars(answers).values()
    if isinstance(kind, type) and issubclass(kind, Record) and kind is not Record
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_record_survives_the_way(kind: type[Record]) -> None:
    @given(st.builds(kind))
    def survives(record: Record) -> None:
        text = json.dumps(record.to_json())
        assume("NaN" not in text and "Infinity" not in text)

        assert kind.parse(json.loads(text), unknown_is_error=True) == record

    survives()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_anything_else_is_a_protocol_error(kind: type[Record]) -> None:
    names = list(kind.__annotations__)

    @given(JSON | st.dictionaries(st.sampled_from(names), JSON))
    def refuses(value: object) -> None:
        try:
            record = kind.parse(value)
        except RemoteProtocolError:
            return
        assert kind.parse(record.to_json()) == record

    refuses()


def test_a_missing_field_is_named() -> None:
    with pytest.raises(RemoteProtocolError, match="'ref'"):
        answers.PullRequest.parse({})


def test_a_wrong_type_is_named() -> None:
    for value in (7, None, ["x"], True):
        with pytest.raises(RemoteProtocolError, match=r"PullRequest\.ref is not text"):
            answers.PullRequest.parse({"ref": value})
    with pytest.raises(RemoteProtocolError, match="whole number"):
        answers.Progress.parse({"ref": "x", "bytes_done": True})
    with pytest.raises(RemoteProtocolError, match="not a list"):
        answers.PullRequest.parse({"ref": "x", "include": "*.json"})


def test_a_number_that_is_none_is_refused() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(RemoteProtocolError, match="not a number"):
            answers.Progress.parse({"ref": "x", "seconds": value})


def test_text_without_end_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        answers.PullRequest.parse({"ref": "x" * (TEXT_LENGTH_MAX + 1)})


def test_an_unknown_field_is_passed_over_or_named() -> None:
    value = {"ref": "x", "inlcude": "*.json"}

    assert answers.PullRequest.parse(value) == answers.PullRequest(ref="x")
    with pytest.raises(RemoteProtocolError, match="'inlcude'"):
        answers.PullRequest.parse(value, unknown_is_error=True)
