"""Real agents that pull from clouds' emulators: each byte once, and nothing but flags to say."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobServiceClient, PublicAccess

from bench.agents import Fleet, same_tree
from damselfly.errors import UsageError
from damselfly.origin.az_account import EMULATOR_ACCOUNT
from tests.integration.cloud_servers import (
    AZURITE_MAIN,
    NODE,
    az_server,
    connection_string,
    fake_gcs,
    gs_bucket,
    gs_put,
    gs_server,
)
from tests.integration.origin_servers import weights
from tests.integration.test_agent_processes import damselfly, started
from tests.integration.test_origin_fsspec import ftp_server


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path / "fleet") as fleet:
        yield fleet


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.safetensors").write_bytes(weights(3, 6 << 20, 100))
    (folder / "b.bin").write_bytes(os.urandom(5_000_001))
    (folder / "sub" / "größe & <x>.json").write_bytes(b'{"a": 1}\n')
    (folder / "empty").touch()
    return folder


def _files(model: Path) -> Iterator[tuple[str, bytes]]:
    for path in model.rglob("*"):
        if path.is_file():
            yield f"m/{path.relative_to(model)}", path.read_bytes()


@pytest.fixture(params=["gs", "az"])
def place(request: pytest.FixtureRequest, model: Path) -> Iterator[tuple[str, list[str]]]:
    """A ref that everybody may read, and what an agent has to be told of it."""
    if request.param == "gs":
        if fake_gcs() is None:
            pytest.skip("fake-gcs-server is not installed")
        with gs_server() as endpoint:
            gs_bucket(endpoint, "models")
            for key, data in _files(model):
                gs_put(endpoint, "models", key, data)
            yield "gs://models/m/", ["--gs-endpoint", endpoint]
        return
    if NODE is None or not AZURITE_MAIN.exists():
        pytest.skip("Azurite is not installed: npm install --prefix .azurite azurite@3.35.0")
    with (
        az_server() as endpoint,
        BlobServiceClient.from_connection_string(connection_string(endpoint)) as opened,
    ):
        client: Any = opened
        container = client.create_container("models", public_access=PublicAccess.CONTAINER)
        for key, data in _files(model):
            container.upload_blob(key, data)
        yield "az://models/m/", ["--az-endpoint", endpoint, "--az-account", EMULATOR_ACCOUNT]


def test_two_agents_pull_from_a_cloud_and_it_is_read_once(
    fleet: Fleet, model: Path, place: tuple[str, list[str]], tmp_path: Path
) -> None:
    ref, flags = place
    one, two = started(fleet, 2, *flags)

    first = damselfly("pull", ref, "--json", "--to", str(tmp_path / "tree"), agent=one)
    second = damselfly("pull", ref, "--json", agent=two)

    size = sum(len(data) for _, data in _files(model))
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["bytes_from_origin"] == size
    assert json.loads(second.stdout)["bytes_from_peers"] == size
    assert same_tree(tmp_path / "tree", model)


def test_what_the_command_line_pushes_an_agent_pulls_by_its_manifest(
    fleet: Fleet,
    model: Path,
    place: tuple[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ref, flags = place
    pushed = ref.replace("/m/", "/pushed/")
    if ref.startswith("gs"):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", flags[1])
    else:
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string(flags[1]))

    push = damselfly("push", str(model), pushed, "--json")
    again = damselfly("push", str(model), pushed, "--json")
    (agent,) = started(fleet)  # It is told of the cloud by the environment, too.
    pull = damselfly("pull", pushed, "--json", "--to", str(tmp_path / "tree"), agent=agent)

    assert push.returncode == 0, push.stderr
    assert json.loads(again.stdout)["bytes_sent"] == 0
    assert pull.returncode == 0, pull.stderr
    assert json.loads(pull.stdout)["artifact"] == json.loads(push.stdout)["artifact"]
    assert same_tree(tmp_path / "tree", model)


def test_an_agent_pulls_through_fsspec_what_its_configuration_allows(
    fleet: Fleet, model: Path, tmp_path: Path
) -> None:
    (agent,) = started(fleet, 1, "--origin-fsspec", "ftp")
    with ftp_server(model) as ref:
        pull = damselfly("pull", ref, "--json", "--to", str(tmp_path / "tree"), agent=agent)
    refused = damselfly("pull", "sftp://127.0.0.1/m/", agent=agent)

    assert pull.returncode == 0, pull.stderr
    assert same_tree(tmp_path / "tree", model)
    assert refused.returncode == UsageError.exit_code
    assert "no origin speaks sftp://" in refused.stderr
