"""Keys and certificates for tests, and the stranger that signs and verifies with them."""

import datetime
import subprocess
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def private_key(
    path: Path, passphrase: str | None = None, curve: ec.EllipticCurve | None = None
) -> Path:
    """Write a new private key to `path`, and its public key beside it with `.pub`."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    kept: serialization.KeySerializationEncryption = (
        serialization.BestAvailableEncryption(passphrase.encode())
        if passphrase
        else serialization.NoEncryption()
    )
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, kept)
    )
    public_of(path).write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return path


def write_public(path: Path, private: bytes) -> None:
    """Write a private key that was made before, and its public key beside it."""
    path.write_bytes(private)
    public_of(path).write_bytes(
        _loaded(path)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def public_of(path: Path) -> Path:
    """Where the public key of a private one lies."""
    return path.with_name(path.name + ".pub")


def certificate(
    folder: Path, name: str, issuer: "tuple[Path, Path] | None" = None, *, is_authority: bool
) -> tuple[Path, Path]:
    """A key and its certificate, signed by the `issuer`'s or by itself."""
    key_path = private_key(folder / f"{name}.key")
    key = _loaded(key_path)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signing_key, issued_by = key, subject
    if issuer is not None:
        signing_key = _loaded(issuer[0])
        issued_by = x509.load_pem_x509_certificate(issuer[1].read_bytes()).subject
    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(
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
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issued_by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1 if issuer else 2))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(signing_key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return key_path, path


def _loaded(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def stranger(*args: object) -> subprocess.CompletedProcess[str]:
    """Run the command line of the package itself."""
    return subprocess.run(
        [sys.executable, "-m", "model_signing", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def stranger_signs(model: Path, key: Path, *extra: object) -> bytes:
    """Have the stranger sign a directory with a key; the signature is beside the files."""
    sig = model / "model.sig"
    done = stranger("sign", "key", model, "--signature", sig, "--private_key", key, *extra)
    assert done.returncode == 0, done.stdout + done.stderr
    return sig.read_bytes()
