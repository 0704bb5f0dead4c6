"""What this machine's own user may show to registries, as `docker login` and its like leave it.

Read are `$REGISTRY_AUTH_FILE`, else `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`: of
the entries below `auths` the one whose key is the longest beginning of the repository. Programs
that the file names (credential helpers) are not run: an agent starts no program that a file in
somebody's home names. It is only for requests that the agent makes for itself (`OWN`).
"""

import base64
import binascii
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from damselfly.errors import ConfigError, UsageError
from damselfly.model import canonical
from damselfly.origin.access import ANONYMOUS, Access

logger = logging.getLogger(__name__)

CONFIG_BYTES_MAX = 1 << 20
_DOCKER_KEYS = ("docker.io", "index.docker.io", "index.docker.io/v1", "registry-1.docker.io")


def config_path(environment: Mapping[str, str]) -> Path:
    """The file that is read, whether or not it is there."""
    if named := environment.get("REGISTRY_AUTH_FILE"):
        return Path(named)
    folder = environment.get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path.home() / ".docker") / "config.json"


def registry_access(
    registry: str, repository: str, environment: Mapping[str, str] | None = None
) -> Access:
    """What may be shown for a repository; `ANONYMOUS` where nothing is said. Reads the disk.

    Raises:
        ConfigError: the file cannot be read, or is no such file. No value is told.
    """
    path = config_path(os.environ if environment is None else environment)
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return ANONYMOUS
    except (OSError, RuntimeError) as exc:
        raise ConfigError(f"reading the credentials for registries in {path}") from exc
    try:
        if len(data) > CONFIG_BYTES_MAX:
            raise ValueError(f"more than {CONFIG_BYTES_MAX} bytes")
        config = _fields(canonical.decode(data), "the file")
        entry = _entry(config, registry, repository)
        if entry is not None and (access := _access(entry)) != ANONYMOUS:
            return access
    except (ValueError, UsageError) as exc:
        raise ConfigError(f"reading the credentials for registries in {path}") from exc
    if _has_helper(config, registry):
        logger.warning(
            "registry.helper_not_run",
            extra={"registry": registry, "file": str(path)},
        )
    return ANONYMOUS


def _entry(
    config: Mapping[str, object], registry: str, repository: str
) -> Mapping[str, object] | None:
    wanted = [f"{registry}/{repository}"]
    if registry in _DOCKER_KEYS:
        wanted = [f"{key}/{repository}" for key in _DOCKER_KEYS]
    best, found = "", None
    for key, value in _section(config, "auths").items():
        place = key.partition("://")[2] or key
        place = place.rstrip("/").removesuffix("/v1").removesuffix("/v2")
        is_of = any(each == place or each.startswith(f"{place}/") for each in wanted)
        if is_of and len(place) > len(best):
            best, found = place, value
    return None if found is None else _fields(found, "an entry of auths")


def _access(entry: Mapping[str, object]) -> Access:
    """Read an entry; it may be empty, where a helper keeps what it stood for."""
    if token := _text(entry, "registrytoken"):
        return Access.of(token=token)
    if _text(entry, "identitytoken"):
        raise ValueError("an entry has an identity token, and only names and passwords are spoken")
    if pair := _text(entry, "auth"):
        try:
            decoded = base64.b64decode(pair, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise ValueError("auth of an entry is not base64 of a name and a password") from None
        username, colon, password = decoded.partition(":")
        if not colon:
            raise ValueError("auth of an entry is not base64 of a name and a password")
        return Access.of(username=username, password=password.rstrip("\0"))
    return Access.of(username=_text(entry, "username"), password=_text(entry, "password"))


def _has_helper(config: Mapping[str, object], registry: str) -> bool:
    helpers = _section(config, "credHelpers")
    return bool(config.get("credsStore")) or registry in helpers


def _text(entry: Mapping[str, object], key: str) -> str | None:
    value = entry.get(key)
    return canonical.expect(value, str, key) if value is not None else None


def _section(config: Mapping[str, object], key: str) -> dict[str, object]:
    value = config.get(key)
    return {} if value is None else _fields(value, key)


def _fields(value: object, what: str) -> dict[str, object]:
    return cast("dict[str, object]", canonical.expect(value, dict, what))
