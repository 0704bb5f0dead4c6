"""Prefixes of refs: names count whole, and a repository is one name whatever its revision."""

import pytest

from damselfly.model.prefix import checked, is_below, longest_of
from damselfly.model.ref import Ref

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("prefix", "ref", "is_found"),
    [
        ("hf://org/name", "hf://org/name", True),
        ("hf://org/name", "hf://org/name@main", True),
        ("hf://org/name", f"hf://org/name@{COMMIT}/sub/", True),
        ("hf://org/name", "hf://org/name-of-others@main", False),
        ("hf://org/name@main", "hf://org/name@main/sub", True),
        ("hf://org/name@main", "hf://org/name@mainline", False),
        ("hf://org", "hf://org/name@main", True),
        ("hf://org", "hf://organisation/name", False),
        ("hf://Org", "hf://org/name", False),
        ("oci://Host:5000/repo", "oci://host:5000/repo:tag", True),
        ("oci://host/repo", f"oci://host/repo@sha256:{'a' * 64}", True),
        ("oci://host", "oci://host:5000/repo", False),
        ("https://host/m", "https://host/m@2/", False),
        ("https://host/m", "https://host/m?signature=1", True),
        ("s3://bucket/models", "s3://bucket/models/llama/", True),
        ("s3://bucket/models", "s3://bucket/models2/", False),
    ],
)
def test_a_prefix_ends_where_a_name_ends(prefix: str, ref: str, *, is_found: bool) -> None:
    assert is_below(Ref.parse(ref).location, checked(prefix)) is is_found


def test_the_prefix_that_says_most_is_found() -> None:
    prefixes = [checked(word) for word in ("https://h", "https://h/a/b", "https://h/a/")]

    assert longest_of("https://h/a/b/c", prefixes) == "https://h/a/b"
    assert longest_of("https://h/a/bc", prefixes) == "https://h/a/"
    assert longest_of("https://other/a/b", prefixes) is None
