"""What a pull calls its origin: which repository or bucket, and where it is asked."""

import pytest

from damselfly.agent.pull import host_of
from damselfly.model.ref import Ref
from damselfly.origin.clouds import Clouds
from damselfly.origin.registry import Origins
from damselfly.origin.s3_place import S3Place


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("hf://org/name@main/sub/", "hf://org/name at hub.test:8443"),
        ("hf://datasets/org/name", "hf://datasets/org/name at hub.test:8443"),
        ("s3://dest/models/", "s3://dest at s3.test:9000"),
        ("gs://dest/models/", "gs://dest at storage.googleapis.com"),
        ("az://dest/models/", "az://dest at acc123.blob.core.windows.net"),
        ("oci://host:5000/org/name:tag", "oci://host:5000/org/name"),
        ("https://host/m?signature=s3cret", "host"),
        ("file:///models/m/", "file://"),
    ],
)
def test_an_origin_is_called_by_what_it_holds_and_where(
    typed: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AZURE_STORAGE_CONNECTION_STRING", "STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.test:8443/mirror")
    ref = Ref.parse(typed)
    origins = Origins(s3=S3Place("http://s3.test:9000"), clouds=Clouds(az_account="acc123"))

    assert host_of(ref, origins.endpoint_of(ref)) == told


def test_a_bucket_of_amazon_itself_has_a_host_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    ref = Ref.parse("s3://dest/models/")

    assert host_of(ref, Origins().endpoint_of(ref)) == "s3://dest"
