"""Addresses that expire: until when, for whom, and that none is shown."""

import base64
import json

import pytest

from damselfly.origin.access import ANONYMOUS, Access
from damselfly.origin.renewed import (
    LASTING_S_MAX,
    MARGIN_S,
    UNDATED_S,
    Address,
    expiry_of,
)
from damselfly.origin.web import Answer, Measured, Page, Wanted

NOW_S = 1_800_000_000.0  # 2027-01-15T08:00:00Z
SECRET = "hunter2"


def policy(value: object) -> str:
    text = base64.b64encode(json.dumps(value).encode()).decode()
    return text.translate(str.maketrans("+=/", "-_~"))


def until(seconds: object) -> object:
    return {"Statement": [{"Condition": {"DateLessThan": {"AWS:EpochTime": seconds}}}]}


@pytest.mark.parametrize(
    ("query", "lasts_s"),
    [
        ("X-Amz-Date=20270115T075900Z&X-Amz-Expires=900&X-Amz-Signature=x", 840),
        ("X-Goog-Date=20270115T080000Z&X-Goog-Expires=600", 600),
        ("X-Amz-Expires=600", 600),
        ("Expires=1800000300&Signature=x&Key-Pair-Id=K", 300),
        (f"Policy={policy(until(1_800_000_200))}&Signature=x", 200),
        ("sv=2024&se=2027-01-15T08:05:00Z&sig=x", 300),
        ("Expires=1799999999", -1),
    ],
)
def test_an_address_says_until_when_it_counts(query: str, lasts_s: float) -> None:
    assert expiry_of(f"https://h/x?{query}", NOW_S) == NOW_S + lasts_s - MARGIN_S


@pytest.mark.parametrize(
    "query",
    [
        "",
        "Expires=soon",
        "Expires=-1",
        "Expires=" + "9" * 5000,
        "se=2027",
        "Policy=!",
        "Policy=" + "A" * 5000,
        f"Policy={policy([])}",
        f"Policy={policy(until('1800000200'))}",
        f"Policy={policy({'Statement': []})}",
        "Policy=" + base64.b64encode(b"[" * 3000).decode(),
    ],
)
def test_one_that_says_nothing_counts_for_a_short_while(query: str) -> None:
    assert expiry_of(f"https://h/x?{query}", NOW_S) == NOW_S + UNDATED_S


def test_no_address_counts_for_long_whatever_it_says() -> None:
    assert expiry_of("https://h/x?Expires=1999999999", NOW_S) == NOW_S + LASTING_S_MAX
    assert expiry_of("https://h/x?X-Amz-Expires=999999999999", NOW_S) == NOW_S + LASTING_S_MAX


def test_what_has_an_address_does_not_show_it() -> None:
    url = f"https://h/x?X-Amz-Signature={SECRET}"
    holders = [
        Address(url, Access.of(SECRET)),
        Wanted(url, 9, "", 0, 9, ANONYMOUS),
        Answer(302, {"Location": url}, b"", url),
        Page(b"", url, is_html=False),
        Measured(9, "", url, is_html=False),
    ]

    assert SECRET not in repr(holders)
