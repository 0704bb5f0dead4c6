"""Orders from the wire: garbage raises RemoteProtocolError and nothing else."""

import json

import pytest
from hypothesis import given, strategies as st

from damselfly.errors import RemoteProtocolError
from damselfly.p2p.orders import GLOBS_MAX, ORDER_BYTES_MAX, Order

BOOT = "0" * 32
printable = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Z")), min_size=1, max_size=40
)
orders = st.builds(
    Order,
    ref=printable,
    include=st.lists(printable, max_size=4).map(tuple),
    exclude=st.lists(printable, max_size=4).map(tuple),
    pin=st.booleans(),
    ttl_s=st.none() | st.floats(1.0, 1e8),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(orders)
def test_an_order_is_read_back_as_it_was_written(order: Order) -> None:
    assert Order.parse(order.to_json(BOOT)) == (order, BOOT)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_order_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Order.parse(data)


@given(st.sampled_from(["ref", "include", "exclude", "pin", "ttl_s", "boot"]), values)
def test_a_field_of_another_kind_is_refused_or_read(name: str, value: object) -> None:
    fields = {"ref": "https://host/x", "boot": BOOT, name: value}

    try:
        order, boot = Order.parse(json.dumps(fields).encode())
    except RemoteProtocolError:
        return
    assert Order.parse(order.to_json(boot)) == (order, boot)


@pytest.mark.parametrize(
    "fields",
    [
        {"ref": "https://host/" + "x" * 4096},
        {"ref": "https://host/x y"},
        {"include": ["x"] * (GLOBS_MAX + 1)},
        {"include": ["x" * 2000]},
        {"include": ["\x1b[2J"]},
        {"ttl_s": 0},
        {"ttl_s": 1e12},
        {"ttl_s": True},
        {"pin": 1},
        {"boot": "x" * 1000},
    ],
)
def test_more_than_the_limits_allow_is_refused(fields: dict[str, object]) -> None:
    given = {"ref": "https://host/x", "boot": BOOT} | fields

    with pytest.raises(RemoteProtocolError):
        Order.parse(json.dumps(given).encode())


def test_a_body_without_end_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        Order.parse(b" " * (ORDER_BYTES_MAX + 1))
