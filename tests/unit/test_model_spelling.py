"""Spellings of a place: what is one, however it is typed, and what is another."""

import pytest

from damselfly.model.ref import Ref
from damselfly.model.spelling import spelling

SAME = {
    "https://host/m": [
        "https://host/m/",
        "HTTPS://HOST:443/m",
        "http://host/m",
        "http://host:80/m/",
        "https://host./m",
        "https://host/x/../m/",
        "https://host//m/",
        "https://host/%6d/",
        "https://host/m/?token=1",
    ],
    "https://host:8080/m": ["http://HOST:8080/m/"],
    "https://[::1]/m": ["http://[::1]/m/"],
    "hf://org/name": [
        "hf://org/name",
        "hf://Org/NAME/",
        "hf://org/name@main",
        "hf://org/name@0123456789abcdef0123456789abcdef01234567/",
        "https://huggingface.co/org/name",
        "https://huggingface.co:443/Org/name/resolve/main/",
        "http://www.huggingface.co/org/name/tree/v1",
        "https://hf.co/org/name/",
    ],
    "hf://org/name/sub": [
        "hf://org/name@main/sub/",
        "https://huggingface.co/org/name/resolve/main/sub/",
    ],
    "hf://datasets/org/name": [
        "hf://datasets/org/name@v1",
        "https://huggingface.co/datasets/org/name/resolve/v1/",
    ],
    "s3://bucket/m": [
        "s3://bucket/m/",
        "s3://BUCKET/m",
        "https://bucket.s3.amazonaws.com/m/",
        "https://bucket.s3.eu-west-1.amazonaws.com/m/",
        "https://s3.eu-west-1.amazonaws.com/bucket/m/",
        "https://s3.amazonaws.com/bucket/m/",
    ],
    "gs://bucket/m": ["https://storage.googleapis.com/bucket/m/"],
    "az://container/m": ["https://account.blob.core.windows.net/container/m/"],
    "oci://host/repo/x": [
        "oci://host/repo/x:v1",
        "oci://HOST:443/repo/x",
        "oci://host/repo/x@sha256:" + "0" * 64,
        "oci://host/repo/x:v1@sha256:" + "0" * 64,
    ],
    "oci://docker.io/a/b": ["oci://registry-1.docker.io/a/b:latest", "oci://index.docker.io/a/b"],
    "file:///models/x": ["file:///models/x/", "file://localhost/models/y/../x"],
}


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in SAME.items() for text in texts]
)
def test_a_place_has_one_name(name: str, text: str) -> None:
    assert spelling(Ref.parse(text)) == name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://host/m", "https://host/M"),
        ("https://host:81/m", "https://host/m"),
        ("https://host/m", "https://hosts/m"),
        ("hf://org/name", "hf://org/name2"),
        ("https://bucket.s3.amazonaws.com.evil/m", "s3://bucket/m"),
        ("https://evil-huggingface.co/org/name", "hf://org/name"),
        ("s3://bucket/m", "gs://bucket/m"),
    ],
)
def test_other_places_have_other_names(one: str, other: str) -> None:
    assert spelling(Ref.parse(one)) != spelling(Ref.parse(other))
