"""JSON that is small on the wire and large in memory is refused before any of it is built."""

import json
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from damselfly.errors import DamselflyError, HeaderError, RemoteProtocolError
from damselfly.model import canonical, safetensors
from damselfly.model.bounded_json import CHUNKS_VALUES_MAX, DEPTH_MAX, VALUES_MAX, loads
from damselfly.model.manifest import Manifest
from damselfly.model.plan import Plan
from damselfly.p2p.fields import Fields

COUNT = CHUNKS_VALUES_MAX + 1
BOMBS = {
    "empty lists": b"[" + b"[]," * COUNT + b"0]",
    "empty objects": b"[" + b"{}," * COUNT + b"0]",
    "numbers": b"[" + b"0," * COUNT + b"0]",
    "keys": b'{"a":[' + b"0," * COUNT + b"0]}",
}


def _fields(data: bytes) -> object:
    return Fields.parse("a message", data, 64 << 20)


@pytest.mark.parametrize("read", [canonical.decode, Manifest.parse, Plan.parse, _fields])
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_is_built(name: str, read: Callable[[bytes], object]) -> None:
    data = BOMBS[name]
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, DamselflyError)):
            read(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 1 << 20


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * (DEPTH_MAX + 1) + b"]" * (DEPTH_MAX + 1),
        b'["]",' * (DEPTH_MAX + 1) + b"0" + b"]" * (DEPTH_MAX + 1),
        b'["\\"]",' * (DEPTH_MAX + 1) + b"0" + b"]" * (DEPTH_MAX + 1),
        b'[{"]":' * (DEPTH_MAX // 2 + 1) + b"0" + b"}]" * (DEPTH_MAX // 2 + 1),
    ],
)
def test_what_is_nested_too_deep_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="nested too deep"):
        loads(data)


def test_a_message_between_agents_has_fewer_values_than_a_manifest() -> None:
    with pytest.raises(RemoteProtocolError):
        _fields(b'{"a":[' + b"0," * (1 << 18) + b"0]}")


@pytest.mark.parametrize("text", ["9" * 21, "-" + "9" * 21, "9" * 4200, "0." + "1" * 31])
def test_a_number_longer_than_any_of_ours_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="at most"):
        loads(f'{{"a":[{text}]}}'.encode())


@pytest.mark.parametrize("value", [2**64 - 1, -(2**64), 0, 1.7976931348623157e308, -2.5e-300])
def test_a_number_of_64_bits_is_read(value: float) -> None:
    assert loads(json.dumps(value).encode()) == value


@pytest.mark.parametrize("read", [Manifest.parse, Plan.parse])
def test_what_has_integers_only_has_no_floats(read: Callable[[bytes], object]) -> None:
    with pytest.raises(DamselflyError) as caught:
        read(b'{"format":1.5}')

    assert "no integer" in str(caught.value.__cause__)


def test_what_has_no_chunks_has_fewer_values_than_a_manifest() -> None:
    data = b"[" + b"0," * VALUES_MAX + b"0]"

    with pytest.raises(ValueError, match=f"more than {VALUES_MAX} values"):
        canonical.decode(data)


def test_a_header_of_more_tensors_than_models_have_is_refused_before_it_is_built() -> None:
    entry = b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
    text = b"{" + b"".join(entry % number for number in range(300_000)) + b'"a":0}'
    data = len(text).to_bytes(8, "little") + text

    with pytest.raises(HeaderError) as caught:
        safetensors.parse(data, len(data))

    assert "values" in str(caught.value.__cause__)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(alphabet='[]{}"\\,:a'),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(alphabet='[]{}"\\,a', max_size=4), inner, max_size=4)
    ),
    max_leaves=60,
)


@given(value=values, depth_max=st.integers(1, 8))
def test_brackets_in_text_are_no_depth(value: object, depth_max: int) -> None:
    data = json.dumps(value).encode()

    if _depth(value) <= depth_max:
        assert loads(data, depth_max=depth_max) == value
    else:
        with pytest.raises(ValueError, match="nested too deep"):
            loads(data, depth_max=depth_max)


def _depth(value: object) -> int:
    match value:
        case list():
            return 1 + max(map(_depth, value), default=0)  # pyright: ignore[reportUnknownArgumentType]
        case dict():
            return 1 + max(map(_depth, value.values()), default=0)  # pyright: ignore[reportUnknownArgumentType]
        case _:
            return 0
