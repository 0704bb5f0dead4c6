"""Rules about signatures: what they bind, which of them wins, and what is no rule."""

import os
from pathlib import Path

import pytest

from damselfly.agent import signature_rules
from damselfly.agent.endpoints import endpoints
from damselfly.agent.settings import OriginSettings
from damselfly.agent.signature_rules import Require, Rules, parse_rules, read_rules, rule_for
from damselfly.errors import ConfigError, SignatureError
from damselfly.model.ref import Ref
from damselfly.model.spelling import NO_ENDPOINTS, spellings
from damselfly.origin.signature import Method

KEY = {"key": "owner.pem"}


def _rules(*rows: dict[str, object]) -> Rules:
    return Rules(parse_rules(list(rows), Path("/etc/damselfly")))


def _required(prefix: str) -> dict[str, object]:
    return {"prefix": prefix, "require": "required", **KEY}


@pytest.mark.parametrize(
    ("prefix", "ref", "is_bound"),
    [
        ("https://host/m/", "https://host/m/", True),
        ("https://host/m/", "https://host/m", True),
        ("https://host/m/", "https://HOST:443/m/llama/", True),
        ("https://host/m/", "http://host/m/llama/?sig=1", True),
        ("https://HOST:443/m/", "https://host/m/x", True),
        ("https://host/m/", "https://host/models/", False),
        ("https://host/m", "https://host/models/", True),
        ("https://host/m/", "https://host/", False),
        ("hf://Org/", "hf://org/name@main", True),
        ("hf://org/", "https://huggingface.co/org/name/resolve/main/", True),
        ("https://huggingface.co/org/", "hf://org/name", True),
        ("hf://org/name@v1", "hf://org/name@v2/sub", True),
        ("hf://org/Llama-", "hf://org/llama-3", True),
        ("hf://", "hf://anybody/x", True),
        ("hf://org/", "hf://org2/name", False),
        ("hf://our-org/", "hf://models/our-org/llama", True),
        ("hf://models/our-org/", "hf://our-org/llama", True),
        ("hf://models/", "hf://our-org/llama", True),
        ("hf://datasets/", "hf://datasets/squad", True),
        ("hf://datasets/squad/", "hf://datasets/squad@main", True),
        ("hf://o/n/sub/", "hf://o/n@refs/pr/1/sub/", True),
        ("hf://org/", "https://huggingface.co/api/models/org/name/tree/main", True),
        ("hf://org/", "hf://other/bad--name", True),
        ("hf://org/", "https://cdn-lfs.hf.co/repos/0/1", True),
        ("oci://docker.io/library/", "oci://docker.io/model", True),
        ("oci://docker.io/model/", "oci://docker.io/model:v1", True),
        ("oci://docker.io/model/", "oci://index.docker.io/library/model", True),
        ("oci://docker.io/org/", "oci://docker.io/org/model", True),
        ("oci://docker.io/org/", "oci://docker.io/library/model", False),
        ("oci://ghcr.io/org/", "https://ghcr.io/v2/org/m/blobs/sha256:" + "0" * 64, True),
        ("https://ghcr.io/v2/org/", "oci://ghcr.io/org/m", True),
        ("oci://host/team/", "oci://host/team/x:v1", True),
        ("*", "s3://bucket/x/", True),
        ("https://host/m/", "https://host/m/#blake3:" + "0" * 64, True),
    ],
)
def test_a_rule_binds_every_spelling_of_what_it_is_about(
    prefix: str, ref: str, is_bound: bool
) -> None:
    assert (_rules(_required(prefix)).rule_for(Ref.parse(ref)) is not None) == is_bound


def test_the_longest_prefix_wins() -> None:
    rules = parse_rules(
        [
            _required("*"),
            {"prefix": "hf://org/", "require": "if-present", **KEY},
            _required("hf://org/prod-"),
            {"prefix": "hf://org/prod-open", "require": "ignore"},
        ],
        Path("/"),
    )

    def require(ref: str) -> Require | None:
        found = rule_for(rules, spellings(Ref.parse(ref)))
        return None if found is None else found.require

    assert require("https://host/x") is Require.REQUIRED
    assert require("hf://org/x") is Require.IF_PRESENT
    assert require("hf://org/prod-x") is Require.REQUIRED
    assert require("hf://org/prod-open@v1/sub") is Require.IGNORE
    assert require("hf://org/prod-openly-evil") is Require.REQUIRED


def test_where_it_cannot_be_told_which_of_two_rules_counts_nothing_is_accepted() -> None:
    rules = _rules(_required("hf://ours/"), _required("hf://theirs/"))
    with pytest.raises(SignatureError, match=r"hf://ours/ is about, or that for hf://theirs/"):
        rules.rule_for(Ref.parse("https://huggingface.co/api/strange"))
    assert rules.rule_for(Ref.parse("hf://others/x")) is None


def test_nobody_is_let_off_by_another_name_of_the_same() -> None:
    free: dict[str, object] = {"prefix": "https://ghcr.io/v2/org/m/blobs/", "require": "ignore"}
    rules = _rules(_required("oci://ghcr.io/org/"), free)
    assert rules.rule_for(Ref.parse("https://ghcr.io/v2/org/m/blobs/x")) is not None


def test_a_rule_binds_what_is_asked_of_a_configured_endpoint(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    row = '[[signatures]]\nprefix = "{}"\nrequire = "required"\nkey = "k"\n'
    mirror = NO_ENDPOINTS.also("hf", "http://mirror:8080")
    file.write_text(row.format("hf://org/"))
    rules = Rules.of(file, mirror)
    assert rules.rule_for(Ref.parse("http://mirror:8080/org/m/resolve/main/")) is not None
    assert rules.rule_for(Ref.parse("http://mirror:8080/other/m/resolve/main/")) is None
    file.write_text(row.format("http://mirror:8080/other/"))
    assert rules.rule_for(Ref.parse("hf://other/m")) is not None


def test_the_endpoints_of_an_agent_are_those_that_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror:8080/hub/")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:4443")
    for variable in ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(variable, raising=False)
    known = endpoints(OriginSettings(s3_endpoint="https://minio:9000"))
    assert known.places == (
        ("hf", "mirror:8080", ("hub",)),
        ("s3", "minio:9000", ()),
        ("gs", "127.0.0.1:4443", ()),
    )


def test_a_link_to_a_directory_is_that_directory(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "models")
    rules = _rules(_required(f"file://{tmp_path}/models/"))

    assert rules.rule_for(Ref.parse(f"file://{tmp_path}/link/x")) is not None


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (1, "is no table"),
        ({}, "lacks prefix"),
        ({"prefix": "https://h/"}, "lacks require"),
        ({"prefix": "https://h/", "require": "maybe"}, "require is one of required, if-present"),
        ({"prefix": "https://h/", "require": "required"}, "whom to trust"),
        ({"prefix": "https://h/", "require": "required", "kye": "x"}, "unknown key 'kye'"),
        ({"prefix": "https://h/", "require": "required", "key": ""}, "the path of a file"),
        ({"prefix": "https://h/", "require": "required", "key": [1]}, "the path of a file"),
        ({"prefix": "https://h/", "require": "required", "key": []}, "the path of a file"),
        (
            {"prefix": "https://h/", "require": "required", **KEY, "certificate_roots": "x"},
            "names one of",
        ),
        ({"prefix": "https://h/", "require": "required", "trust_root": "x"}, "go together"),
        ({"prefix": "https://h/", "require": "required", **KEY, "identity": "x"}, "go together"),
        ({"prefix": "https://h/", "require": "ignore", **KEY}, "ignores signatures"),
        ({"prefix": "host/models", "require": "ignore"}, "is no ref"),
        ({"prefix": "https://h/?a=b", "require": "ignore"}, "neither a query nor a pin"),
    ],
)
def test_what_is_no_rule_is_refused_by_name(row: object, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_rules([row], Path("/"))


def test_two_rules_about_one_place_are_refused() -> None:
    with pytest.raises(ConfigError, match="row 2 .* is about http://HOST/m, and so is"):
        parse_rules([_required("https://host/m/"), _required("http://HOST/m")], Path("/"))


def test_paths_are_relative_to_the_configuration() -> None:
    (rule,) = parse_rules([_required("*")], Path("/etc/damselfly"))

    assert (rule.method, rule.files) == (Method.KEY, (Path("/etc/damselfly/owner.pem"),))


def test_keyless_trust_needs_all_three() -> None:
    row = {
        "prefix": "*",
        "require": "required",
        "identity": "me@example.org",
        "issuer": "https://issuer",
        "trust_root": "/root.json",
    }

    (rule,) = parse_rules([row], Path("/"))

    assert (rule.method, rule.identity, rule.issuer) == (
        Method.KEYLESS,
        "me@example.org",
        "https://issuer",
    )


@pytest.mark.parametrize("size", [0, (1 << 20) + 1])
def test_a_key_of_an_impossible_size_trusts_nobody(tmp_path: Path, size: int) -> None:
    (tmp_path / "owner.pem").write_bytes(b"x" * size)
    (rule,) = parse_rules([_required("*")], tmp_path)

    with pytest.raises(SignatureError, match="nobody to trust"):
        rule.trust()


def test_the_digest_of_trust_changes_with_whom_is_trusted(tmp_path: Path) -> None:
    (rule,) = parse_rules([_required("*")], tmp_path)
    (tmp_path / "owner.pem").write_bytes(b"one")
    one = rule.trust().digest
    (tmp_path / "owner.pem").write_bytes(b"two")

    assert rule.trust().digest != one


def test_a_file_that_changes_is_read_again_and_a_broken_one_is_told(tmp_path: Path) -> None:
    file = tmp_path / "damselfly.toml"
    ref = Ref.parse("https://host/x")
    file.write_text("")
    rules = Rules.of(file)
    assert rules.rule_for(ref) is None

    file.write_text('[[signatures]]\nprefix = "*"\nrequire = "required"\nkey = "k"\n')
    assert rules.rule_for(ref) is not None
    file.write_text("[[signatures]]\n[[")
    assert rules.rule_for(ref) is not None
    assert str(file) in rules.trouble
    os.unlink(file)
    assert rules.rule_for(ref) is not None
    assert rules.trouble
    file.write_text('[[signatures]]\nprefix = "*"\nrequire = "ignore"\n')
    assert rules.rule_for(ref) is None
    assert not rules.trouble


def test_a_directory_that_kubernetes_replaces_is_followed_with_its_keys(tmp_path: Path) -> None:
    def publish(version: str, prefix: str, key: bytes) -> None:
        (tmp_path / version).mkdir()
        rule = f'[[signatures]]\nprefix = "{prefix}"\nrequire = "required"\nkey = "owner.pub"\n'
        (tmp_path / version / "config.toml").write_text(rule)
        (tmp_path / version / "owner.pub").write_bytes(key)
        (tmp_path / "..new").symlink_to(version)
        (tmp_path / "..new").rename(tmp_path / "..data")

    publish("..1", "s3://one/", b"one")
    for name in ("config.toml", "owner.pub"):
        (tmp_path / name).symlink_to(Path("..data") / name)
    rules = Rules.of(tmp_path / "config.toml")
    one, two = Ref.parse("s3://one/x"), Ref.parse("s3://two/x")
    before = rules.rule_for(one)
    assert before is not None
    trusted = before.trust().materials
    assert rules.rule_for(two) is None

    publish("..2", "s3://two/", b"two")

    after = rules.rule_for(two)
    assert rules.rule_for(one) is None
    assert after is not None
    assert (trusted, after.trust().materials) == ((b"one",), (b"two",))


def test_a_table_that_is_broken_at_the_start_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("signatures = 1\n")

    with pytest.raises(ConfigError, match=r"write \[\[signatures\]\]"):
        read_rules(tmp_path / "c.toml")


@pytest.mark.parametrize(
    ("require", "is_there", "told"),
    [("required", False, 1), ("required", True, 0), ("ignore", False, 0)],
)
def test_rules_that_nothing_here_can_verify_are_told_at_the_start(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    require: str,
    is_there: bool,
    told: int,
) -> None:
    key = 'key = "owner.pem"' if require == "required" else ""
    (tmp_path / "config.toml").write_text(
        f'[[signatures]]\nprefix = "hf://org/"\nrequire = "{require}"\n{key}\n'
    )
    monkeypatch.setattr(signature_rules, "is_installed", lambda: is_there)

    rules = Rules.of(tmp_path / "config.toml")
    rules.all()

    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said == ["signatures.not_verifiable"] * told
