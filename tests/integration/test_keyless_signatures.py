"""Signatures without keys, verified offline: an identity, whoever vouches for it, and the logs."""

import json
from pathlib import Path

import pytest

from damselfly.errors import SignatureError
from damselfly.origin.signature import Method, Trust, verify
from tests.integration.keyless_authority import KeylessAuthority

WHO, ISSUER = "release@our.org", "https://issuer.invalid"
FILES = {"config.json": "1" * 64, "weights.bin": "2" * 64}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> KeylessAuthority:
    return KeylessAuthority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def bundle(authority: KeylessAuthority) -> bytes:
    return authority.sign(WHO, ISSUER, "model", list(FILES.items()))


def _trust(authority: KeylessAuthority, identity: str = WHO, issuer: str = ISSUER) -> Trust:
    return Trust(Method.KEYLESS, (authority.trusted_root.read_bytes(),), identity, issuer)


def test_who_is_vouched_for_is_trusted(authority: KeylessAuthority, bundle: bytes) -> None:
    assert verify(bundle, _trust(authority), FILES) == f"{WHO} ({ISSUER})"


def test_other_files_are_not_what_was_signed(authority: KeylessAuthority, bundle: bytes) -> None:
    with pytest.raises(SignatureError, match=r"'weights\.bin' is not what was signed"):
        verify(bundle, _trust(authority), FILES | {"weights.bin": "3" * 64})


@pytest.mark.parametrize(
    ("identity", "issuer", "reason"),
    [("thief@our.org", ISSUER, "do not match thief"), (WHO, "https://other.invalid", "OIDCIssuer")],
)
def test_somebody_else_or_vouched_for_by_others_is_refused(
    authority: KeylessAuthority, bundle: bytes, identity: str, issuer: str, reason: str
) -> None:
    with pytest.raises(SignatureError, match=f"not by whom is trusted: .*{reason}"):
        verify(bundle, _trust(authority, identity, issuer), FILES)


def test_other_roots_vouch_for_nobody(bundle: bytes, tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="not by whom is trusted"):
        verify(bundle, _trust(KeylessAuthority(tmp_path)), FILES)


@pytest.mark.parametrize("part", ["inclusionPromise", "inclusionProof"])
def test_an_entry_that_the_log_does_not_bear_out_is_refused(
    authority: KeylessAuthority, bundle: bytes, part: str
) -> None:
    other = json.loads(authority.sign(WHO, ISSUER, "other", [("x", "4" * 64)]))
    forged = json.loads(bundle)
    (entry,) = forged["verificationMaterial"]["tlogEntries"]
    entry[part] = other["verificationMaterial"]["tlogEntries"][0][part]

    with pytest.raises(SignatureError, match="not by whom is trusted"):
        verify(json.dumps(forged).encode(), _trust(authority), FILES)
