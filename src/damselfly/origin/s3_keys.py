"""The agent's own keys for S3: from the environment and the files that every AWS program reads.

botocore finds them: environment variables, profiles in `~/.aws`, web identity files (IRSA), what a
profile names (roles, single sign-on, a process), and a container's credentials where the
environment names their address. The node's metadata service is not asked: what it gives out is the
node's, not ours. A profile with `credential_source = Ec2InstanceMetadata` asks it all the same, for
then somebody wants it.

What needs no looking for is not left to botocore, which takes half a second to start: keys in the
environment without a profile, and a machine that has neither variables nor files of AWS.

Keys that end are renewed by botocore before they do. When a server says that they are no good, they
are looked for anew, once: a secret that was mounted may have changed.
"""

import asyncio
import importlib
import logging
import os
import time
from pathlib import Path
from typing import Any

from damselfly.errors import ConfigError, OriginUnavailableError
from damselfly.origin.s3_signature import S3Keys

logger = logging.getLogger(__name__)

_LOOK_AGAIN_S = 30.0
"""How long keys are used without asking botocore, which renews them 10 to 15 minutes early."""
_FIND_S = 60.0
_PROFILES = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE")
_SOURCES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CREDENTIAL_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
)
_FILES = (
    ("AWS_CONFIG_FILE", "~/.aws/config"),
    ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
    ("BOTO_CONFIG", "~/.boto"),
)


class OwnKeys:
    """Finds the agent's own keys, in a thread. Belongs to one event loop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._credentials: Any = None  # botocore's, which renew themselves; None: look for them.
        self._keys: S3Keys | None = None
        self._looked_s: float | None = None

    async def keys(self) -> S3Keys | None:
        """The keys to use now; None if there are none, and requests go unsigned.

        Raises:
            ConfigError: what the environment or a file says cannot be used.
            OriginUnavailableError: whoever gives keys out does not answer.
        """
        async with self._lock:
            now_s = time.monotonic()
            if self._looked_s is None or now_s - self._looked_s > _LOOK_AGAIN_S:
                try:
                    async with asyncio.timeout(_FIND_S):
                        self._keys = await asyncio.to_thread(self._find)
                except TimeoutError:
                    raise OriginUnavailableError("finding keys for S3 takes too long") from None
                self._looked_s = now_s
            return self._keys

    async def renewed(self, keys: S3Keys) -> bool:
        """A server says that `keys` are no good: look for others. Tells whether there are."""
        async with self._lock:
            if keys == self._keys:
                self._credentials = self._keys = self._looked_s = None
                logger.info("s3.keys_forgotten")
        found = await self.keys()
        return found is not None and found != keys

    def _find(self) -> S3Keys | None:
        said = os.environ.get
        if not any(said(name) for name in _PROFILES):
            key_id, secret = said("AWS_ACCESS_KEY_ID"), said("AWS_SECRET_ACCESS_KEY")
            if key_id and secret:
                return S3Keys(key_id, secret, said("AWS_SESSION_TOKEN") or None)
        is_there = any(Path(said(name) or place).expanduser().exists() for name, place in _FILES)
        if not is_there and not any(said(name) for name in (*_PROFILES, *_SOURCES)):
            return None
        try:
            session_module = importlib.import_module("botocore.session")
            exceptions = importlib.import_module("botocore.exceptions")
        except ImportError as exc:
            named = next((name for name in (*_PROFILES, *_SOURCES) if said(name)), None)
            if named is not None:  # Somebody wants keys: to ask without would hide that.
                raise ConfigError(
                    f"finding keys for S3: the environment has {named}, and what reads it is not"
                    " installed: pip install 'damselfly[s3]'"
                ) from exc
            logger.info("s3.no_sdk", extra={"needs": "the extra damselfly[s3]"})
            return None
        try:
            if self._credentials is None:
                session: Any = session_module.Session()
                session.get_component("credential_provider").remove("iam-role")
                self._credentials = session.get_credentials()
            if self._credentials is None:
                return None
            frozen = self._credentials.get_frozen_credentials()
        except exceptions.HTTPClientError:
            raise OriginUnavailableError("asking for keys for S3: no answer") from None
        except exceptions.BotoCoreError as exc:
            # Their texts may have what a file or a program said: only their kind is told.
            raise ConfigError(f"finding keys for S3: {type(exc).__name__}") from None
        except exceptions.ClientError:
            raise ConfigError("finding keys for S3: they were refused") from None
        if not frozen.access_key or not frozen.secret_key:
            return None
        return S3Keys(str(frozen.access_key), str(frozen.secret_key), frozen.token or None)
