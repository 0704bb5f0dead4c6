"""The agent's own credentials for prefixes of refs, in a file that is read again when it changes.

    ["https://models.example.com/private/"]
    token_file = "models-token"             # beside this file; or token = "...", or a variable:

    ["hf://org"]
    token_env = "HF_TOKEN_OF_ORG"

    ["s3://bucket/models"]
    username = "AKIA..."
    password_file = "/run/secrets/s3"       # or password = "...", password_env = "..."

The longest prefix that a ref lies below counts (`model/prefix.py`). They are for what the agent
asks for itself (`agent/rights.py`), never for pods.

Who else may read the file has what is in it, so one of ours that the group or others may read is
refused, as ssh does with keys; of somebody else's (Kubernetes mounts Secrets as root's) only one
that everybody may write. A file that is broken when the agent starts keeps it from starting; later
the last good one counts until it is repaired. That is told once for each change, and by `doctor`.

No error here repeats anything that the file says, for a secret may stand in the wrong place.
"""

import logging
import os
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import cast

from damselfly.errors import ConfigError, UsageError, explain
from damselfly.model.prefix import PREFIXES_MAX, check_spoken, checked, longest_of
from damselfly.model.ref import Ref
from damselfly.origin.access import SECRET_CHARS_MAX, Access

logger = logging.getLogger(__name__)

FILE_BYTES_MAX = 1 << 20
_WHERE = re.compile(r"\(at (?:line \d+, column \d+|end of document)\)")
_KEYS = frozenset(
    {
        "token",
        "token_file",
        "token_env",
        "username",
        "password",
        "password_file",
        "password_env",
    }
)

_Mark = tuple[int, int, int, int, int] | None
"""What changes whenever a file does; None stands for one that is not there."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is shown for refs below a prefix."""

    prefix: str
    access: Access


class CredentialsFile:
    """A file of credentials by prefix. Any thread may ask; asking looks at the disk."""

    def __init__(
        self,
        path: Path,
        environ: Mapping[str, str],
        *,
        uid: int | None = None,
        schemes: Sequence[str] = (),
    ) -> None:
        """Read it; `schemes` are spoken besides those that always are.

        Raises:
            ConfigError: it cannot be used; nothing of what it says is told.
        """
        self.path = path
        self._environ = environ
        self._uid = os.geteuid() if uid is None else uid
        self._schemes = schemes
        self._lock = Lock()
        self._marks: dict[Path, _Mark] = {}
        """Every file that was read or looked for, as it was just before."""
        self._entries = _read(path, environ, self._uid, self._marks, schemes)
        self.trouble: str | None = None
        """Why what was read last counts, although the file is another now."""

    def __repr__(self) -> str:
        return f"<CredentialsFile {self.path}: {len(self._entries)} prefixes>"

    @property
    def prefixes(self) -> tuple[str, ...]:
        """For what there are any."""
        return tuple(sorted(self._entries))

    def find(self, ref: Ref) -> Entry | None:
        """What is shown for a ref, from the file as it is now; None: nothing."""
        with self._lock:
            self._look()
            entries = self._entries
        prefix = longest_of(ref.location, entries)
        return None if prefix is None else Entry(prefix, entries[prefix])

    def look(self) -> None:
        """Read it again, if it has changed."""
        with self._lock:
            self._look()

    def _look(self) -> None:
        if all(_mark_of(file) == mark for file, mark in self._marks.items()):
            return
        self._marks = {}
        extra: dict[str, object] = {"path": str(self.path)}
        try:
            self._entries = _read(self.path, self._environ, self._uid, self._marks, self._schemes)
        except ConfigError as exc:
            # A file that has gone is one change, not one for everybody who asks.
            self.trouble = explain(exc)
            logger.warning("rights.kept", extra=extra | {"error": self.trouble})
            return
        self.trouble = None
        logger.info("rights.read", extra=extra | {"prefixes": len(self._entries)})


# --- reading ----------------------------------------------------------------------------------


def _mark_of(file: Path) -> _Mark:
    try:
        state = file.stat()
    except OSError:
        return None
    return (state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_ino, state.st_mode)


def _read(
    path: Path,
    environ: Mapping[str, str],
    uid: int,
    marks: dict[Path, _Mark],
    schemes: Sequence[str],
) -> dict[str, Access]:
    marks[path] = _mark_of(path)
    text = _secret_text(path, uid, f"the credentials {path}", FILE_BYTES_MAX)
    try:
        tables = cast("dict[str, object]", tomllib.loads(text))
    except ValueError as exc:
        # What the parser says may repeat what it stumbled over.
        where = _WHERE.search(str(exc))
        raise ConfigError(
            f"the credentials {path} are not TOML {where[0] if where else ''}".rstrip()
        ) from None
    if len(tables) > PREFIXES_MAX:
        raise ConfigError(f"the credentials {path} have more than {PREFIXES_MAX} prefixes")
    entries: dict[str, Access] = {}
    for number, (word, table) in enumerate(tables.items(), start=1):
        doing = f"table {number} of the credentials {path}"
        try:
            prefix = checked(word)
            check_spoken(prefix, schemes)
        except ValueError as exc:
            raise ConfigError(f"{doing}: {_unquoted(exc)}") from None
        if prefix in entries:
            raise ConfigError(f"{doing} is for the same prefix as one before it")
        if not isinstance(table, dict):
            raise ConfigError(f'{doing} is a value, and no table: write ["https://host/models"]')
        entries[prefix] = _access(
            cast("dict[str, object]", table), doing, path, environ, uid, marks
        )
    return entries


def _unquoted(error: ValueError) -> str:
    """What is wrong with a prefix, without the prefix: it may be a secret in the wrong place."""
    return re.sub(r"^(['\"]).*\1 ", "the prefix ", str(error), flags=re.DOTALL)


def _access(
    table: Mapping[str, object],
    doing: str,
    path: Path,
    environ: Mapping[str, str],
    uid: int,
    marks: dict[Path, _Mark],
) -> Access:
    if not table.keys() <= _KEYS:
        known = ", ".join(sorted(_KEYS))
        raise ConfigError(f"{doing} has a key that means nothing: known are {known}")
    values: dict[str, str] = {}
    for key, value in table.items():
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{doing}: {key} is no text, or empty")
        values[key] = value
    said: dict[str, str | None] = {"username": values.get("username")}
    for kind in ("token", "password"):
        ways = [key for key in (kind, f"{kind}_file", f"{kind}_env") if key in values]
        if len(ways) > 1:
            raise ConfigError(f"{doing} has {' and '.join(ways)}: one says it")
        said[kind] = None
        if f"{kind}_file" in values:
            file = path.parent / values[f"{kind}_file"]
            marks[file] = _mark_of(file)
            what = f"the file that {kind}_file of {doing} names"
            said[kind] = _secret_text(file, uid, what, SECRET_CHARS_MAX * 4).strip()
        elif f"{kind}_env" in values:
            said[kind] = environ.get(values[f"{kind}_env"])
            if not said[kind]:
                raise ConfigError(f"{doing}: the variable that {kind}_env names is not set")
        elif kind in values:
            said[kind] = values[kind]
    if not any(said.values()):
        raise ConfigError(f"{doing} has nothing to show")
    try:
        return Access.of(said["token"], said["username"], said["password"])
    except UsageError as exc:
        raise ConfigError(f"{doing} cannot be used") from exc


def _secret_text(path: Path, uid: int, what: str, bytes_max: int) -> str:
    """Read a file that nobody else may read.

    Raises:
        ConfigError: there is none, it is too open, too long, or no text.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            state = os.fstat(stream.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise ConfigError(f"{what} is no file")
            mode = stat.S_IMODE(state.st_mode)
            is_ours = state.st_uid == uid
            if mode & (0o077 if is_ours else 0o002):
                raise ConfigError(
                    f"{what} has the mode {mode:04o}, so others may read it or change it:"
                    " chmod 600 makes it the agent's alone"
                )
            data = stream.read(bytes_max + 1)
    except OSError as exc:
        raise ConfigError(f"reading {what}: {exc.strerror or type(exc).__name__}") from None
    if len(data) > bytes_max:
        raise ConfigError(f"{what} has more than {bytes_max} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{what} is not UTF-8") from None
