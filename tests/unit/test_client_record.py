"""Records cross the socket as JSON and come back as they were."""

import json
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import pytest
from hypothesis import given, strategies as st

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


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    if isinstance(hint, UnionType):
        return st.one_of(*(values(choice) for choice in get_args(hint)))
    if get_origin(hint) is tuple:
        return st.lists(values(get_args(hint)[0]), max_size=3).map(tuple)
    if hint is not NoneType and issubclass(hint, Record):
        return records(hint)
    return st.floats(allow_nan=False, allow_infinity=False) if hint is float else st.from_type(hint)


def records(kind: type[Record]) -> st.SearchStrategy[Record]:
    """Records of a kind, with and without what may be left out."""
    strategies = {name: values(hint) for name, hint in kind.fields.items()}
    needed = {name: way for name, way in strategies.items() if name not in kind.defaults}
    optional = {name: way for name, way in strategies.items() if name in kind.defaults}
    return st.fixed_dictionaries(needed, optional=optional).map(lambda given: kind(**given))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_record_survives_the_way(kind: type[Record]) -> None:
    @given(records(kind))
    def survives(record: Record) -> None:
        crossed = json.loads(json.dumps(record.to_json(), allow_nan=False))

        again = kind.parse(crossed, unknown_is_error=True)

        assert again == record
        assert hash(again) == hash(record)

    survives()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_anything_else_is_a_protocol_error(kind: type[Record]) -> None:
    names = list(kind.fields)

    @given(JSON | st.dictionaries(st.sampled_from(names), JSON))
    def refuses(value: object) -> None:
        try:
            record = kind.parse(value)
        except RemoteProtocolError:
            return
        assert kind.parse(record.to_json()) == record

    refuses()


def test_a_record_is_made_of_its_fields_and_stays_as_it_is() -> None:
    progress = answers.Progress(ref="x", bytes_done=7)

    assert (progress.ref, progress.bytes_done, progress.peers) == ("x", 7, 0)
    assert progress.but(peers=3) == answers.Progress(ref="x", bytes_done=7, peers=3)
    assert repr(answers.Cancelled(ref="x")) == "Cancelled(ref='x', artifact=None)"
    assert answers.Removed(artifact="x", bytes_freed=1) != progress
    with pytest.raises(AttributeError, match="frozen"):
        progress.peers = 3  # type: ignore[misc]
    with pytest.raises(TypeError, match="'reff'"):
        answers.Progress(reff="x")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'ref'"):
        answers.Progress()  # type: ignore[call-arg]


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
