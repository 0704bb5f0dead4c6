"""The agent's own credentials for Google Cloud, found as every Google client finds them.

google-auth looks at GOOGLE_APPLICATION_CREDENTIALS, at the file that `gcloud` leaves, at workload
identity, and at last asks the node's metadata service. That request is the SDK's own; it happens
only when the agent asks a bucket for itself, and no ref can lead it anywhere else.
"""

import importlib
import os
from datetime import UTC
from typing import Any

from damselfly.errors import (
    ConfigError,
    OriginDeniedError,
    OriginUnavailableError,
    UsageError,
)
from damselfly.origin.cloud_tokens import CloudToken

READ = "https://www.googleapis.com/auth/devstorage.read_only"
WRITE = "https://www.googleapis.com/auth/devstorage.read_write"


class GoogleCredentials:
    """Makes tokens. Called from one thread at a time."""

    def __init__(self, scope: str) -> None:
        self._scope = scope
        self._found: Any = None

    def __call__(self) -> CloudToken | None:
        """Make a token; None where there are no credentials at all.

        Raises:
            ConfigError: what the environment names cannot be used.
            OriginDeniedError, OriginUnavailableError: Google gives none, or does not answer.
            UsageError: the extra `damselfly[gs]` is not installed.
        """
        auth, exceptions, requests = _modules()
        named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
        try:
            if self._found is None:
                self._found, _ = auth.default(scopes=[self._scope])
            self._found.refresh(requests.Request())
        except exceptions.DefaultCredentialsError:
            if named:
                raise ConfigError(
                    "reading the credentials that GOOGLE_APPLICATION_CREDENTIALS names"
                ) from None
            return None
        except exceptions.TransportError:
            raise OriginUnavailableError("asking Google for a token") from None
        except (exceptions.GoogleAuthError, ValueError, OSError) as exc:
            # Read again next time: the file may be mended. Its text may repeat what it has.
            self._found = None
            raise OriginDeniedError(f"asking Google for a token: {type(exc).__name__}") from None
        expiry = self._found.expiry
        ends_s = None if expiry is None else expiry.replace(tzinfo=UTC).timestamp()
        return CloudToken(self._found.token, ends_s)


def _modules() -> tuple[Any, Any, Any]:
    try:
        return (
            importlib.import_module("google.auth"),
            importlib.import_module("google.auth.exceptions"),
            importlib.import_module("google.auth.transport.requests"),
        )
    except ImportError:
        raise UsageError(
            "gs:// with the agent's own credentials needs the extra damselfly[gs]"
        ) from None
