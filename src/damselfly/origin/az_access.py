"""What proves to Azure who asks: an account's key that signs requests, a SAS token, a bearer token.

A SAS token is a part of the URL, so it is added to a URL where that is made, and nowhere kept. URLs
are shown without their queries everywhere.
"""

import base64
import hashlib
import hmac
import importlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from urllib.parse import unquote, urlsplit

from damselfly.errors import OriginDeniedError, OriginUnavailableError, UsageError
from damselfly.origin.cloud_tokens import CloudToken

SCOPE = "https://storage.azure.com/.default"
_SAYS_WHO = ("AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_USERNAME")
"""Where the environment has one of these, somebody wants an identity to be used."""

_SIGNED = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)
"""The headers that are signed by their values alone, in this order."""


@dataclass(frozen=True, slots=True)
class SharedKey:
    """Signs requests with the key of an account. An `Authorizer`.

    A request with a body has to say its `Content-Length` and `Content-Type`: they are signed.
    """

    account: str
    key: bytes = field(repr=False)
    now_s: Callable[[], float] = field(default=time.time, repr=False, compare=False)

    def headers(self, method: str, url: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The date and the signature."""
        date = formatdate(self.now_s(), usegmt=True)
        said = {name.lower(): value for name, value in headers.items()} | {"x-ms-date": date}
        text = string_to_sign(self.account, method, url, said)
        signature = hmac.new(self.key, text.encode(), hashlib.sha256).digest()
        return {
            "x-ms-date": date,
            "Authorization": f"SharedKey {self.account}:{base64.b64encode(signature).decode()}",
        }


def string_to_sign(account: str, method: str, url: str, headers: Mapping[str, str]) -> str:
    """What a signature says; the names of `headers` are in lower case."""
    parts = urlsplit(url)
    lines = [method]
    for name in _SIGNED:
        value = headers.get(name, "")
        lines.append("" if (name, value) == ("content-length", "0") else value)
    lines += (
        f"{name}:{' '.join(headers[name].split())}"
        for name in sorted(headers)
        if name.startswith("x-ms-")
    )
    query: dict[str, list[str]] = {}
    for pair in filter(None, parts.query.split("&")):
        name, _, value = pair.partition("=")
        query.setdefault(unquote(name).lower(), []).append(unquote(value))
    lines.append(f"/{account}{parts.path or '/'}")
    lines += (f"{name}:{','.join(sorted(query[name]))}" for name in sorted(query))
    return "\n".join(lines)


class AzureCredentials:
    """Makes bearer tokens of the agent's own identity. Called from one thread at a time.

    azure-identity looks at the environment, at workload identity, asks the node's metadata service
    for a managed identity, and last the command line programs. What it asks is the SDK's own
    request, which no ref can lead elsewhere.
    """

    def __init__(self) -> None:
        self._found: Any = None

    def __call__(self) -> CloudToken | None:
        """Make a token; None where there are no credentials at all.

        Raises:
            OriginDeniedError, OriginUnavailableError: Azure gives none, or does not answer.
            UsageError: the extra `damselfly[az]` is not installed.
        """
        try:
            identity = importlib.import_module("azure.identity")
            exceptions = importlib.import_module("azure.core.exceptions")
        except ImportError:
            raise UsageError(
                "az:// with the agent's own identity needs the extra damselfly[az]"
            ) from None
        try:
            if self._found is None:
                self._found = identity.DefaultAzureCredential(
                    exclude_powershell_credential=True,
                    exclude_shared_token_cache_credential=True,
                    exclude_visual_studio_code_credential=True,
                )
            made = self._found.get_token(SCOPE)
        except identity.CredentialUnavailableError:
            return None
        except exceptions.ClientAuthenticationError:
            # A chain in which nobody has any says it with this class too.
            if not any(os.environ.get(name) for name in _SAYS_WHO):
                return None
            raise OriginDeniedError("asking Azure for a token: it gives none") from None
        except exceptions.AzureError as exc:
            raise OriginUnavailableError(
                f"asking Azure for a token: {type(exc).__name__}"
            ) from None
        return CloudToken(made.token, float(made.expires_on))
