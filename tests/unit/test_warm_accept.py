"""What peers may order: nothing unless it was allowed, and never what is this node's alone."""

import pytest
from hypothesis import given, strategies as st

from damselfly.agent.accept import Accept
from damselfly.agent.config import load_config
from damselfly.errors import ConfigError, UsageError, explain
from damselfly.model.prefix import PREFIXES_MAX
from damselfly.model.ref import Ref

NEEDED = {"agent.listen": "127.0.0.1:7460", "store.path": "/models"}


def accepts(setting: str, ref: str) -> bool:
    accept = load_config({**NEEDED, "warm.accept": setting}, {}, uid=0).warm.accept
    return accept.allows(Ref.parse(ref).location)


def refused(setting: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config({**NEEDED, "warm.accept": setting}, {}, uid=0)
    return explain(caught.value)


def test_nothing_is_accepted_unless_it_was_said() -> None:
    assert load_config(NEEDED, {}, uid=0).warm.accept == Accept()
    assert not accepts("none", "https://host/models/")


@pytest.mark.parametrize(
    ("prefix", "ref", "is_allowed"),
    [
        ("https://host/models/", "https://host/models/", True),
        ("https://host/models/", "https://host/models/llama/", True),
        ("https://host/models", "https://host/models/llama/", True),
        ("https://host/models", "https://host/models", True),
        ("https://host/models/", "https://host/models", True),
        ("https://host/models/", "https://host/model", False),
        ("https://host/models", "https://host/models-of-others/x/", False),
        ("https://host", "https://host/anything", True),
        ("https://host", "https://host.evil.example/anything", False),
        ("https://host", "https://host:8443/anything", False),
        ("HTTPS://Host:443/models/", "https://host/models/x", True),
        ("https://host/models/", "http://host/models/x", False),
        ("https://host/models/", "https://host/models/../secrets/", False),
        ("https://host/models/", "https://host/models/%2e%2e/secrets/", False),
        ("https://host/m%C3%BCller/", "https://host/müller/x", True),
        ("https://a/x/,https://b/y/", "https://b/y/z", True),
    ],
)
def test_a_prefix_ends_where_a_name_ends(prefix: str, ref: str, *, is_allowed: bool) -> None:
    assert accepts(prefix, ref) is is_allowed


@pytest.mark.parametrize("setting", ["all", "https://host/"])
def test_what_lies_on_the_node_or_may_be_signed_is_never_accepted(setting: str) -> None:
    assert not accepts(setting, "file:///etc/shadow")
    assert not accepts(setting, "https://host/x?signature=1")


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("some", "neither none, all nor a prefix"),
        ("all,https://host/", "neither none, all nor a prefix"),
        ("file:///models/", "own disk"),
        ("https://user:s3cret@host/", "no secret belongs there"),
        ("https://host/?s3cret", "no secret belongs there"),
        ("https://host/a/../b/", "write where it leads"),
        ("https://host/müller/", "write them as %C3%BC"),
        ("https://host/%41/", "write it as it is"),
        ("https://host/%2e%2e/", "%"),
        (",".join(f"https://host/{number}/" for number in range(PREFIXES_MAX + 1)), "more than"),
    ],
)
def test_a_prefix_that_could_never_match_is_refused(setting: str, reason: str) -> None:
    said = refused(setting)

    assert reason in said
    assert "s3cret" not in said


@pytest.mark.parametrize(
    ("setting", "ref", "is_allowed"),
    [
        ("all", "http://anywhere/x?signature=1", True),
        ("all", "file:///models/x/", True),
        ("none", "https://host/models/", False),
        ("none", "file:///models/x/", False),
        ("https://host/models/", "https://host/models/x/", True),
        ("https://host/models/", "https://host/models/x?signature=1", True),
        ("https://host/models/", "https://host/secrets/", False),
        ("https://host/models/", "http://10.0.0.1/?https://host/models/", False),
        ("https://host/models/", "file:///models/x/", True),  # The driver has said so.
    ],
)
def test_volumes_name_what_their_own_setting_allows(
    setting: str, ref: str, *, is_allowed: bool
) -> None:
    accept = load_config({**NEEDED, "volumes.accept": setting}, {}, uid=0).volumes.accept

    assert accept.allows_volume(Ref.parse(ref).location) is is_allowed


def test_volumes_may_name_everything_unless_it_was_said() -> None:
    assert load_config(NEEDED, {}, uid=0).volumes.accept == Accept(is_all=True)


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=40))
def test_a_prefix_that_is_taken_allows_the_ref_that_it_names(path: str) -> None:
    try:
        ref = Ref.parse(f"https://host/{path}")
        accept = Accept.of([ref.location])
    except (UsageError, ValueError):
        return

    assert accept.allows(ref.location)


def test_it_reads_back_what_it_shows() -> None:
    for text in ("none", "all", "https://a/x/,https://b/y/"):
        assert str(Accept.of(text.split(","))) == text


@pytest.mark.parametrize("key", ["warm.accept", "volumes.accept"])
def test_a_prefix_that_no_origin_speaks_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} has the prefix htp://x"):
        load_config({**NEEDED, key: "hf://org,htp://x"}, {}, uid=0)
    with pytest.raises(ConfigError, match="sftp://host"):
        load_config({**NEEDED, key: "sftp://host"}, {}, uid=0)

    load_config({**NEEDED, key: "sftp://host", "origin.fsspec": "sftp"}, {}, uid=0)
