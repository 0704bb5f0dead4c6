"""What the hub's client would call a ref."""

from urllib.parse import quote

import pytest
from huggingface_hub.utils._validators import validate_repo_id
from hypothesis import given, strategies as st

from damselfly.errors import UsageError
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


@pytest.mark.parametrize(
    ("text", "folder", "inside"),
    [
        ("hf://org/name", "models--org--name", ""),
        ("hf://models/org/name@v1", "models--org--name", ""),
        ("hf://gpt2", "models--gpt2", ""),
        ("hf://models/gpt2@v1/onnx/", "models--gpt2", "onnx"),
        ("hf://datasets/org/name/data/en/", "datasets--org--name", "data/en"),
        ("hf://datasets/squad", "datasets--squad", ""),
        ("hf://spaces/org/name@refs/pr/7/src", "spaces--org--name", "src"),
        (f"hf://org/{'n' * 90}", f"models--org--{'n' * 90}", ""),
    ],
)
def test_a_hub_ref_is_called_what_it_says(text: str, folder: str, inside: str) -> None:
    found = HubName.of(Ref.parse(text), ARTIFACT)

    assert (found.folder, found.inside) == (folder, inside)
    validate_repo_id(found.repository)


def test_the_commit_is_the_one_that_the_ref_was_found_at() -> None:
    found = HubName.of(Ref.parse("hf://org/name@v1"), ARTIFACT, f"hf://org/name@{COMMIT}/")

    assert (found.revision, found.branches) == (COMMIT, ("main", "v1"))


@pytest.mark.parametrize(
    "place",
    [
        f"hf://org/other@{COMMIT}/",
        f"hf://datasets/org/name@{COMMIT}/",
        f"https://org/name/resolve/{COMMIT}/",
        "hf://org/name@main/",
        "hf://org/name@../",
        "no ref",
    ],
)
def test_who_says_where_it_was_found_cannot_name_another_place(place: str) -> None:
    found = HubName.of(Ref.parse("hf://org/name"), ARTIFACT, place)

    assert (found.folder, found.revision) == ("models--org--name", ARTIFACT.hex[:40])


@pytest.mark.parametrize(("end", "inside"), [("", "a"), ("/", "a/b")])
def test_a_single_file_lies_where_its_repository_has_it(end: str, inside: str) -> None:
    found = HubName.of(Ref.parse("hf://org/name/a/b"), ARTIFACT, f"hf://org/name@{COMMIT}/a/b{end}")

    assert found.inside == inside


@pytest.mark.parametrize(
    "ref",
    [
        Ref("hf", "org", "/name@%2F..%2F.."),
        Ref("hf", "org", "/name@.."),
        Ref("hf", "org", "/name@refs/pr/.."),
        Ref("hf", "org", "/name@refs/convert/../x"),
        Ref("hf", "org", "/..%2F..%2Fname"),
        Ref("hf", "..", "/name"),
        Ref("hf", ".", "/name"),
        Ref("hf", "a--b", "/name"),
        Ref("hf", "org", "/na..me"),
        Ref("hf", "org", "/name.git"),
        Ref("hf", "org", "/name/a/../../b"),
        Ref("hf", "org", "/name/a%00b"),
        Ref("hf", "org", f"/{'n' * 93}"),
        Ref("hf", "org", f"/name@{'r' * 201}"),
        Ref("hf", "org", f"/name/{'d/' * 40}"),
        Ref("hf", "org", "/name@"),
        Ref("hf", "models", "/"),
        Ref("hf", "buckets", "/org/name"),
    ],
)
def test_a_hub_ref_that_could_lead_elsewhere_is_refused(ref: Ref) -> None:
    with pytest.raises(UsageError):
        HubName.of(ref, ARTIFACT)


@given(
    st.lists(st.text("aA0_.-@%2F/~ \x00é", max_size=12), min_size=1, max_size=5),
    st.sampled_from(["org", "datasets", "models", "..", "a.b"]),
)
def test_no_hub_ref_leads_out_of_the_folder_of_its_repository(
    names: list[str], netloc: str
) -> None:
    try:
        ref = Ref("hf", netloc, "/" + quote("/".join(names)))
        found = HubName.of(ref, ARTIFACT, str(ref))
    except UsageError:
        return

    for name in [found.folder, found.revision, *found.branches, *found.inside.split("/")]:
        assert "/" not in name
        assert "\x00" not in name
        assert name not in {".", ".."}


def test_a_branch_stands_for_the_revision_beside_main() -> None:
    found = HubName.of(Ref.parse("https://hub.example/org/name/resolve/v1.0/"), ARTIFACT)

    assert found.branches == ("main", "v1.0")
    assert found.revision == ARTIFACT.hex[:40]


def test_without_a_revision_the_artifact_is_it() -> None:
    found = HubName.of(Ref.parse("https://host/org/name/"), ARTIFACT)

    assert (found.revision, found.branches) == (ARTIFACT.hex[:40], ("main",))


@pytest.mark.parametrize("branch", ["..", ".hidden", "a b", "a" * 101])
def test_a_branch_that_cannot_be_a_files_name_is_left_out(branch: str) -> None:
    found = HubName.of(Ref("https", "host", f"/org/name@{branch}"), ARTIFACT)

    assert found.branches == ("main",)


@given(st.lists(st.text(max_size=120).filter(lambda t: "/" not in t), min_size=1, max_size=4))
def test_every_name_is_one_that_the_client_takes(names: list[str]) -> None:
    path = "/".join(name.encode(errors="replace").decode() for name in names)
    found = HubName.of(Ref("https", "host", "/" + path.replace("%", "")), ARTIFACT)

    validate_repo_id(found.repository)
    assert "/" not in found.folder
