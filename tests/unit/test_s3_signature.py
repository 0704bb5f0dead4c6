"""Signatures of S3 against botocore's, which shares no code with ours."""

import datetime
import importlib
from typing import Any

import pytest
from hypothesis import given, strategies as st

from damselfly.origin.s3_place import S3Place
from damselfly.origin.s3_signature import EMPTY_SHA256, S3Keys, S3Signer

NOW = datetime.datetime(2026, 11, 29, 18, 5, 7, tzinfo=datetime.UTC)


class _Clock(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "_Clock":
        return cls(2026, 11, 29, 18, 5, 7, tzinfo=datetime.UTC)


def strangers(method: str, url: str, headers: dict[str, str], keys: S3Keys, region: str) -> str:
    """What botocore says."""
    auth: Any = importlib.import_module("botocore.auth")
    request_class: Any = importlib.import_module("botocore.awsrequest").AWSRequest
    credentials: Any = importlib.import_module("botocore.credentials").Credentials

    class Signer(auth.S3SigV4Auth):  # type: ignore[misc]
        def payload(self, request: Any) -> str:
            return headers.get("x-amz-content-sha256", EMPTY_SHA256)

    request = request_class(method=method, url=url, headers=headers)
    signer: Any = Signer(credentials(keys.key_id, keys.secret, keys.session_token), "s3", region)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auth, "get_current_datetime", lambda: NOW.replace(tzinfo=None))
        signer.add_auth(request)
    text: str = request.headers["Authorization"]
    return text


def ours(method: str, url: str, headers: dict[str, str], keys: S3Keys, region: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datetime, "datetime", _Clock)
        return S3Signer(keys, region).headers(method, url, headers)["Authorization"]


def squeezed(text: str) -> str:
    return text.replace(" ", "")


@pytest.mark.parametrize("session_token", [None, "a/long+token=="])
@pytest.mark.parametrize(
    ("method", "endpoint", "key", "query", "headers"),
    [
        ("GET", None, "m/a.bin", None, {"Range": "bytes=0-0", "If-Match": '"abc"'}),
        ("GET", "http://127.0.0.1:9000", "größe & <x>+%41 ~'()*!", {"versionId": "a/b+c="}, {}),
        ("GET", "https://s3.example/under", "", {"list-type": "2", "prefix": "a b/", "z": ""}, {}),
        ("POST", None, "x", {"uploads": ""}, {"x-amz-content-sha256": "0" * 64}),
        ("GET", None, "x", {"a": "1", "a-b": "2", "a.b": "3", "A": "4"}, {}),
        ("PUT", "http://127.0.0.1:80", "x", {"partNumber": "2"}, {"Content-Length": "7"}),
    ],
)
def test_a_signature_is_what_botocore_says(
    method: str,
    endpoint: str | None,
    key: str,
    query: dict[str, str] | None,
    headers: dict[str, str],
    session_token: str | None,
) -> None:
    keys = S3Keys("AKIA", "secret", session_token)
    url = S3Place(endpoint).url("eu-central-1", "bucket", key, query)

    expected = strangers(method, url, headers, keys, "eu-central-1")

    assert squeezed(ours(method, url, headers, keys, "eu-central-1")) == squeezed(expected)


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.dictionaries(st.from_regex(r"\A[a-zA-Z-]{1,12}\Z"), st.text(max_size=12), max_size=4),
)
def test_any_key_and_query_are_signed_as_botocore_does(key: str, query: dict[str, str]) -> None:
    keys = S3Keys("AKIA", "secret")
    query = {name: text.encode("utf-8", "replace").decode() for name, text in query.items()}
    url = S3Place("http://127.0.0.1:9000").url("us-east-1", "bucket", key, query)

    expected = strangers("GET", url, {}, keys, "us-east-1")

    assert squeezed(ours("GET", url, {}, keys, "us-east-1")) == squeezed(expected)


def test_without_keys_nothing_is_shown() -> None:
    assert S3Signer(None, "us-east-1").headers("GET", "https://b.example/", {}) == {}


def test_neither_keys_nor_a_signer_show_themselves() -> None:
    keys = S3Keys("AKIASECRET", "hidden", "token")

    for each in (keys, S3Signer(keys, "us-east-1")):
        assert not any(text in f"{each} {each!r}" for text in ("AKIASECRET", "hidden", "token"))


def test_signers_of_the_same_keys_are_the_same() -> None:
    assert S3Signer(S3Keys("a", "b"), "x") == S3Signer(S3Keys("a", "b"), "x")
    assert S3Signer(S3Keys("a", "b"), "x") != S3Signer(S3Keys("a", "c"), "x")
