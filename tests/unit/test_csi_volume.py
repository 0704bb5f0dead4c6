"""What a volume is asked to show: every attribute checked, whoever wrote it."""

import pytest

from damselfly.csi.volume import (
    KEYS,
    SECRET_CHARS_MAX,
    Source,
    check_volume_id,
    file_name,
    is_inline,
    is_lease_of,
    lease_id,
    lease_prefix,
    parse_credentials,
    parse_source,
)
from damselfly.errors import UsageError, explain
from damselfly.model.lease import check_lease_id

REF = "https://models.test/llama/"


def refused(attributes: dict[str, str], *, allows_files: bool = False) -> str:
    with pytest.raises(UsageError) as caught:
        parse_source(attributes, allows_files=allows_files)
    return explain(caught.value)


def test_a_model_alone_is_all_of_it_plain() -> None:
    assert parse_source({"model": REF}, allows_files=False) == Source(ref=REF)


def test_lists_are_separated_by_commas_with_space_around() -> None:
    source = parse_source(
        {"model": f" {REF} ", "include": " *.json ,*.safetensors,, ", "exclude": "sub/"},
        allows_files=False,
    )

    assert source == Source(ref=REF, include=("*.json", "*.safetensors"), exclude=("sub/",))


def test_what_kubernetes_adds_is_passed_over() -> None:
    attributes = {
        "model": REF,
        "csi.storage.k8s.io/pod.name": "p",
        "storage.kubernetes.io/csiProvisionerIdentity": "x",
    }

    assert parse_source(attributes, allows_files=False).ref == REF


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({}, "'model' is missing"),
        ({"model": "   "}, "'model' is missing"),
        ({"model": REF, "Model": REF}, "did you mean 'model'?"),
        ({"model": REF, "includes": "*"}, "did you mean 'include'?"),
        ({"model": REF, "qqq": ""}, "known are " + ", ".join(KEYS)),
        ({"model": REF, "mode": "lazy"}, "mode 'lazy' is not built yet"),
        ({"model": REF, "layout": "zip"}, "plain or hf-cache"),
        ({"model": "s3:///x/"}, "'model'"),
        ({"model": "https://user:pass@host/"}, "no place for secrets"),
        ({"model": "https://h/" + "x" * 3000}, "longer than 2048"),
        ({"model": REF, "include": "../*"}, "patterns match paths inside the model"),
        ({"model": REF, "exclude": "/etc/*"}, "patterns match paths inside the model"),
        ({"model": REF, "include": "a\nb"}, "no path can match"),
        ({"model": REF, "include": ",".join("x" * 65)}, "more than 64"),
    ],
)
def test_what_cannot_be_is_refused_by_name(attributes: dict[str, str], told: str) -> None:
    assert told in refused(attributes)


def test_directories_of_the_node_need_the_administrators_word() -> None:
    attributes = {"model": "file:///etc/"}

    assert "--allow-file-refs" in refused(attributes)
    assert parse_source(attributes, allows_files=True).ref == "file:///etc/"


def test_every_layout_that_is_built_is_taken() -> None:
    for layout in ("plain", "hf-cache"):
        source = parse_source({"model": REF, "layout": layout, "mode": "eager"}, allows_files=False)

        assert source.layout == layout


@pytest.mark.parametrize(
    ("volume_id", "told", "inline"),
    [
        ("csi-" + "0" * 64, "true", True),
        ("csi-" + "0" * 64, "false", True),  # forged: the id is the kubelet's
        ("csi-" + "0" * 64, None, True),
        ("a-handle", "false", False),
        ("a-handle", "true", True),
        ("a-handle", None, True),  # nobody says: take the careful answer
    ],
)
def test_who_cannot_show_that_it_is_the_administrators_is_a_pods_own(
    volume_id: str, told: str | None, inline: bool
) -> None:
    context = {} if told is None else {"csi.storage.k8s.io/ephemeral": told}

    assert is_inline(volume_id, context) == inline


def test_secrets_become_credentials() -> None:
    token = parse_credentials({"token": "abc\n", "HF_TOKEN": "other", "unrelated": "x"})
    hub = parse_credentials({"HF_TOKEN": "def"})
    person = parse_credentials({"username": "u", "password": " p "})

    assert token is not None
    assert hub is not None
    assert person is not None
    assert (token.token, hub.token) == ("abc", "def")
    assert (person.username, person.password) == ("u", "p")
    assert "abc" not in repr(token)


def test_without_a_secret_there_are_no_credentials() -> None:
    assert parse_credentials({}) is None


@pytest.mark.parametrize("secrets", [{"hf_token": "hidden"}, {"token": " \n"}, {"x": "hidden"}])
def test_a_secret_that_holds_nothing_of_ours_is_refused_with_the_keys_that_are(
    secrets: dict[str, str],
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_credentials(secrets)

    told = explain(caught.value)
    assert all(key in told for key in ("'token'", "'HF_TOKEN'", "'username'", "'password'"))
    assert "hidden" not in told


@pytest.mark.parametrize(
    "secrets",
    [
        {"token": "hid\x00den"},
        {"token": "hidden" * SECRET_CHARS_MAX},
        {"password": "hidden"},
        {"username": "u\nhidden"},
    ],
)
def test_an_unusable_secret_is_refused_and_not_repeated(secrets: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_credentials(secrets)

    assert "hid" not in explain(caught.value)


@pytest.mark.parametrize("volume_id", ["", "x" * 600, "a\nb", "a\x1b[2J"])
def test_an_id_that_cannot_be_is_refused(volume_id: str) -> None:
    with pytest.raises(UsageError):
        check_volume_id(volume_id)


def test_a_lease_is_called_the_same_at_every_try_and_for_each_target() -> None:
    one = lease_id("csi.damselfly.dev", "v", "/t/1")

    assert one == lease_id("csi.damselfly.dev", "v", "/t/1")
    assert one != lease_id("csi.damselfly.dev", "v", "/t/2")
    assert one != lease_id("csi.damselfly.dev", "v/t", "/1")
    assert one.startswith(lease_prefix("csi.damselfly.dev"))
    assert check_lease_id(one) == one
    assert check_lease_id(lease_id("x" * 63, "../" * 200, "\n"))


@pytest.mark.parametrize("other", ["csi.damselfly.dev.two", "csi.damselfly.dev-x", "x"])
def test_one_drivers_leases_are_not_taken_for_anothers(other: str) -> None:
    name = "csi.damselfly.dev"

    assert is_lease_of(name, lease_id(name, "v", "t"))
    assert not is_lease_of(name, lease_id(other, "v", "t"))
    assert not is_lease_of(name, f"{name}-mine")


def test_names_that_are_plain_stay_and_others_become_digests() -> None:
    plain = "pvc-4f0c7a8e-1c1d-4c8e-9a53-2f1b"

    assert file_name(plain) == plain
    for name in ("", "..", ".x", "a/b", "n" * 128, "sha256-" + "0" * 40):
        made = file_name(name)
        assert made.startswith("sha256-")
        assert "/" not in made
        assert made == file_name(name) != name
