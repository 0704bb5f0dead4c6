"""Refs: what people type, in one spelling, and without secrets in what we say."""

import pytest

from damselfly.errors import UsageError, explain
from damselfly.model.digest import Digest
from damselfly.model.ref import Ref

PIN = "blake3:" + "ab" * 32


@pytest.mark.parametrize(
    ("typed", "canonical"),
    [
        ("file:///models/x", "file:///models/x"),
        ("file:///models/x/", "file:///models/x/"),
        ("file:///", "file:///"),
        ("FILE://localhost/a b/ü", "file:///a%20b/%C3%BC"),
        ("file:///a//b/./c/../d", "file:///a/b/d"),
        ("file:///a/b/..", "file:///a/"),
        ("file:///../../a", "file:///a"),
        ("file:///a%20b%23", "file:///a%20b%23"),
        ("http://h", "http://h/"),
        ("HTTP://Models.Example:80/LLaMA/", "http://models.example/LLaMA/"),
        ("https://h:443/x", "https://h/x"),
        ("https://h:8443/x", "https://h:8443/x"),
        ("http://h:/x", "http://h/x"),
        ("http://[::1]:8080/x/", "http://[::1]:8080/x/"),
        ("http://h/%7Ea/%e4%BD%A0", "http://h/~a/%E4%BD%A0"),
        ("http://h/x?b=2&a=%2F", "http://h/x?b=2&a=%2F"),
        (f"http://h/x/#{PIN}", f"http://h/x/#{PIN}"),
    ],
)
def test_a_ref_has_one_spelling(typed: str, canonical: str) -> None:
    ref = Ref.parse(typed)

    assert str(ref) == canonical
    assert Ref.parse(canonical) == ref


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        ("", "one line"),
        ("/models/x", "not a ref"),
        ("models", "not a ref"),
        ("http:/h/x", "not a ref"),
        ("hf://", "hf://.*names no organisation"),
        ("s3:///x", "s3:///x.*names no bucket"),
        ("gs://buck et/x", "names no bucket"),
        ("s3://bucket/x?versionId=1", "has a query"),
        ("oci://", "names no host"),
        ("file://server/share", "three slashes"),
        ("file://", "three slashes"),
        ("file:///x?y", "three slashes"),
        ("http:///x", "no host"),
        ("http://a b/x", "no host"),
        ("http://h:0/x", "port"),
        ("http://h:65536/x", "port"),
        ("http://h:٣/x", "no host|port"),
        ("http://h/%", "%25"),
        ("http://h/a%2Fb", "slash"),
        ("http://h/a%0Ab", "control"),
        ("http://h/%ff", "UTF-8"),
        ("http://h/x#main", "pins"),
        ("http://h/x#sha256:" + "ab" * 32, "pins"),
        ("http://h/x\ny", "one line"),
        ("http://h/" + "x" * 5000, "one line"),
    ],
)
def test_what_is_no_ref_is_refused_by_name(typed: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Ref.parse(typed)


@pytest.mark.parametrize(
    "typed",
    [
        "https://user:hunter2@h/x",
        "https://hunter2@h/x",
        "hf://user:hunter2@h/x",
        "ftp://h/x?token=hunter2",
        "://u:hunter2@h/x?hunter2",
        "http://h/%?sig=hunter2",
        "http://h:99999/x?sig=hunter2",
        "http://h/x?sig=hunter2#main",
        "file:///x?hunter2",
    ],
)
def test_secrets_in_a_refused_ref_are_not_repeated(typed: str) -> None:
    with pytest.raises(UsageError) as caught:
        Ref.parse(typed)

    assert "hunter2" not in explain(caught.value)


def test_the_values_of_a_query_are_asked_with_but_not_shown() -> None:
    ref = Ref.parse(f"https://h/x/?X-Sig=hunter2&hunter2&part=#{PIN}")

    assert ref.safe == f"https://h/x/?X-Sig=...&...&part=...#{PIN}"
    assert ref.location == "https://h/x/?X-Sig=hunter2&hunter2&part="
    assert ref.file_location("a b.bin") == "https://h/x/a%20b.bin?X-Sig=hunter2&hunter2&part="


def test_a_pin_says_what_must_be_found() -> None:
    ref = Ref.parse(f"file:///x#{PIN}")

    assert ref.pin == Digest.parse(PIN)
    assert str(ref.unpinned) == "file:///x"


def test_a_local_path_is_decoded() -> None:
    assert Ref.parse("file:///a%20b/%23c/").local_path == "/a b/#c/"


def test_a_directory_ends_in_a_slash() -> None:
    file = Ref.parse("http://h/a/b.bin")

    assert not file.is_directory
    assert str(file.as_directory) == "http://h/a/b.bin/"
    assert file.as_directory.as_file == file
    assert file.name == file.as_directory.name == "b.bin"
    assert file.as_directory.file_location("ä/%") == "http://h/a/b.bin/%C3%A4/%25"


COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = COMMIT[::-1]
SHA = f"sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("ref", "place", "is_trusted", "is_led"),
    [
        ("https://h/m/", "https://h/m/", True, True),
        ("https://h/m", "https://h/m/", True, True),
        ("https://h/m", "https://h/m/sub/", True, True),
        ("https://h/m", "https://h/m2/", True, False),
        ("https://h/m/", "https://h/", True, False),
        ("https://h/m/", "https://h/m/?other", True, False),
        ("https://h/m/", "https://evil/m/", False, False),
        ("https://h/m/", "hf://h/m/", False, False),
        ("s3://b/m/", "s3://b/m/", True, True),
        ("s3://b/m/", "s3://b/secret/", True, False),
        ("s3://b/m/", "s3://evil/m/", False, False),
        ("s3://b/m/", "gs://b/m/", False, False),
        ("s3://b/m/", "https://b/m/", False, False),
        ("gs://b/m/", "gs://c/m/", False, False),
        ("az://b/m/", "az://b/m/x/", True, True),
        ("hf://o/n", f"hf://o/n@{COMMIT}/", True, True),
        ("hf://o/n@main/sub", f"hf://o/n@{COMMIT}/sub/", True, True),
        ("hf://o/n@main/sub", f"hf://o/n@{COMMIT}/", True, False),
        (f"hf://o/n@{COMMIT}", f"hf://o/n@{COMMIT}/", True, True),
        (f"hf://o/n@{COMMIT}", f"hf://o/n@{OTHER}/", True, False),
        ("hf://o/n", f"hf://o/secret@{COMMIT}/", False, False),
        ("hf://o/n", f"hf://evil/n@{COMMIT}/", False, False),
        ("hf://datasets/o/n", f"hf://datasets/o/n@{COMMIT}/", True, True),
        ("hf://datasets/o/n", f"hf://datasets/o/m@{COMMIT}/", False, False),
        ("hf://o/n", "https://huggingface.co/o/n/", False, False),
        ("oci://r:5/a/b:tag", f"oci://r:5/a/b@{SHA}", True, True),
        ("oci://r:5/a/b", f"oci://r:5/a/b@{SHA}", True, True),
        (f"oci://r/a@{SHA}", f"oci://r/a@{SHA.replace('a' * 64, 'b' * 64)}", True, False),
        ("oci://r:5/a/b:tag", f"oci://r:5/a/c@{SHA}", False, False),
        ("oci://r:5/a/b:tag", f"oci://r:6/a/b@{SHA}", False, False),
    ],
)
def test_credentials_and_proofs_of_a_ref_are_good_for_its_own_place(
    ref: str, place: str, *, is_trusted: bool, is_led: bool
) -> None:
    said, found = Ref.parse(ref), Ref.parse(place)

    assert (said.is_trusted_with(found), said.leads_to(found)) == (is_trusted, is_led)


def test_others_know_a_query_by_its_digest_alone() -> None:
    ref = Ref.parse("https://h/m/?signature=s3cret")
    named = ref.named

    assert "s3cret" not in str(named)
    assert named.query.startswith("blake3=")
    assert named.safe == str(named)
    assert Ref.parse(str(named)).named == named
    assert ref.place_of(str(named)) == ref
    assert Ref.parse("https://h/m/?signature=other").named != named
    assert Ref.parse("https://h/m/?signature=other").place_of(str(named)) == named


@pytest.mark.parametrize(
    ("typed", "is_immutable"),
    [
        (f"hf://o/n@{COMMIT}", True),
        (f"hf://o/n@{COMMIT}/sub/", True),
        ("hf://o/n@main", False),
        ("hf://o/n", False),
        (f"hf://o/n/{COMMIT}", False),
        (f"oci://r/a@{SHA}", True),
        (f"oci://r/a:tag@{SHA}", True),
        ("oci://r/a:tag", False),
        (f"https://h/m@{COMMIT}/", False),
    ],
)
def test_a_commit_and_a_digest_never_change(typed: str, *, is_immutable: bool) -> None:
    assert Ref.parse(typed).is_immutable is is_immutable


@pytest.mark.parametrize(
    "typed",
    [
        "http://h/a%2F..%2F..%2Fetc",
        "http://h/@%2F..%2F..",
        "hf://o/n@%2F..%2F..",
        "hf://o/n@..%2f..%2fsecret",
        "http://h/a%00b",
        "http://a..b/",
        "http://.a/",
        f"http://{'a' * 64}.example/",
        "http://[::1",
        "http://[1:2]/",
        "http://[fe80::1%25eth0]/",
        "http://\u212aelvin.example/",
        "http://h\u00f6st.example/",
        "http://h:99999/",
        "http://h:-1/",
        "http://h:0x50/",
        "http://h:1:2/",
        "hf://../name",
        "s3://%2e%2e/x",
        "hf://org/m@main/../x",
        "hf://org/m@main/%2e%2E/x",
        "hf://org/m@main/..",
        "oci://r/org/../other:tag",
    ],
)
def test_paths_and_hosts_that_lead_astray_are_refused(typed: str) -> None:
    with pytest.raises(UsageError):
        Ref.parse(typed)
