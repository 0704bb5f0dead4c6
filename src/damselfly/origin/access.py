"""What an origin is shown by whoever asks it: a bearer token, a name and a password, or nothing.

It stays in memory, and goes to the host that the ref names and to no other.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from damselfly.errors import UsageError

SECRET_CHARS_MAX = 8192
"""Tokens of registries and clouds have up to 5,000 characters."""

_TOKEN = re.compile(r"[!-~]+", re.ASCII)


class Authorizer(Protocol):
    """What proves to an origin who asks. Equal ones prove the same; none shows itself in `repr`."""

    def headers(self, method: str, url: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The headers to add to a request, which has `headers` already; `url` is as it is sent."""
        ...


@dataclass(frozen=True, slots=True, repr=False)
class Access:
    """Credentials for one request. Without any it is `ANONYMOUS`, which is somebody too."""

    token: str | None = None
    username: str | None = None
    password: str | None = None
    is_own: bool = False
    """The agent asks for itself, and may show what its configuration and environment have."""

    @classmethod
    def of(
        cls, token: str | None = None, username: str | None = None, password: str | None = None
    ) -> "Access":
        """Take credentials from somebody who asks; empty text is as good as none.

        Raises:
            UsageError: both kinds or half a kind, or what cannot be in a header. No value is told.
        """
        token, username, password = token or None, username or None, password or None
        if token is not None and (username is not None or password is not None):
            raise UsageError("credentials are a token, or a user name and a password: not both")
        if token is not None and not _TOKEN.fullmatch(token):
            raise UsageError("the token of the credentials is no token: it has spaces, or worse")
        if password is not None and username is None:
            raise UsageError("the credentials have a password and no user name")
        if username is not None and (":" in username or not username.isprintable()):
            raise UsageError("the user name of the credentials has a colon or control characters")
        if password is not None and not password.isprintable():
            raise UsageError("the password of the credentials has control characters")
        if any(len(text or "") > SECRET_CHARS_MAX for text in (token, username, password)):
            raise UsageError(f"credentials have at most {SECRET_CHARS_MAX} characters")
        return cls(token, username, password)

    @property
    def authorization(self) -> str | None:
        """The value of the header that says it. Never for a log."""
        if self.token is not None:
            return f"Bearer {self.token}"
        if self.username is not None:
            pair = f"{self.username}:{self.password or ''}"
            return "Basic " + base64.b64encode(pair.encode()).decode()
        return None

    def headers(self, method: str, url: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The same for every request; see `Authorizer`."""
        del method, url, headers
        shows = self.authorization
        return {} if shows is None else {"Authorization": shows}

    def __repr__(self) -> str:
        if self.is_own:
            return "<Access: the agent's own>"
        return "<Access>" if self.authorization else "<Access: anonymous>"


ANONYMOUS = Access()
OWN = Access(is_own=True)
"""Whoever may command the agent showed nothing: the agent's own credentials may be shown.

Never for a pod, which shows its own or none.
"""
