"""Credentials: what they look like in a header, and that nothing else shows them."""

import pytest

from damselfly.errors import UsageError
from damselfly.origin.access import ANONYMOUS, SECRET_CHARS_MAX, Access


def test_a_token_is_shown_as_a_bearer() -> None:
    assert Access.of(token="hf_abc").authorization == "Bearer hf_abc"


def test_a_name_and_a_password_are_basic_authorization() -> None:
    # The example of RFC 7617, section 2.1: UTF-8.
    assert Access.of(username="test", password="123£").authorization == "Basic dGVzdDoxMjPCow=="


def test_nothing_is_anonymous() -> None:
    assert Access.of() == Access.of(token="", username="", password="") == ANONYMOUS
    assert ANONYMOUS.authorization is None


@pytest.mark.parametrize(
    "credentials",
    [
        {"token": "s3cret", "username": "me"},
        {"token": "s3cret", "password": "x"},
        {"password": "s3cret"},
        {"token": "s3cret\r\nHost: evil"},
        {"token": "s3cret and more"},
        {"token": "s3crét"},
        {"username": "s3cret:x", "password": "y"},
        {"username": "me", "password": "s3cret\n"},
        {"token": "s3cret" * SECRET_CHARS_MAX},
    ],
)
def test_what_cannot_be_shown_is_refused_without_telling_it(credentials: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        Access.of(**credentials)

    assert "s3cr" not in str(caught.value)


def test_no_representation_has_a_secret() -> None:
    for access in (Access.of(token="s3cret"), Access.of(username="me", password="s3cret")):
        assert repr(access) == str(access) == "<Access>"
    assert repr(ANONYMOUS) == "<Access: anonymous>"
