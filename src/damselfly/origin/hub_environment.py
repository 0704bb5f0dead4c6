"""What the environment says of the hub: where it is, and who this agent is there.

    HF_ENDPOINT      the hub or a mirror of it; for everybody who asks this agent. `http://` only
                     where it is written so
    HF_TOKEN         this agent's own token
    HF_TOKEN_PATH    else the file that has it; without it HF_HOME/token, which is
                     ~/.cache/huggingface/token where nothing else is said

They are those of the hub's own client. A token of the environment is the agent's own word: it is
never shown for a pod. It is read anew each time, because such files are rotated.
"""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from damselfly.errors import ConfigError, UsageError
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS, SECRET_CHARS_MAX, Access

ENDPOINT = "https://huggingface.co"


class HubEnvironment:
    """The variables, and the files that they name."""

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        self._variables = os.environ if variables is None else variables

    @property
    def endpoint(self) -> str:
        """The address of the hub, without a slash at the end.

        Raises:
            ConfigError: HF_ENDPOINT is not one.
        """
        text = self._variables.get("HF_ENDPOINT", "").strip() or ENDPOINT
        try:
            ref = Ref.parse(text)
        except UsageError as exc:
            raise ConfigError("reading HF_ENDPOINT of the environment") from exc
        if ref.scheme not in {"http", "https"} or ref.query or ref.pin is not None:
            raise ConfigError("HF_ENDPOINT of the environment is not the address of a hub")
        return ref.location.rstrip("/")

    async def access(self, asker: Access) -> Access:
        """What is shown to the hub for somebody: what they gave, or the agent's own token for it.

        Raises:
            ConfigError: the token of the environment is none, or its file cannot be read.
        """
        if asker.authorization is not None or not asker.is_own:
            return asker
        return await asyncio.to_thread(self.own)

    def own(self) -> Access:
        """The agent's own access; reads a file."""
        if text := self._variables.get("HF_TOKEN", "").strip():
            return _token(text, "HF_TOKEN of the environment")
        path, is_named = self._token_path()
        try:
            with path.open("rb") as file:
                data = file.read(SECRET_CHARS_MAX + 2)
        except FileNotFoundError:
            if is_named:
                raise ConfigError(f"HF_TOKEN_PATH of the environment: no file {path}") from None
            return ANONYMOUS
        except OSError as exc:
            raise ConfigError(f"reading the hub's token in {path}") from exc
        text = data.decode(errors="replace").strip()
        return _token(text, f"the hub's token in {path}") if text else ANONYMOUS

    def _token_path(self) -> tuple[Path, bool]:
        """Where the token is, and whether somebody said so."""
        said = self._variables
        if text := said.get("HF_TOKEN_PATH", ""):
            return Path(text).expanduser(), True
        cache = said.get("XDG_CACHE_HOME", "") or "~/.cache"
        home = said.get("HF_HOME", "") or f"{cache}/huggingface"
        return Path(home).expanduser() / "token", False


def is_below(url: str, endpoint: str) -> bool:
    """Whether an address is of the host that the endpoint is of."""
    here, there = urlsplit(url), urlsplit(endpoint)
    return (here.scheme, here.netloc.lower()) == (there.scheme, there.netloc)


def _token(text: str, what: str) -> Access:
    try:
        return Access.of(token=text)
    except UsageError as exc:
        raise ConfigError(f"reading {what}") from exc
