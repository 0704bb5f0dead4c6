"""Agents as processes that pull from a hub: each byte once, though what it signed expires."""

# pyright: reportUnknownMemberType=false
# Types of the hub's client name those of a library that has none.

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from bench.agents import Agent, Fleet, free_addresses
from damselfly.client.answers import Opened, VolumeRequest
from tests.fakes.hub import Hub
from tests.integration.origin_servers import weights

DAMSELFLY = (sys.executable, "-m", "damselfly")
TOKEN = "hf_pLaNtEdToKeN0123456789"
FILES = {
    "README.md": b"",
    "config.json": b'{"a": 1}',
    "model-00001-of-00002.safetensors": weights(1, 300, 3 << 20, 40, 9 << 20),
    "model-00002-of-00002.safetensors": weights(2, 7 << 20, 6 << 20),
    "original/weights.bin": os.urandom((9 << 20) + 1),
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    hub.tokens[TOKEN] = "somebody"
    with hub.running():
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HOME", "/nowhere")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


@pytest.fixture
def agents(hub: Hub, tmp_path: Path) -> Iterator[list[Agent]]:
    addresses = free_addresses(2)
    with Fleet(tmp_path / "fleet") as fleet:
        yield [
            fleet.start_agent(f"n{number}", address, addresses, "--store-keep-free", "1MiB")
            for number, address in enumerate(addresses)
        ]


def pull(agent: Agent, ref: str, *options: str) -> "subprocess.Popen[str]":
    words = ("pull", ref, "--json", *options, "--socket", str(agent.client.socket_path))
    return subprocess.Popen(
        [*DAMSELFLY, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(pull: "subprocess.Popen[str]") -> dict[str, object]:
    out, said = pull.communicate(timeout=120)
    assert pull.returncode == 0, said
    answer: dict[str, object] = json.loads(out)
    return answer


def files_of(answer: dict[str, object]) -> dict[str, bytes]:
    root = Path(str(answer["path"]))
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def test_two_agents_pull_a_model_whose_addresses_expire_in_the_middle(
    hub: Hub, agents: list[Agent]
) -> None:
    hub.repository("org/name", FILES)
    hub.page_size = 3
    hub.expire_after = 10 << 20

    pulls = [pull(agent, "hf://org/name") for agent in agents]
    answers = [ended(each) for each in pulls]

    assert [files_of(answer) for answer in answers] == [FILES, FILES]
    assert answers[0]["artifact"] == answers[1]["artifact"]
    assert hub.generation == 1
    large = sum(len(data) for path, data in FILES.items() if "/" in path or "model" in path)
    # What had arrived of chunks that were cut is read again, and the headers were read before.
    assert large <= hub.bytes_sent <= large + (24 << 20)
    signed = [each for each in hub.asked("hub", "HEAD") if each.status == 302]
    spans = [each for each in hub.asked("other", "GET") if each.status == 206]
    assert len(signed) < len(spans)


def test_a_file_of_the_repository_itself_is_read_again_only_where_its_blob_is_another(
    hub: Hub, agents: list[Agent]
) -> None:
    files = {"config.json": b'{"a": 1}', "vocabulary.txt": os.urandom(9 << 20)}
    repository = hub.repository("org/name", files)
    ended(pull(agents[0], "hf://org/name"))
    files = files | {"config.json": b'{"a": 22}'}
    repository.commit(files)

    answer = ended(pull(agents[0], "hf://org/name", "--fresh"))

    assert files_of(answer) == files
    assert answer["bytes_from_origin"] == len(files["config.json"])


def test_a_gated_model_is_pulled_with_a_token_and_not_without(
    hub: Hub, agents: list[Agent], tmp_path: Path
) -> None:
    repository = hub.repository("org/name", FILES)
    repository.is_gated = True
    repository.readers.add(TOKEN)
    (tmp_path / "token").write_text(TOKEN)

    refused = pull(agents[0], "hf://org/name")
    _, said = refused.communicate(timeout=60)
    answer = ended(pull(agents[0], "hf://org/name", "--token-file", str(tmp_path / "token")))

    assert refused.returncode == 61
    assert "accept its conditions" in said
    assert files_of(answer) == FILES
    assert all("authorization" not in each.headers for each in hub.asked("other"))


def test_a_volume_is_at_the_commit_where_the_hubs_client_looks_for_it(
    hub: Hub, agents: list[Agent]
) -> None:
    repository = hub.repository("org/data", {}, "datasets")
    commit = repository.commit({f"sub/{path}": data for path, data in FILES.items()}, "v1")
    request = VolumeRequest(ref="hf://datasets/org/data@v1/sub", lease="a-lease", layout="hf-cache")

    for agent in agents:
        agent.wait_until_ready()
        opened = list(agent.client.open_volume(request))[-1]
        assert isinstance(opened, Opened)
        view = Path(opened.path) / "datasets--org--data"
        snapshot = view / "snapshots" / commit / "sub"

        assert {path: (snapshot / path).read_bytes() for path in FILES} == FILES
        assert {path.name: path.read_text() for path in (view / "refs").iterdir()} == {
            "main": commit,
            "v1": commit,
        }
        found = HfApi(endpoint=hub.endpoint).hf_hub_download(
            "org/data",
            "sub/config.json",
            repo_type="dataset",
            revision="v1",
            cache_dir=opened.path,
            local_files_only=True,
        )
        assert Path(found).read_bytes() == FILES["config.json"]
