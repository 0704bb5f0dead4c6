"""Digests."""

import pytest
from blake3 import blake3

from damselfly.errors import DigestMismatchError, UsageError
from damselfly.model.digest import Digest


def test_a_digest_is_read_as_it_is_written() -> None:
    digest = Digest.of(b"damselfly")

    assert str(digest) == f"blake3:{blake3(b'damselfly').hexdigest()}"
    assert Digest.parse(str(digest)) == digest
    assert repr(digest) == f"<blake3:{digest.hex[:12]}>"


def test_any_buffer_is_hashed_alike() -> None:
    data = bytes(range(256))

    assert Digest.of(data) == Digest.of(bytearray(data)) == Digest.of(memoryview(data))


def test_the_right_bytes_verify_and_others_raise_with_both_digests_and_the_source() -> None:
    digest = Digest.of(b"good")

    digest.verify(b"good", "node-7")
    with pytest.raises(DigestMismatchError) as caught:
        digest.verify(b"evil", "node-7")

    assert caught.value.expected == str(digest)
    assert caught.value.actual == str(Digest.of(b"evil"))
    assert caught.value.source == "node-7"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "blake3",
        "blake3:",
        "ab" * 32,
        "blake3:" + "ab" * 31,
        "blake3:" + "ab" * 33,
        "blake3:" + "AB" * 32,
        "blake3:" + "zz" * 32,
        "sha256:" + "ab" * 32,
        " blake3:" + "ab" * 32,
        "blake3:" + "ab" * 32 + "\n",
        "blake3:" + "٣" * 64,
    ],
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a digest"):
        Digest.parse(text)


def test_digests_sort_and_serve_as_keys() -> None:
    digests = [Digest.of(bytes([i])) for i in range(10)]

    assert sorted(digests) == sorted(digests, key=str)
    assert len({*digests, *digests}) == 10
