"""A Sigstore of the tests: an authority for identities, and two logs; for signing without keys.

It makes what the public one makes, in its formats: a certificate for an identity that a log has
promised to list (RFC 6962), and an entry of a log with one leaf. The package's own verifier is what
judges it, offline, by the trusted root that is written here.
"""

import base64
import datetime
import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from damselfly.origin.signature import signer
from tests.integration.signing_keys import private_key

_ISSUER = ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_TIMESTAMPS = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_PAYLOAD_TYPE = "application/vnd.in-toto+json"


class KeylessAuthority:
    """Signs for whoever says who they are; `trusted_root` is what its verifiers are given."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        self._key = _new_key()
        self._logged = _new_key()
        self._listed = _new_key()
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "tests"),
                x509.NameAttribute(NameOID.COMMON_NAME, "identities"),
            ]
        )
        self._certificate = (
            self._builder(name, name, self._key.public_key(), days=30)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(is_authority=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def trusted_root(self) -> Path:
        """The file that says whom to trust."""
        valid = {"start": (self._now - datetime.timedelta(days=1)).isoformat()}
        root = {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [_log("https://log.invalid", self._logged, valid)],
            "certificateAuthorities": [
                {
                    "subject": {"organization": "tests", "commonName": "identities"},
                    "uri": "https://identities.invalid",
                    "certChain": {"certificates": [{"rawBytes": _base64(_der(self._certificate))}]},
                    "validFor": valid,
                }
            ],
            "ctlogs": [_log("https://list.invalid", self._listed, valid)],
            "timestampAuthorities": [],
        }
        path = self._folder / "trusted_root.json"
        path.write_text(json.dumps(root))
        return path

    def sign(
        self, identity: str, issuer: str, name: str, files: Sequence[tuple[str, str]]
    ) -> bytes:
        """A signature by somebody whom an issuer vouches for, over files and their SHA-256."""
        throwaway = signer(private_key(self._folder / "throwaway.pem"), None)(name, files, None)
        payload = base64.b64decode(json.loads(throwaway)["dsseEnvelope"]["payload"])
        key = _new_key()
        certificate = self._vouched(key.public_key(), identity, issuer)
        signed = f"DSSEv1 {len(_PAYLOAD_TYPE)} {_PAYLOAD_TYPE} {len(payload)} ".encode() + payload
        signature = _base64(key.sign(signed, ec.ECDSA(hashes.SHA256())))
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        body = {
            "apiVersion": "0.0.1",
            "kind": "dsse",
            "spec": {
                "envelopeHash": {"algorithm": "sha256", "value": "0" * 64},
                "payloadHash": {
                    "algorithm": "sha256",
                    "value": hashlib.sha256(payload).hexdigest(),
                },
                "signatures": [{"signature": signature, "verifier": _base64(pem)}],
            },
        }
        bundle = {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "certificate": {"rawBytes": _base64(_der(certificate))},
                "tlogEntries": [self._entry(json.dumps(body).encode())],
            },
            "dsseEnvelope": {
                "payload": _base64(payload),
                "payloadType": _PAYLOAD_TYPE,
                "signatures": [{"sig": signature}],
            },
        }
        return json.dumps(bundle).encode()

    def _vouched(
        self, key: ec.EllipticCurvePublicKey, identity: str, issuer: str
    ) -> x509.Certificate:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])
        names = x509.SubjectAlternativeName([x509.RFC822Name(identity)])
        ours = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            self._builder(x509.Name([]), self._certificate.subject, key, days=1)
            .add_extension(_usage(is_authority=False), critical=True)
            .add_extension(usage, critical=False)
            .add_extension(ours, critical=False)
            .add_extension(names, critical=True)
            .add_extension(x509.UnrecognizedExtension(_ISSUER, issuer.encode()), critical=False)
        )
        listed = self._timestamp(builder.sign(self._key, hashes.SHA256()).tbs_certificate_bytes)
        return builder.add_extension(
            x509.UnrecognizedExtension(_TIMESTAMPS, listed), critical=False
        ).sign(self._key, hashes.SHA256())

    def _timestamp(self, certificate: bytes) -> bytes:
        """The list's promise to show a certificate, as the certificate carries it."""
        time_ms = int(self._now.timestamp() * 1000)
        issuer_id = _key_id(self._key.public_key())
        entry = issuer_id + len(certificate).to_bytes(3, "big") + certificate
        signed = struct.pack("!BBQH", 0, 0, time_ms, 1) + entry + struct.pack("!H", 0)
        signature = self._listed.sign(signed, ec.ECDSA(hashes.SHA256()))
        one = (
            b"\0"
            + _key_id(self._listed.public_key())
            + struct.pack("!QH", time_ms, 0)
            + b"\4\3"  # SHA-256, ECDSA
            + struct.pack("!H", len(signature))
            + signature
        )
        several = struct.pack("!H", len(one)) + one
        content = struct.pack("!H", len(several)) + several
        assert len(content) < 128, "a length of one byte"
        return b"\4" + bytes([len(content)]) + content  # An octet string.

    def _entry(self, body: bytes) -> dict[str, object]:
        """The only entry of a log, with the log's word that it is there."""
        key_id = _key_id(self._logged.public_key())
        time_s = int(self._now.timestamp())
        root = hashlib.sha256(b"\0" + body).digest()
        note = f"log.invalid\n1\n{_base64(root)}\n"
        word = self._logged.sign(note.encode(), ec.ECDSA(hashes.SHA256()))
        promise = json.dumps(
            {
                "body": _base64(body),
                "integratedTime": time_s,
                "logID": key_id.hex(),
                "logIndex": 0,
            },
            separators=(",", ":"),
        ).encode()
        return {
            "logIndex": "0",
            "logId": {"keyId": _base64(key_id)},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": str(time_s),
            "inclusionPromise": {
                "signedEntryTimestamp": _base64(
                    self._logged.sign(promise, ec.ECDSA(hashes.SHA256()))
                )
            },
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": _base64(root),
                "treeSize": "1",
                "hashes": [],
                "checkpoint": {
                    "envelope": f"{note}\n\N{EM DASH} log.invalid {_base64(key_id[:4] + word)}\n"
                },
            },
            "canonicalizedBody": _base64(body),
        }

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, days: int
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - datetime.timedelta(hours=1))
            .not_valid_after(self._now + datetime.timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _log(url: str, key: ec.EllipticCurvePrivateKey, valid: dict[str, str]) -> dict[str, object]:
    return {
        "baseUrl": url,
        "hashAlgorithm": "SHA2_256",
        "publicKey": {
            "rawBytes": _base64(_public(key.public_key())),
            "keyDetails": "PKIX_ECDSA_P256_SHA_256",
            "validFor": valid,
        },
        "logId": {"keyId": _base64(_key_id(key.public_key()))},
    }


def _public(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _key_id(key: ec.EllipticCurvePublicKey) -> bytes:
    return hashlib.sha256(_public(key)).digest()


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
