"""The agent's credentials by prefix: read from a file, again when it changes, and never told."""

import logging
import os
from pathlib import Path

import pytest

from damselfly.agent.credentials import CredentialsFile
from damselfly.agent.rights import Rights
from damselfly.errors import ConfigError, OriginDeniedError, explain
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS, OWN, Access

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TABLES = """
["https://host/m/"]
token = "s3cret-of-m"

["https://host/m/deep"]
token_file = "deep"

["hf://org/name"]
token_env = "TOKEN_OF_ORG"

["s3://bucket"]
username = "key"
password_env = "KEY_OF_BUCKET"
"""
ENVIRON = {"TOKEN_OF_ORG": "s3cret-of-org", "KEY_OF_BUCKET": "s3cret-of-bucket"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    written(tmp_path / "deep", "s3cret-of-deep\n")
    return written(tmp_path / "credentials.toml", TABLES)


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    # A new file each time, as editors and Kubernetes do: no two are taken for the same.
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.chmod(mode)
    fresh.rename(path)
    return path


def shown(file: CredentialsFile, ref: str) -> Access | None:
    entry = file.find(Ref.parse(ref))
    return None if entry is None else entry.access


@pytest.mark.parametrize(
    ("ref", "access"),
    [
        ("https://host/m/x", Access(token="s3cret-of-m")),
        ("https://host/m/deeper/x", Access(token="s3cret-of-m")),
        ("https://host/m/deep/x", Access(token="s3cret-of-deep")),
        ("https://host/n/", None),
        ("https://host.evil/m/x", None),
        ("http://host/m/x", None),
        ("hf://org/name@main", Access(token="s3cret-of-org")),
        (f"hf://org/name@{COMMIT}/", Access(token="s3cret-of-org")),
        ("hf://org/name2@main", None),
        ("s3://bucket/x/", Access(username="key", password="s3cret-of-bucket")),
    ],
)
def test_the_longest_prefix_says_what_is_shown(path: Path, ref: str, access: Access | None) -> None:
    assert shown(CredentialsFile(path, ENVIRON), ref) == access


def test_what_changes_counts_at_once(path: Path) -> None:
    file = CredentialsFile(path, ENVIRON)

    written(path.parent / "deep", "s3cret-that-is-new")
    deep = shown(file, "https://host/m/deep/")
    written(path, '["https://host/n"]\ntoken = "s3cret-of-n"')

    assert deep == Access(token="s3cret-that-is-new")
    assert shown(file, "https://host/m/deep/") is None
    assert shown(file, "https://host/n/") == Access(token="s3cret-of-n")


@pytest.mark.parametrize("trouble", ["broken", "open", "gone", "lacking"])
def test_the_last_good_file_counts_and_that_is_told_once(
    path: Path, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    file = CredentialsFile(path, ENVIRON)
    match trouble:
        case "broken":
            written(path, 'token = "s3cret')
        case "open":
            written(path, TABLES, 0o644)
        case "gone":
            path.unlink()
        case _:
            (path.parent / "deep").unlink()

    with caplog.at_level(logging.INFO):
        for _ in range(5):
            assert shown(file, "https://host/m/deep/") == Access(token="s3cret-of-deep")
        assert [record.message for record in caplog.records] == ["rights.kept"]
        assert file.trouble
        assert "s3cret" not in file.trouble

        written(path.parent / "deep", "s3cret-again")
        written(path, TABLES)
        assert shown(file, "https://host/m/deep/") == Access(token="s3cret-again")

    assert [record.message for record in caplog.records] == ["rights.kept", "rights.read"]
    assert file.trouble is None


def test_a_file_that_comes_late_is_seen(path: Path) -> None:
    file = CredentialsFile(path, ENVIRON)
    written(path, '["https://host/late"]\ntoken_file = "late"')
    assert shown(file, "https://host/late/") is None

    written(path.parent / "late", "s3cret-of-late")

    assert shown(file, "https://host/late/") == Access(token="s3cret-of-late")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[", "are not TOML (at "),
        ('"s3cret" = 1 "s3cret"', "are not TOML"),
        ('["https://u:s3cret@host/"]\ntoken = "x"', "no secret belongs there"),
        ('["https://host/?s3cret=1"]\ntoken = "x"', "no secret belongs there"),
        ('["s3cret"]\ntoken = "x"', "the prefix is neither"),
        ('["https://host/s3cret/../x"]\ntoken = "x"', "the prefix has a . or .."),
        ('["https://host"]\n["https://HOST:443"]\n', "nothing to show"),
        (
            '["https://host"]\ntoken="s3cret"\n["https://HOST:443"]\ntoken="s3cret"',
            "the same prefix",
        ),
        ('["https://host"]\ntokne = "s3cret"', "a key that means nothing"),
        ('["https://host"]\ntoken = ["s3cret"]', "token is no text"),
        ('["https://host"]\ntoken = "s3cret"\ntoken_env = "TOKEN_OF_ORG"', "one says it"),
        ('["https://host"]\ntoken_env = "s3cret"', "is not set"),
        ('["https://host"]\ntoken_file = "s3cret"', "No such file"),
        ('["https://host"]\ntoken = "s3cret with spaces"', "has spaces"),
        ('["https://host"]\npassword = "s3cret"', "no user name"),
        ('"https://host" = "s3cret"', "is a value, and no table"),
        ('["htp://x"]\ntoken = "s3cret"', "no origin speaks htp://"),
    ],
)
def test_what_cannot_be_used_is_refused_and_not_repeated(
    tmp_path: Path, text: str, reason: str
) -> None:
    path = written(tmp_path / "credentials", text)

    with pytest.raises(ConfigError) as caught:
        CredentialsFile(path, ENVIRON)

    said = explain(caught.value)
    assert reason in said
    assert "s3cret" not in said


def test_a_prefix_of_a_filesystem_that_is_configured_is_taken(tmp_path: Path) -> None:
    path = written(tmp_path / "credentials", '["sftp://host/m"]\ntoken = "t"')

    assert CredentialsFile(path, ENVIRON, schemes=("sftp",)).prefixes == ("sftp://host/m",)
    with pytest.raises(ConfigError, match="table 1"):
        CredentialsFile(path, ENVIRON)


@pytest.mark.parametrize(
    ("mode", "is_ours", "is_taken"),
    [
        (0o600, True, True),
        (0o400, True, True),
        (0o640, True, False),
        (0o604, True, False),
        (0o644, False, True),
        (0o646, False, False),
    ],
)
def test_a_file_that_others_may_read_is_refused_as_ssh_does(
    path: Path, mode: int, *, is_ours: bool, is_taken: bool
) -> None:
    path.chmod(mode)
    (path.parent / "deep").chmod(0o600 if is_ours else 0o644)
    uid = os.geteuid() if is_ours else os.geteuid() + 1

    if is_taken:
        CredentialsFile(path, ENVIRON, uid=uid)
    else:
        with pytest.raises(ConfigError, match="others may read it"):
            CredentialsFile(path, ENVIRON, uid=uid)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "credentials", 0o600)

    with pytest.raises(ConfigError, match="is no file"):
        CredentialsFile(tmp_path / "credentials", {})


# --- rights -----------------------------------------------------------------------------------

POD = Access(token="s3cret-of-a-pod")


@pytest.mark.parametrize("access", [ANONYMOUS, POD])
async def test_who_asks_with_their_own_is_shown_as_they_are(path: Path, access: Access) -> None:
    rights = Rights(CredentialsFile(path, ENVIRON))

    assert await rights.shown(Ref.parse("https://host/m/x"), access) == access


async def test_the_agent_shows_what_its_file_says_and_else_its_environment(path: Path) -> None:
    rights = Rights(CredentialsFile(path, ENVIRON))

    assert await rights.shown(Ref.parse("https://host/m/x"), OWN) == Access(token="s3cret-of-m")
    assert await rights.shown(Ref.parse("https://other/"), OWN) == OWN
    assert await Rights().shown(Ref.parse("hf://org/name"), OWN) == OWN


@pytest.mark.parametrize(
    ("ref", "place"),
    [
        ("https://host/m/x/", "https://evil/m/x/"),
        ("https://host/m/x/", "https://host/other/"),
        ("hf://org/name", f"hf://org/other@{COMMIT}/"),
        ("s3://bucket/x", "s3://other/x"),
    ],
)
async def test_a_plan_that_leads_elsewhere_is_not_read_with_credentials(
    path: Path, ref: str, place: str
) -> None:
    rights = Rights(CredentialsFile(path, ENVIRON))

    with pytest.raises(OriginDeniedError, match="is shown nothing"):
        await rights.shown(Ref.parse(ref), OWN, Ref.parse(place))


async def test_elsewhere_nobody_is_shown_more_than_nothing(path: Path) -> None:
    rights = Rights(CredentialsFile(path, ENVIRON))
    ref, place = Ref.parse("https://public/"), Ref.parse("https://elsewhere/")

    assert await rights.shown(ref, ANONYMOUS, place) == ANONYMOUS
    assert await rights.shown(ref, OWN, place) == ANONYMOUS
    with pytest.raises(OriginDeniedError):
        await rights.shown(ref, POD, place)
