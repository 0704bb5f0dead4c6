"""Where the agent's own keys for S3 come from, and where they never do."""

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from damselfly.errors import ConfigError, explain
from damselfly.origin.s3_keys import OwnKeys
from damselfly.origin.s3_signature import S3Keys


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


@pytest.fixture
def metadata_service(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Somebody listens where botocore would ask a node for its keys."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)
        listener.setblocking(False)
        yield listener


async def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")

    assert await OwnKeys().keys() == S3Keys("AKIA", "secret", "token")


async def test_a_profile_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_PROFILE", "models")
    (tmp_path / "credentials").write_text(
        "[models]\naws_access_key_id = AKIA\naws_secret_access_key = secret\n"
    )

    assert await OwnKeys().keys() == S3Keys("AKIA", "secret")


@pytest.mark.parametrize("name", ["AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"])
async def test_a_source_that_nothing_here_reads_is_an_error_and_not_asked_without(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    monkeypatch.setenv(name, "models")

    with pytest.raises(ConfigError, match=rf"{name}.*damselfly\[s3\]"):
        await OwnKeys().keys()


async def test_a_file_that_may_have_keys_and_nothing_that_reads_it_asks_unsigned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    (tmp_path / "config").write_text("[default]\nregion = eu-west-1\n")

    assert await OwnKeys().keys() is None


async def test_a_nodes_metadata_service_is_not_asked(
    metadata_service: socket.socket, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text("[default]\nregion = eu-west-1\n")

    assert await OwnKeys().keys() is None

    with pytest.raises(BlockingIOError):
        metadata_service.accept()


async def test_keys_are_renewed_when_a_server_says_that_they_are_no_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = OwnKeys()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOLD")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    old = await own.keys()
    assert old is not None

    assert not await own.renewed(old)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANEW")
    assert await own.keys() == old
    assert await own.renewed(old)
    assert await own.keys() == S3Keys("AKIANEW", "secret")
    assert await own.renewed(old)  # Somebody else had asked with them too.


@pytest.mark.parametrize(
    "text",
    [
        "[models]\ncredential_process = false planted-secret\n",
        "[models]\nrole_arn = arn:planted-secret\nsource_profile = nobody\n",
        "no file of profiles: planted-secret",
    ],
)
async def test_a_profile_that_cannot_be_used_is_said_without_what_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "models")
    (tmp_path / "config").write_text(text.replace("[models]", "[profile models]"))

    with pytest.raises(ConfigError) as caught:
        await OwnKeys().keys()

    assert "planted-secret" not in explain(caught.value)
