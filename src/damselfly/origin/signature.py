"""Signatures by OpenSSF Model Signing: made for a push, and verified for whoever pulls.

Verifying parses what strangers wrote with large libraries, so a process of its own does it
(`signature_process.py`): it has no secrets, a limit on its memory and its time, and what it breaks
is its own. It is given the digests that this node has computed, and whom to trust.
"""

import base64
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, cast

from damselfly.errors import CancelledError, SignatureError, UsageError
from damselfly.model.digest import Digest
from damselfly.model.manifest import MANIFEST_NAME
from damselfly.model.paths import PUSH_DIRECTORY
from damselfly.model.statement import SIGNATURE_BYTES_MAX, SIGNATURE_NAME

if TYPE_CHECKING:
    from damselfly.origin.parcel import Sign

INSTALL = "pip install 'damselfly[sign]'"
KEY_BYTES_MAX = 64 << 10
PROCESS_S = 60.0
"""It takes two seconds, nearly all of it imports; a machine that is busy takes longer."""
LOOK_S = 0.25
"""How often somebody who waits for it looks whether they still shall."""
_ANSWER_BYTES_MAX = 64 << 10
IGNORED = (
    SIGNATURE_NAME,
    MANIFEST_NAME,
    PUSH_DIRECTORY,
    ".cache",
    ".DS_Store",
    ".git",
    ".gitattributes",
    ".github",
    ".gitignore",
)
"""What our signatures say nothing about: themselves, our notes, and what the package leaves out
whenever it verifies, because hubs change it."""


class Method(StrEnum):
    """How a signature is tied to somebody."""

    KEY = "key"
    CERTIFICATE = "certificate"
    KEYLESS = "keyless"


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom to trust: the content of PEM files, or of a trusted root, and for whom it vouches."""

    method: Method
    materials: tuple[bytes, ...]
    identity: str = ""
    issuer: str = ""

    @property
    def digest(self) -> Digest:
        """What changes whenever somebody else is trusted."""
        return Digest.of(json.dumps(self._fields()).encode())

    def _fields(self) -> dict[str, object]:
        return {
            "method": str(self.method),
            "materials": [base64.b64encode(each).decode() for each in self.materials],
            "identity": self.identity,
            "issuer": self.issuer,
        }

    def question(
        self,
        signature: bytes,
        digests: Mapping[str, str],
        others: Iterable[str],
        *,
        is_whole: bool,
    ) -> bytes:
        """What the process is asked; see `verify`."""
        return json.dumps(
            {
                **self._fields(),
                "signature": base64.b64encode(signature).decode(),
                "digests": dict(digests),
                "others": sorted(others),
                "is_whole": is_whole,
            }
        ).encode()


def verify(
    signature: bytes,
    trust: Trust,
    digests: Mapping[str, str],
    others: Iterable[str] = (),
    *,
    is_whole: bool = True,
    stopped: Event | None = None,
) -> str:
    """Make sure that somebody who is trusted signed these files; returns who, for people.

    `digests` are the SHA-256 (hex) of files by path, `others` the paths of those that are not
    judged; `is_whole` tells that there are no more. Blocks for seconds.

    Raises:
        SignatureError: it is not so; says why.
        CancelledError: `stopped` was set.
    """
    if len(signature) > SIGNATURE_BYTES_MAX:
        raise SignatureError(
            f"{SIGNATURE_NAME} has {len(signature)} bytes, more than {SIGNATURE_BYTES_MAX}"
        )
    try:
        question = trust.question(signature, digests, others, is_whole=is_whole)
        answered = _asked(question, stopped or Event())
        answer = cast("dict[str, Any]", json.loads(answered[:_ANSWER_BYTES_MAX]))
    except (OSError, subprocess.TimeoutExpired, ValueError) as exc:
        raise SignatureError(f"{SIGNATURE_NAME} could not be verified") from exc
    if "signer" in answer:
        return str(answer["signer"])
    raise SignatureError(str(answer["refused"]))


def _asked(question: bytes, stopped: Event) -> bytes:
    """Ask a process that ends with this call, whatever happens."""
    with subprocess.Popen(
        # Not from where the agent happens to stand, nor with what it has in its environment.
        [sys.executable, "-P", "-m", "damselfly.origin.signature_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ},
    ) as process:
        try:
            rest: bytes | None = question
            for _ in range(round(PROCESS_S / LOOK_S)):
                try:
                    return process.communicate(rest, timeout=LOOK_S)[0]
                except subprocess.TimeoutExpired:
                    rest = None  # It goes on with what it was given.
                if stopped.is_set():
                    raise CancelledError(f"verifying {SIGNATURE_NAME} was stopped")
            raise subprocess.TimeoutExpired(process.args, PROCESS_S)
        finally:
            process.kill()


def is_installed() -> bool:
    """Whether what signs and verifies is here; it is not imported."""
    return importlib.util.find_spec("model_signing") is not None


def lacking(error: ImportError) -> str:
    """What is not there, or there and broken."""
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name}"
    return f"the package {error.name or 'model_signing'}, which is installed and broken"


def signer(key: Path, passphrase: str | None) -> "Sign":
    """What signs with a private key (PEM, on one of the NIST curves); the key is read now.

    Raises:
        UsageError: it cannot be used, or the extra is not installed.
    """
    try:
        from model_signing._signing import sign_ec_key  # noqa: PLC0415 - takes two seconds
    except ImportError as exc:
        raise UsageError(f"signing needs {lacking(exc)}: {INSTALL}") from exc
    doing = f"reading the key {key}"
    try:
        if key.stat().st_size > KEY_BYTES_MAX:
            raise UsageError(f"{doing}: it is longer than {KEY_BYTES_MAX} bytes")
        word: Any = passphrase.encode() if passphrase else None  # Typed as text, and taken as bytes
        made = sign_ec_key.Signer(key, word)
        public = _public_of(key.read_bytes(), word)
    except TypeError:  # From cryptography: one of the two is there without the other.
        need = "needs none" if passphrase else "has a passphrase: set $DAMSELFLY_SIGN_PASSPHRASE"
        raise UsageError(f"{doing}: it {need}") from None
    except (OSError, ValueError, AttributeError) as exc:
        raise UsageError(f"{doing}: it is no usable key (PEM, on P-256, P-384 or P-521)") from exc

    trust = Trust(Method.KEY, (public,))

    def sign(name: str, files: Sequence[tuple[str, str]], old: bytes | None) -> bytes:
        new = _signed(made, name, files)
        return old if old is not None and _is_as_good(old, new, trust, files) else new

    return sign


def _is_as_good(old: bytes, new: bytes, trust: Trust, files: Sequence[tuple[str, str]]) -> bool:
    """Whether an older signature is over the same files, and by the same key."""
    signed = _resources(new)
    if signed is None or _resources(old) != signed:
        return False
    try:
        verify(old, trust, dict(files))
    except SignatureError:
        return False
    return True


def _resources(signature: bytes) -> object:
    """What a signature says of the files, whether that is true or not; None: it is none."""
    try:
        payload = json.loads(signature)["dsseEnvelope"]["payload"]
        return json.loads(base64.b64decode(payload))["predicate"]["resources"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None


def _public_of(private: bytes, word: bytes | None) -> bytes:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    return (
        serialization.load_pem_private_key(private, word)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def _signed(made: Any, name: str, files: Sequence[tuple[str, str]]) -> bytes:  # noqa: ANN401 - untyped
    from model_signing import manifest  # noqa: PLC0415
    from model_signing._hashing import hashing  # noqa: PLC0415
    from model_signing._signing import signing  # noqa: PLC0415

    items = [
        manifest.FileManifestItem(
            path=Path(path), digest=hashing.Digest("sha256", bytes.fromhex(digest))
        )
        for path, digest in files
        if not any(path == one or path.startswith(f"{one}/") for one in IGNORED)
    ]
    if not items:
        raise UsageError("signing the files: there are none that a signature covers")
    kind = manifest.SerializationType.from_args(
        {
            "method": "files",
            "hash_type": "sha256",
            "allow_symlinks": False,
            "ignore_paths": list(IGNORED),
        }
    )
    payload = signing.Payload(manifest.Manifest(name or "model", items, kind))
    return str(made.sign(payload).bundle.to_json()).encode()


def fingerprint(public_key: bytes) -> str:
    """What to call a public key (DER): the first digits of its SHA-256."""
    return f"key sha256:{hashlib.sha256(public_key).hexdigest()[:16]}"
