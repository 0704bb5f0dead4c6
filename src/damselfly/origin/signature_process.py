"""Verifies one signature and ends: `python -m damselfly.origin.signature_process`.

Asked on stdin and answered on stdout, each one JSON object (`signature.py` has both ends). What
libraries print goes to stderr, and whatever is wrong with a signature is an answer.
"""

import base64
import contextlib
import io
import json
import os
import resource
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, cast

from damselfly.errors import SignatureError
from damselfly.model.statement import SIGNATURE_NAME, Statement
from damselfly.origin.signature import INSTALL, Method, fingerprint

MEMORY_BYTES_MAX = 4 << 30
"""Of addresses; it uses 100 MiB, and a signature of 16 MiB ten times its size."""
CPU_S_MAX = 50
_REASON_CHARS_MAX = 500

Question = dict[str, Any]
Verify = Callable[[Path], tuple[Any, str]]
"""Verifies the signature in a file; gives what it signs, and who signed it."""


def main() -> None:
    """Answer the question on stdin."""
    answers = sys.stdout
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S_MAX, CPU_S_MAX))
    question = cast("Question", json.load(sys.stdin.buffer))
    with contextlib.redirect_stdout(sys.stderr):
        answer = answered(question)
    json.dump(answer, answers)


def answered(question: Question) -> dict[str, str]:
    """Say who signed, or why it is refused."""
    try:
        statement, who = _opened(question)
        statement.check(question["digests"], question["others"], is_whole=question["is_whole"])
    except SignatureError as exc:
        return {"refused": f"{SIGNATURE_NAME}: {exc}"}
    except ModuleNotFoundError as exc:
        return {"refused": f"verifying needs the package {exc.name}: {INSTALL}"}
    # It was written by a stranger, and libraries raise whatever they like about it.
    except Exception as exc:
        return {"refused": f"{SIGNATURE_NAME} is not by whom is trusted: {_reason(exc)}"}
    return {"signer": who}


def _reason(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__} {error}".split())
    return "".join(char for char in text if char.isprintable())[:_REASON_CHARS_MAX]


@contextlib.contextmanager
def _in_memory(name: str, text: str) -> Generator[Path]:
    """A file that lies on no disk, for libraries that read files: there may be none to write to."""
    with os.fdopen(os.memfd_create(name), "wb", buffering=0) as file:
        file.write(base64.b64decode(text))
        yield Path(f"/proc/self/fd/{file.fileno()}")


def _opened(question: Question) -> tuple[Statement, str]:
    """What was signed, by whom; the first who is trusted and signed it."""
    failure: Exception = SignatureError("nobody is trusted")
    with _in_memory(SIGNATURE_NAME, question["signature"]) as place:
        for number, material in enumerate(question["materials"]):
            try:
                with _in_memory(f"trusted-{number}", material) as trusted:
                    manifest, who = _verifier(question, trusted)(place)
            except ModuleNotFoundError:
                raise
            except Exception as exc:
                failure = exc
            else:
                return _stated(manifest), who
    raise failure


def _verifier(question: Question, trusted: Path) -> Verify:
    match Method(question["method"]):
        case Method.KEY:
            return lambda place: _by_key(place, trusted)
        case Method.CERTIFICATE:
            return lambda place: _by_certificate(place, trusted)
        case Method.KEYLESS:
            identity, issuer = question["identity"], question["issuer"]
            return lambda place: _keyless(place, trusted, identity, issuer)


def _by_key(place: Path, trusted: Path) -> tuple[Any, str]:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from model_signing._signing import sign_ec_key, sign_sigstore_pb  # noqa: PLC0415

    key = serialization.load_pem_public_key(trusted.read_bytes())
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    signature = sign_sigstore_pb.Signature.read(place)
    return sign_ec_key.Verifier(trusted).verify(signature), fingerprint(der)


def _by_certificate(place: Path, trusted: Path) -> tuple[Any, str]:
    from cryptography import x509  # noqa: PLC0415
    from model_signing._signing import sign_certificate, sign_sigstore_pb  # noqa: PLC0415

    signature = sign_sigstore_pb.Signature.read(place)
    manifest = sign_certificate.Verifier([trusted]).verify(signature)
    chain = signature.bundle.verification_material.x509_certificate_chain
    assert chain is not None, "it was verified"
    subject = x509.load_der_x509_certificate(chain.certificates[0].raw_bytes).subject
    return manifest, subject.rfc4514_string() or "a certificate without a subject"


def _keyless(place: Path, trusted: Path, identity: str, issuer: str) -> tuple[Any, str]:
    from model_signing._signing import sign_sigstore, signing  # noqa: PLC0415
    from sigstore.models import TrustedRoot  # noqa: PLC0415
    from sigstore.verify import Verifier, policy  # noqa: PLC0415

    class Keyless(signing.Verifier):
        """The package's own takes its roots from the network."""

        def _verify_signed_content(self, signature: Any) -> tuple[str, bytes]:  # noqa: ANN401
            whom = policy.Identity(identity=identity, issuer=issuer)
            roots = TrustedRoot.from_file(str(trusted))
            return Verifier(trusted_root=roots).verify_dsse(bundle=signature.bundle, policy=whom)

    signature = sign_sigstore.Signature.read(place)
    return Keyless().verify(signature), f"{identity} ({issuer})"


def _stated(manifest: Any) -> Statement:  # noqa: ANN401 - untyped
    kind = cast("dict[str, Any]", manifest.serialization_type)
    if kind["method"] != "files" or kind["hash_type"] != "sha256":
        raise SignatureError(
            f"it is made with the method {kind['method']!r} and {kind['hash_type']!r}:"
            " only 'files' and 'sha256' are verified here"
        )
    files: dict[str, str] = {}
    for resource_ in manifest.resource_descriptors():
        digest = resource_.digest
        if digest.algorithm != "sha256" or len(digest.digest_value) != 32:
            raise SignatureError(f"it has no SHA-256 of {resource_.identifier[:200]!r}")
        files[str(resource_.identifier)] = str(digest.digest_hex)
    ignored = tuple(str(path) for path in kind.get("ignore_paths", ()))
    return Statement(files, ignored)


if __name__ == "__main__":
    # Whatever is printed by others is theirs; the answer is the only thing on stdout.
    with contextlib.redirect_stderr(io.StringIO()):
        main()
