"""What `oci://` refs name, what registries want to be shown, and what `docker login` left."""

import base64
import json
from pathlib import Path

import pytest

from damselfly.errors import ConfigError, OriginBusyError, OriginUnavailableError, UsageError
from damselfly.model.oci_name import OCIName
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS, Access
from damselfly.origin.challenge import Challenge, parse_challenges
from damselfly.origin.docker_config import config_path, registry_access
from damselfly.origin.oci_artifact import media_type_of
from damselfly.origin.oci_client import is_of
from damselfly.origin.patience import TRIES_MAX, Patience

DIGEST = "sha256:" + "a" * 64


def name(text: str) -> OCIName:
    return OCIName.of(Ref.parse(text))


@pytest.mark.parametrize(
    ("text", "repository", "reference"),
    [
        ("oci://ghcr.io/org/model", "org/model", "latest"),
        ("oci://ghcr.io/org/model/", "org/model", "latest"),
        ("oci://ghcr.io/org/model:v1.2", "org/model", "v1.2"),
        (f"oci://ghcr.io/org/model@{DIGEST}", "org/model", DIGEST),
        (f"oci://ghcr.io/org/model:v1@{DIGEST}", "org/model", DIGEST),
        ("oci://127.0.0.1:5000/m:v1", "m", "v1"),
        ("oci://docker.io/model:v1", "library/model", "v1"),
        ("oci://docker.io/org/model", "org/model", "latest"),
        ("oci://ghcr.io/a_b/c__d/e--f/g.h:T", "a_b/c__d/e--f/g.h", "T"),
    ],
)
def test_a_ref_names_a_repository_and_what_of_it(
    text: str, repository: str, reference: str
) -> None:
    assert (name(text).repository, name(text).reference) == (repository, reference)


@pytest.mark.parametrize(
    "text",
    [
        "oci://ghcr.io/",
        "oci://ghcr.io/Org/model",
        "oci://ghcr.io/org/model:",
        "oci://ghcr.io/org/model:a:b",
        "oci://ghcr.io/org/-model",
        "oci://ghcr.io/org/mo%20del",
        "oci://ghcr.io/org/model@sha256:ab",
        "oci://ghcr.io/org/model@md5:" + "a" * 64,
        f"oci://ghcr.io/org/model@{DIGEST}/sub",
        "oci://ghcr.io/" + "a" * 256,
    ],
)
def test_a_ref_that_names_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="ghcr"):
        name(text)


def test_a_pinned_name_is_a_ref_of_the_same_registry_as_it_was_typed() -> None:
    pinned = name("oci://docker.io/model:v1").at(DIGEST).pinned

    assert pinned == f"oci://docker.io/model@{DIGEST}"
    assert str(Ref.parse(pinned)) == pinned
    assert name(pinned) == name("oci://docker.io/model").at(DIGEST)
    assert name(pinned).repository == "library/model"
    assert Ref.parse("oci://docker.io/model:v1").is_trusted_with(Ref.parse(pinned))


@pytest.mark.parametrize(
    ("registry", "address"),
    [
        ("ghcr.io", "https://ghcr.io"),
        ("docker.io", "https://registry-1.docker.io"),
        ("listed.test:5000", "http://listed.test:5000"),
        ("listed.test", "https://listed.test"),
        ("localhost:5000", "http://localhost:5000"),
        ("127.0.0.1", "http://127.0.0.1"),
        ("127.1.2.3:80", "http://127.1.2.3:80"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("localhost.test", "https://localhost.test"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000"),
    ],
)
def test_only_loopback_and_what_is_listed_is_asked_in_plain_http(
    registry: str, address: str
) -> None:
    assert name(f"oci://{registry}/org/model").address({"listed.test:5000"}) == address


@pytest.mark.parametrize(
    ("url", "is_there"),
    [
        ("https://h/v2/", True),
        ("https://h:443/v2/", True),
        ("https://H/v2/", True),
        ("http://h/v2/", False),
        ("https://h:444/v2/", False),
        ("https://h.evil.test/v2/", False),
        ("https://evil.test/https://h/", False),
    ],
)
def test_a_token_is_for_the_very_host_of_its_registry(url: str, is_there: bool) -> None:
    assert is_of(url, "https://h") is is_there


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        (
            'Bearer realm="https://auth.test/token",service="x",scope="repository:a/b:pull,push"',
            [Challenge("bearer", "https://auth.test/token", "x", "repository:a/b:pull,push")],
        ),
        ('Basic realm="x y"', [Challenge("basic", "x y")]),
        (
            'Negotiate, bearer REALM="https://a" , Service = b, Basic',
            [
                Challenge("negotiate"),
                Challenge("bearer", "https://a", "b"),
                Challenge("basic"),
            ],
        ),
        (r'Basic realm="a\"b"', [Challenge("basic", 'a"b')]),
        ('realm="of nobody"', []),
        ('Bearer realm="never ends', [Challenge("bearer")]),
        ("", []),
        ("\x00", []),
        ("Bearer " + "a=b," * 100_000, []),
    ],
)
def test_what_a_registry_wants_is_read(header: str, challenges: list[Challenge]) -> None:
    assert parse_challenges(header) == challenges


# --- docker's own file ------------------------------------------------------------------------


def found(folder: Path, config: object, registry: str, repository: str = "org/model") -> Access:
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)
    return registry_access(registry, repository, {"DOCKER_CONFIG": str(folder)})


def auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def test_the_longest_key_that_is_of_the_repository_counts(tmp_path: Path) -> None:
    config = {
        "auths": {
            "ghcr.io": auth("host:1"),
            "https://ghcr.io/org/": auth("org:2"),
            "ghcr.io/org/model-b": auth("other:3"),
            "https://index.docker.io/v1/": auth("docker:4"),
        }
    }

    assert found(tmp_path, config, "ghcr.io").username == "org"
    assert found(tmp_path, config, "ghcr.io", "else/model").username == "host"
    assert found(tmp_path, config, "docker.io", "library/model").username == "docker"
    assert found(tmp_path, config, "ghcr.io.evil.test") == ANONYMOUS


def test_names_passwords_and_tokens_are_read(tmp_path: Path) -> None:
    plain = {"auths": {"h": {"username": "u", "password": "p:q"}}}
    token = {"auths": {"h": {"registrytoken": "t"}}}

    assert found(tmp_path, plain, "h") == Access.of(username="u", password="p:q")
    assert found(tmp_path, token, "h") == Access.of(token="t")
    assert found(tmp_path, {"auths": {"h": auth("u:p:q")}}, "h").password == "p:q"


def test_a_helper_is_not_run_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config: dict[str, object] = {"auths": {"h": {}}, "credsStore": "desktop"}

    assert found(tmp_path, config, "h") == ANONYMOUS
    assert [record.message for record in caplog.records] == ["registry.helper_not_run"]


def test_no_file_is_no_credentials(tmp_path: Path) -> None:
    assert registry_access("h", "m", {"DOCKER_CONFIG": str(tmp_path)}) == ANONYMOUS


@pytest.mark.parametrize(
    "config",
    [
        "no JSON",
        "[]",
        {"auths": []},
        {"auths": {"h": "SECRET"}},
        {"auths": {"h": {"auth": "SECRET"}}},
        {"auths": {"h": {"auth": "U0VDUkVU"}}},
        {"auths": {"h": {"identitytoken": "SECRET"}}},
        {"auths": {"h": {"auth": 1}}},
    ],
)
def test_a_file_that_makes_no_sense_is_named_and_not_told(tmp_path: Path, config: object) -> None:
    with pytest.raises(ConfigError, match=r"config\.json") as caught:
        found(tmp_path, config, "h")

    assert "SECRET" not in f"{caught.value} {caught.value.__cause__}"


def test_the_variables_name_the_file_in_their_order() -> None:
    both = {"REGISTRY_AUTH_FILE": "/a/auth.json", "DOCKER_CONFIG": "/b"}

    assert config_path(both) == Path("/a/auth.json")
    assert config_path({"DOCKER_CONFIG": "/b"}) == Path("/b/config.json")
    assert config_path({}) == Path.home() / ".docker/config.json"


# --- what a push says, and how long it waits ------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("model-00001-of-00002.safetensors", "weight.v1.raw"),
        ("model.gguf", "weight.v1.raw"),
        ("whatever", "weight.v1.raw"),
        ("sub/config.json", "weight.config.v1.raw"),
        ("tokenizer.model", "weight.config.v1.raw"),
        (".gitattributes", "weight.config.v1.raw"),
        ("README.md", "doc.v1.raw"),
        ("sub/LICENSE", "doc.v1.raw"),
        ("model.sig", "doc.v1.raw"),
        ("modeling.py", "code.v1.raw"),
        ("train.parquet", "dataset.v1.raw"),
    ],
)
def test_the_media_type_of_a_file_follows_from_its_name(path: str, kind: str) -> None:
    assert media_type_of(path) == f"application/vnd.cncf.model.{kind}"


async def test_patience_doubles_its_waits_and_starts_over_after_progress() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    patience, error = Patience(sleep), OriginUnavailableError("it fails")
    for _ in range(TRIES_MAX):
        await patience.wait(error)
    with pytest.raises(OriginUnavailableError):
        await patience.wait(error)
    patience.progressed()
    await patience.wait(error)

    assert len(waits) == TRIES_MAX + 1
    assert waits[-1] <= 1 < waits[4] <= 30


async def test_who_says_when_to_come_back_is_waited_for_but_not_for_ever() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    patience, error = Patience(sleep), OriginBusyError("it rests", 60.0)
    for _ in range(TRIES_MAX + 1):
        await patience.wait(error)
    with pytest.raises(OriginBusyError):
        await patience.wait(OriginBusyError("it rests", 600.0))

    assert all(60 <= seconds < 61 for seconds in waits)
