"""A certificate authority of a test, and certificates that it signs."""

import datetime
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from damselfly.p2p.transport import CertificateFiles

NAME = "agent.damselfly.test"
_PEM = serialization.Encoding.PEM


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general(name: str) -> x509.GeneralName:
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    if name[0].isdigit():
        return x509.IPAddress(ip_address(name))
    return x509.DNSName(name)


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, as PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """Signs whatever a test wants."""

    def __init__(self, name: str = "an authority") -> None:
        self._name = _name(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        """The authority's own certificate."""
        return self._certificate.public_bytes(_PEM)

    def issue(self, *names: str, hours: float = 1.0) -> Issued:
        """Sign a certificate for DNS names, URIs or addresses; with negative hours, an old one."""
        key = ec.generate_private_key(ec.SECP256R1())
        ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name("an agent"))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(ends - datetime.timedelta(hours=12))
            .not_valid_after(ends)
        )
        if names:
            alternatives = x509.SubjectAlternativeName([_general(name) for name in names])
            builder = builder.add_extension(alternatives, critical=False)
        return Issued(
            builder.sign(self._key, hashes.SHA256()).public_bytes(_PEM),
            key.private_bytes(
                _PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )

    def write(self, folder: Path, issued: Issued | None = None) -> CertificateFiles:
        """Lay files out as cert-manager's Secrets have them; one is issued if none is given."""
        issued = issued or self.issue(NAME)
        folder.mkdir(exist_ok=True)
        files = CertificateFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")
        for path, data in (
            (files.certificate, issued.certificate),
            (files.key, issued.key),
            (files.authority, self.pem),
        ):
            fresh = path.with_suffix(".new")
            fresh.write_bytes(data)
            fresh.replace(path)
        return files
