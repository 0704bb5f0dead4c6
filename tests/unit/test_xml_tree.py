"""XML from strangers: read, or refused for a reason."""

import contextlib

import pytest
from hypothesis import given, strategies as st

from damselfly.origin import xml_tree


def test_elements_are_found_whatever_their_name_space() -> None:
    top = xml_tree.parse(b'<?xml version="1.0"?><a xmlns="urn:x"><b>1</b><b> 2 </b><c><d/></c></a>')

    assert top.name == "a"
    assert [each.text for each in top.all("b")] == ["1", " 2 "]
    assert top.find("b") == "1"
    assert top.find("c", "d") == ""
    assert top.find("c", "e") is None
    assert top.find("e", "d") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<!DOCTYPE a><a/>", "declares"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "declares"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "declares"),
        ("<?pi data?><a/>", "declares"),
        ("<a>&unknown;</a>", "not XML"),
        ("", "not XML"),
        ("<a>", "not XML"),
        ("<a/><b/>", "not XML"),
        ("<a>" * 17 + "</a>" * 17, "too deep"),
        ("<a>" + "<b/>" * 50_001 + "</a>", "too many"),
        ("<a>" + "x" * 70_000 + "</a>", "too much text"),
    ],
)
def test_what_may_not_be_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        xml_tree.parse(text.encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        xml_tree.parse(data)
