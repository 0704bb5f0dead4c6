"""Where S3 is: endpoints, regions, and the URLs of buckets."""

import pytest

from damselfly.errors import ConfigError, UsageError
from damselfly.origin.s3_place import S3Place, check_endpoint, check_region

VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("endpoint", "region", "bucket", "expected"),
    [
        (None, "eu-central-1", "models", "https://models.s3.eu-central-1.amazonaws.com/a/b"),
        (None, "cn-north-1", "models", "https://models.s3.cn-north-1.amazonaws.com.cn/a/b"),
        (None, "us-east-1", "my.models", "https://s3.us-east-1.amazonaws.com/my.models/a/b"),
        (None, "us-east-1", "My_Models", "https://s3.us-east-1.amazonaws.com/My_Models/a/b"),
        ("http://127.0.0.1:9000/", "us-east-1", "models", "http://127.0.0.1:9000/models/a/b"),
        ("https://x.example/s3", "eu-west-1", "models", "https://x.example/s3/models/a/b"),
    ],
)
def test_a_bucket_is_asked_by_its_own_host_or_by_path(
    endpoint: str | None, region: str, bucket: str, expected: str
) -> None:
    assert S3Place(endpoint).url(region, bucket, "a/b") == expected


@pytest.mark.parametrize("bucket", ["..", ".", "a", "-a-", "a..b", "a/b", "a b", "x" * 300])
def test_what_no_bucket_is_called_is_refused(bucket: str) -> None:
    with pytest.raises(UsageError):
        S3Place().url("us-east-1", bucket)


def test_a_query_is_escaped() -> None:
    url = S3Place("http://h").url("r", "bucket", "k", {"prefix": "a b/&=é"})

    assert url == "http://h/bucket/k?prefix=a%20b%2F%26%3D%C3%A9"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h:9000",
        "ftp://h",
        "http://",
        "http://u:p@h",
        "http://h?a=b",
        "http://h/#f",
        "http://h:x",
    ],
)
def test_what_is_no_endpoint_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ValueError, match="not an endpoint") as caught:
        check_endpoint(text)

    assert text == "" or text not in str(caught.value)


@pytest.mark.parametrize("text", ["", "evil.example/", "a@b", "A", "x" * 50, "a--b", "-a"])
def test_what_is_no_region_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a region"):
        check_region(text)


def test_what_is_said_counts_more_than_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://second")
    assert S3Place.of().url("r", "bucket") == "http://second/bucket/"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://first")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")
    assert S3Place.of().url("r", "bucket") == "http://first/bucket/"
    assert S3Place.of().first_region == "eu-west-3"
    assert S3Place.of("http://said", "eu-west-1") == S3Place("http://said", "eu-west-1")


def test_an_environment_that_makes_no_sense_is_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:planted@host")

    with pytest.raises(ConfigError) as caught:
        S3Place.of()

    assert "planted" not in str(caught.value)
