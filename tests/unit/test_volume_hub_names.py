"""What the hub's client would call a ref."""

import pytest
from huggingface_hub.utils._validators import validate_repo_id
from hypothesis import given, strategies as st

from damselfly.model.digest import Digest
from damselfly.model.hub import HubName
from damselfly.model.ref import Ref

ARTIFACT = Digest.of(b"x")
COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    ("text", "repository"),
    [
        ("https://host/models/meta-llama/Llama-3.1-8B/", "meta-llama/Llama-3.1-8B"),
        ("https://host/llama/", "host/llama"),
        ("https://host:8443/llama", "host/llama"),
        ("https://host/", "host/model"),
        ("file:///llama", "local/llama"),
        ("file:///models/llama/", "models/llama"),
        ("https://hub.example/org/name/resolve/main/", "org/name"),
        ("https://host/org/a%20b%2bc--d..e/", "org/a_b_c-d.e"),
        ("https://host/-org-/name.git/", "org/name"),
        ("https://host/org/..../", "org/model"),
    ],
)
def test_a_ref_has_an_organisation_and_a_name(text: str, repository: str) -> None:
    assert HubName.of(Ref.parse(text), ARTIFACT).repository == repository


def test_a_hub_ref_names_its_repository_and_revision() -> None:
    found = HubName.of(Ref("hf", "meta-llama", f"/Llama-3.1-8B@{COMMIT}"), ARTIFACT)

    assert found.folder == "models--meta-llama--Llama-3.1-8B"
    assert (found.revision, found.branches) == (COMMIT, ("main",))


def test_a_branch_stands_for_the_revision_beside_main() -> None:
    found = HubName.of(Ref.parse("https://hub.example/org/name/resolve/v1.0/"), ARTIFACT)

    assert found.branches == ("main", "v1.0")
    assert found.revision == ARTIFACT.hex[:40]


def test_without_a_revision_the_artifact_is_it() -> None:
    found = HubName.of(Ref.parse("https://host/org/name/"), ARTIFACT)

    assert (found.revision, found.branches) == (ARTIFACT.hex[:40], ("main",))


@pytest.mark.parametrize("branch", ["..", ".hidden", "a b", "a" * 101])
def test_a_branch_that_cannot_be_a_files_name_is_left_out(branch: str) -> None:
    found = HubName.of(Ref("hf", "org", f"/name@{branch}"), ARTIFACT)

    assert found.branches == ("main",)


@given(st.lists(st.text(max_size=120).filter(lambda t: "/" not in t), min_size=1, max_size=4))
def test_every_name_is_one_that_the_client_takes(names: list[str]) -> None:
    path = "/".join(name.encode(errors="replace").decode() for name in names)
    found = HubName.of(Ref("https", "host", "/" + path.replace("%", "")), ARTIFACT)

    validate_repo_id(found.repository)
    assert "/" not in found.folder
