"""The hub's own client against the hub of the tests: both rely on the same answers."""

# pyright: reportUnknownMemberType=false
# Its types name those of a library that has none.

from collections.abc import Generator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.fakes.hub import Hub, git_oid, sha256_of

# Its own way of sending files is deprecated by the HTTP client below it.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = "hf_pLaNtEdToKeN0123456789"
FILES = {
    "README.md": b"---\nlicense: mit\n---\n",
    "config.json": b'{"a": 1}',
    "empty": b"",
    "model.safetensors": bytes(range(256)) * 3000,
    "original/deep/weights.bin": b"w" * 100_000,
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Generator[Hub]:
    # Where there is no Xet, the client speaks LFS, as it does to mirrors.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hub = Hub()
    hub.tokens[TOKEN] = "somebody"
    with hub.running():
        yield hub
    huggingface_hub.close_session()


def client(hub: Hub, token: str | bool = False) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token)


@pytest.mark.parametrize(
    ("kind", "kinds", "name"),
    [
        ("model", "models", "org/name"),
        ("dataset", "datasets", "org/data"),
        ("model", "models", "x"),
    ],
)
def test_a_snapshot_is_the_files(
    hub: Hub, tmp_path: Path, kind: str, kinds: str, name: str
) -> None:
    commit = hub.repository(name, FILES, kinds).branches["main"]

    found = Path(
        client(hub).snapshot_download(name, repo_type=kind, cache_dir=str(tmp_path / "cache"))
    )

    assert found.name == commit
    assert {str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()} == set(
        FILES
    )
    assert all((found / path).read_bytes() == data for path, data in FILES.items())


def test_a_tree_is_listed_page_by_page(hub: Hub) -> None:
    hub.repository("org/name", FILES)
    hub.page_size = 2

    listed = list(client(hub).list_repo_tree("org/name", recursive=True))
    found = {each.path: each for each in listed if isinstance(each, RepoFile)}

    assert found.keys() == FILES.keys()
    large = found["model.safetensors"].lfs
    assert large is not None
    assert large.sha256 == sha256_of(FILES["model.safetensors"])
    assert found["config.json"].blob_id == git_oid(FILES["config.json"])


def test_refusals_are_those_that_the_client_knows(hub: Hub) -> None:
    hub.repository("org/name", FILES)
    hub.repository("org/gated", FILES).is_gated = True
    hub.repository("org/private", FILES).is_private = True
    api = client(hub)

    with pytest.raises(GatedRepoError):
        api.hf_hub_download("org/gated", "config.json", cache_dir="/nowhere")
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info("org/private")
    with pytest.raises(RevisionNotFoundError):
        api.repo_info("org/name", revision="v9")
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("org/name", "nowhere"))
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("org/name", "nowhere", cache_dir="/nowhere")


def test_a_commit_is_made_of_small_and_large_files(hub: Hub, tmp_path: Path) -> None:
    repository = hub.repository("org/name", FILES)
    repository.writers.add(TOKEN)
    large = tmp_path / "large.bin"
    large.write_bytes(b"x" * 300_000)
    before = repository.branches["main"]

    made = client(hub, TOKEN).create_commit(
        "org/name",
        [
            CommitOperationAdd("sub/large.bin", str(large)),
            CommitOperationAdd("config.json", b"{}"),
            CommitOperationDelete("empty"),
        ],
        commit_message="A commit",
        parent_commit=before,
    )

    assert made.oid == repository.branches["main"] != before
    expected = {**FILES, "sub/large.bin": b"x" * 300_000, "config.json": b"{}"}
    del expected["empty"]
    assert repository.commits[made.oid] == expected


def test_a_commit_on_another_one_than_the_last_is_refused(hub: Hub) -> None:
    repository = hub.repository("org/name", FILES)
    repository.writers.add(TOKEN)
    before = repository.branches["main"]
    repository.commit({**FILES, "new": b"of somebody else"})

    with pytest.raises(HfHubHTTPError) as caught:
        client(hub, TOKEN).create_commit(
            "org/name",
            [CommitOperationAdd("x", b"x")],
            commit_message="A commit",
            parent_commit=before,
        )

    assert caught.value.response.status_code == 412
