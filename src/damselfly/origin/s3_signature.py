"""Signatures of S3: AWS Signature Version 4, as Amazon documents it for single requests.

Written out here, so that who shows a key of their own needs no SDK, and because an SDK's signer
writes what it signs into debug logs, session tokens among it. Tests hold it against botocore's.
"""

import datetime
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
PAYLOAD_HEADER = "x-amz-content-sha256"
_ALGORITHM = "AWS4-HMAC-SHA256"
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, repr=False)
class S3Keys:
    """An access key and its secret; a session token belongs to keys that end."""

    key_id: str
    secret: str
    session_token: str | None = None

    def __repr__(self) -> str:
        return "<S3Keys>"


@dataclass(frozen=True, slots=True, repr=False)
class S3Signer:
    """Signs requests to one region: an `Authorizer`. Without keys it shows nothing.

    A request with a body says its SHA-256 in the header `x-amz-content-sha256`.
    """

    keys: S3Keys | None
    region: str

    def headers(self, method: str, url: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The headers that make it a signed request; see `Authorizer`."""
        payload = next(
            (text for name, text in headers.items() if name.lower() == PAYLOAD_HEADER),
            EMPTY_SHA256,
        )
        if self.keys is None:
            return {}
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        added = {PAYLOAD_HEADER: payload, "x-amz-date": stamp}
        if self.keys.session_token is not None:
            added["x-amz-security-token"] = self.keys.session_token
        parts = urlsplit(url)
        port = "" if parts.port in {None, _PORTS[parts.scheme]} else f":{parts.port}"
        signed = {name.lower(): " ".join(text.split()) for name, text in headers.items()}
        signed |= added | {"host": f"{parts.hostname}{port}"}
        names = ";".join(sorted(signed))
        request = "\n".join(
            (
                method,
                parts.path or "/",
                "&".join(sorted(parts.query.split("&"), key=lambda pair: pair.split("="))),
                *(f"{name}:{signed[name]}" for name in sorted(signed)),
                "",
                names,
                payload,
            )
        )
        scope = f"{stamp[:8]}/{self.region}/s3/aws4_request"
        digest = hashlib.sha256(request.encode()).hexdigest()
        signature = _signature(self.keys.secret, scope, f"{_ALGORITHM}\n{stamp}\n{scope}\n{digest}")
        return added | {
            "Authorization": f"{_ALGORITHM} Credential={self.keys.key_id}/{scope},"
            f" SignedHeaders={names}, Signature={signature}"
        }

    def __repr__(self) -> str:
        return "<S3Signer>"


def _signature(secret: str, scope: str, text: str) -> str:
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, text.encode(), "sha256").hex()
