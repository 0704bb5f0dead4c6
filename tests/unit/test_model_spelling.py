"""Spellings of a place: what is one, however it is typed, and what is another."""

from itertools import product

import pytest

from damselfly.errors import UsageError
from damselfly.model.hub_ref import HubRef
from damselfly.model.oci_name import OCIName
from damselfly.model.ref import Ref
from damselfly.model.spelling import NO_ENDPOINTS, spellings

COMMIT = "0123456789abcdef0123456789abcdef01234567"
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
    "https://10.0.0.1/m": [
        "https://167772161/m",
        "https://0x0a000001/m",
        "https://012.0.0.1/m",
        "https://10.1/m",
        "https://[::ffff:10.0.0.1]/m",
        "https://[::ffff:a00:1]/m",
    ],
    "https://[::1]:8443/m": ["https://[0:0::1]:8443/m", "https://[0:0:0:0:0:0:0:1]:8443/m"],
    "https://host:8443/m": ["https://host.:8443/m"],
    "https://host:8080/m": ["http://HOST:8080/m/"],
    "https://[::1]/m": ["http://[::1]/m/"],
    "hf://models/org/name": [
        "hf://org/name",
        "hf://Org/NAME/",
        "hf://models/org/name",
        "hf://org/name@refs/pr/1",
        "https://huggingface.co/api/models/org/name/revision/main",
        "https://huggingface.co/api/models/org/name",
        "https://huggingface.co/org/name.git",
        "hf://org/name@main",
        "hf://org/name@0123456789abcdef0123456789abcdef01234567/",
        "https://huggingface.co/org/name",
        "https://huggingface.co:443/Org/name/resolve/main/",
        "http://www.huggingface.co/org/name/tree/v1",
        "https://hf.co/org/name/",
    ],
    "hf://models/org/name/sub": [
        "hf://org/name@main/sub/",
        "hf://org/name@refs/pr/1/sub/",
        "https://huggingface.co/org/name/resolve/refs/pr/1/sub/",
        "https://huggingface.co/api/models/org/name/tree/main/sub",
        f"https://huggingface.co/api/resolve-cache/models/org/name/{COMMIT}/sub",
        "https://huggingface.co/org/name/resolve/main/sub/",
    ],
    "hf://models/gpt2": [
        "hf://gpt2",
        "hf://models/gpt2@main",
        "https://huggingface.co/gpt2/resolve/main/",
    ],
    "hf://datasets/squad/x": ["hf://datasets/squad@main/x"],
    "hf://datasets/squad": ["hf://datasets/squad@main", "hf://datasets/squad"],
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
        "https://bucket.s3-accelerate.dualstack.amazonaws.com/m/",
        "https://bucket.s3.cn-north-1.amazonaws.com.cn/m/",
        "https://bucket.vpce-1a.s3.eu-west-1.vpce.amazonaws.com/bucket/m/",
        "https://bucket.bucket.vpce-1a.s3.eu-west-1.vpce.amazonaws.com/m/",
    ],
    "gs://bucket/m": [
        "gs://bucket/m/",
        "https://storage.googleapis.com/bucket/m/",
        "https://bucket.storage.googleapis.com/m",
        "https://storage.googleapis.com/storage/v1/b/bucket/o/m",
        "https://storage.googleapis.com/download/storage/v1/b/bucket/o/m",
        "https://www.googleapis.com/download/storage/v1/b/bucket/o/m",
        "https://storage.europe-west3.rep.googleapis.com/bucket/m",
    ],
    "az://container/m": [
        "az://container/m",
        "https://account.blob.core.windows.net/container/m/",
        "https://account-secondary.blob.core.windows.net/container/m/",
        "https://account.dfs.core.windows.net/container/m/",
        "https://account.z01.blob.storage.azure.net/container/m/",
    ],
    "oci://host/repo/x": [
        "oci://host/repo/x:v1",
        "oci://HOST:443/repo/x",
        "oci://host./repo/x",
        "oci://host.:443/repo/x",
        "oci://host/repo/x@sha256:" + "0" * 64,
        "oci://host/repo/x:v1@sha256:" + "0" * 64,
    ],
    "oci://docker.io/a/b": ["oci://registry-1.docker.io/a/b:latest", "oci://index.docker.io/a/b"],
    "oci://host:5000/repo/x": ["oci://host.:5000/repo/x:1"],
    "oci://docker.io/library/model": [
        "oci://docker.io/model",
        "oci://docker.io/model:latest",
        "oci://index.docker.io/library/model@sha256:" + "0" * 64,
    ],
    "file:///models/x": ["file:///models/x/", "file://localhost/models/y/../x"],
}


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in SAME.items() for text in texts]
)
def test_a_place_has_one_name(name: str, text: str) -> None:
    assert spellings(Ref.parse(text))[0] == name


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
    assert not set(spellings(Ref.parse(one))) & set(spellings(Ref.parse(other)))


MIRRORED = (
    NO_ENDPOINTS.also("hf", "http://mirror:8080/api/hub/")
    .also("s3", "https://minio.local:9000")
    .also("gs", "http://127.0.0.1:4443")
    .also("az", "http://127.0.0.1:10000/devstoreaccount1")
    .also("az", "https://acct.blob.example")
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hf://models/org/name", "http://mirror:8080/api/hub/org/name/resolve/main/"),
        ("hf://models/org/name", "http://mirror.:8080/api/hub/api/models/org/name/tree/main"),
        ("s3://bucket/m", "https://minio.local:9000/bucket/m/"),
        ("s3://bucket/m", "http://bucket.minio.local:9000/m/"),
        ("gs://bucket/m", "http://127.1:4443/download/storage/v1/b/bucket/o/m"),
        ("gs://bucket/m", "http://127.0.0.1:4443/bucket/m"),
        ("az://container/m", "http://127.0.0.1:10000/devstoreaccount1/container/m"),
        ("az://container/m", "https://acct-secondary.blob.example/container/m"),
        ("https://mirror:8080/other/org", "http://mirror:8080/other/org"),
        ("https://evilminio.local:9000/bucket", "https://evilminio.local:9000/bucket"),
    ],
)
def test_a_configured_endpoint_is_its_scheme(name: str, text: str) -> None:
    assert spellings(Ref.parse(text), MIRRORED)[0] == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf://org/llama--x", "hf://"),
        ("hf://datasets/", "hf://"),
        ("https://huggingface.co/api/whatever/org/name", "hf://"),
        ("https://huggingface.co/", "hf://"),
        ("https://huggingface.co/datasets/", "hf://datasets/"),
        ("https://cas-bridge.xethub.hf.co/xet-bridge-us/0/1", "hf://"),
        ("oci://host/No_Such", "oci://host/"),
        ("https://s3.amazonaws.com/", "s3://"),
        ("https://x-1.s3-accesspoint.eu-west-1.amazonaws.com/m", "s3://"),
    ],
)
def test_what_cannot_be_told_may_be_anything_there(text: str, name: str) -> None:
    assert name in spellings(Ref.parse(text))


def test_a_blob_of_a_registry_is_of_its_repository() -> None:
    blob = "https://ghcr.io/v2/org/m/blobs/sha256:" + "0" * 64
    assert "oci://ghcr.io/org/m" in spellings(Ref.parse(blob))
    assert "https://ghcr.io/v2/org/m" in spellings(Ref.parse("oci://ghcr.io/org/m:v1"))


def test_refs_of_the_hub_that_ask_for_one_repository_have_one_name() -> None:
    names = ["models", "datasets", "org", "name", "name@main", "name@refs", "pr", "1"]
    asked: dict[tuple[str, str, str], set[tuple[str, ...]]] = {}
    for depth in range(1, 6):
        for parts in product(names, repeat=depth):
            ref = Ref.parse("hf://" + "/".join(parts)) if "@" not in parts[0] else None
            try:
                found = None if ref is None else HubRef.of(ref)
            except UsageError:
                continue
            if ref is not None and found is not None:
                place = (found.kind, found.repository, found.inside)
                asked.setdefault(place, set()).add(spellings(ref))
    assert len(asked) > 100
    assert [place for place, spelt in asked.items() if len(spelt) != 1] == []


def test_refs_of_registries_that_ask_for_one_repository_have_one_name() -> None:
    hosts = [
        "docker.io",
        "DOCKER.io",
        "index.docker.io",
        "registry-1.docker.io",
        "host",
        "host:5000",
    ]
    repositories = ["model", "library/model", "org/model"]
    marks = ["", "/", ":latest", ":v1", "@sha256:" + "0" * 64, ":v1@sha256:" + "0" * 64]
    asked: dict[tuple[str, str], set[tuple[str, ...]]] = {}
    for host, repository, mark in product(hosts, repositories, marks):
        ref = Ref.parse(f"oci://{host}/{repository}{mark}")
        name = OCIName.of(ref)
        asked.setdefault((name.host, name.repository), set()).add(spellings(ref))
    assert len(asked) == 8
    assert [place for place, spelt in asked.items() if len(spelt) != 1] == []


@pytest.mark.parametrize(
    ("scheme", "bases"),
    [
        (
            "s3",
            [
                "s3://bucket/",
                "https://bucket.s3.amazonaws.com/",
                "https://bucket.s3.eu-west-1.amazonaws.com./",
                "http://s3.us-east-1.amazonaws.com:80/bucket/",
                "https://minio.local:9000/bucket/",
                "https://bucket.minio.local.:9000/",
            ],
        ),
        (
            "gs",
            [
                "gs://bucket/",
                "https://storage.googleapis.com/bucket/",
                "https://bucket.storage.googleapis.com:443/",
                "https://storage.googleapis.com/download/storage/v1/b/bucket/o/",
                "http://127.0.0.1:4443/storage/v1/b/bucket/o/",
            ],
        ),
        (
            "az",
            [
                "az://bucket/",
                "https://acct.blob.core.windows.net/bucket/",
                "https://acct-secondary.dfs.core.windows.net/bucket/",
                "http://127.0.0.1:10000/devstoreaccount1/bucket/",
            ],
        ),
        ("https", ["https://192.0.2.1/", "http://0xc0.0.2.1:80/", "https://[::ffff:c000:201]/"]),
    ],
)
def test_one_object_has_one_name(scheme: str, bases: list[str]) -> None:
    for key in ("m", "a/b", "A/%6d.bin", "a//x/../b", "v1/o", "storage"):
        names = {spellings(Ref.parse(base + key), MIRRORED) for base in bases}
        assert len(names) == 1
        assert next(iter(names))[0].startswith(f"{scheme}://")
