"""Which refs must be signed, and by whom: the table `[[signatures]]` of the configuration.

    [[signatures]]
    prefix = "hf://our-org/"
    require = "required"                  # or "if-present", or "ignore"
    key = "/etc/damselfly/our-org.pem"    # or certificate_roots, or identity, issuer, trust_root

The longest prefix wins. A prefix of a rule that requires a signature covers every name that begins
with it; the others cover what lies below them, so that a name that only looks alike is not let off
(`spelling.py` has what is one name). Of several names of a ref the strictest rule counts, and what
cannot be told from a ref is bound by whatever rule may be about it. The file is read again when it
changes: one that is broken changes nothing, and is told.
"""

import logging
import os
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from threading import Lock
from typing import cast

from damselfly.errors import ConfigError, SignatureError, UsageError
from damselfly.model.ref import Ref
from damselfly.model.spelling import (
    EVERYWHERE,
    NO_ENDPOINTS,
    Endpoints,
    official,
    prefix_spelling,
    spellings,
)
from damselfly.origin.signature import INSTALL, Method, Trust, is_installed

logger = logging.getLogger(__name__)

TABLE = "signatures"
RULES_MAX = 1024
TRUSTED_BYTES_MAX = 1 << 20
"""A key has 200 bytes, a trusted root 10 KB, all the roots of the web 300 KB."""
FILE_BYTES_MAX = 1 << 20
_PATHS = {
    "key": Method.KEY,
    "certificate_roots": Method.CERTIFICATE,
    "trust_root": Method.KEYLESS,
}
_KEYS = frozenset({"prefix", "require", "identity", "issuer", *_PATHS})


class Require(StrEnum):
    """What a rule asks for."""

    REQUIRED = "required"
    IF_PRESENT = "if-present"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row. `place` is the prefix as `spelling.py` has it, with a slash if it was given one."""

    prefix: str
    place: str
    require: Require
    method: Method | None = None
    files: tuple[Path, ...] = ()
    identity: str = ""
    issuer: str = ""
    alias: str = ""
    """Another place that the prefix may be about."""

    def binds(self, place: str) -> bool:
        """Whether the rule is about a place; see the module."""
        if self.place == EVERYWHERE:
            return True
        ours = [name for name in (self.place, self.alias) if name]
        if self.require is not Require.REQUIRED:
            ours = [name.rstrip("/") + "/" for name in ours]
        return f"{place.rstrip('/')}/".startswith(tuple(ours)) or place in ours

    def may_bind(self, place: str) -> bool:
        """Whether the rule asks for something below a place that ends with a slash."""
        return self.require is not Require.IGNORE and self.place.startswith(place)

    def trust(self) -> Trust:
        """Read whom to trust.

        Raises:
            SignatureError: a file cannot be read.
        """
        assert self.method is not None, "asked only where signatures count"
        return Trust(self.method, tuple(map(_read, self.files)), self.identity, self.issuer)


def rule_for(rules: Iterable[Rule], places: Iterable[str]) -> Rule | None:
    """The rule that binds one of the names of a place; of several, that of the longest prefix."""
    names = tuple(places)
    found = [rule for rule in rules if any(rule.binds(name) for name in names)]
    return max(found, key=_weight, default=None)


def _strictness(rule: Rule) -> tuple[bool, int]:
    return rule.require is Require.REQUIRED, _weight(rule)


def _weight(rule: Rule) -> int:
    return 0 if rule.place == EVERYWHERE else len(rule.place.rstrip("/"))


# --- reading the table ------------------------------------------------------------------------


def parse_rules(
    table: object, folder: Path, endpoints: Endpoints = NO_ENDPOINTS
) -> tuple[Rule, ...]:
    """Read the rows; paths in them are relative to `folder`.

    Raises:
        ConfigError: names the row, and what is wrong with it.
    """
    if not isinstance(table, list):
        raise ConfigError(f"{TABLE!r} is a list of tables: write [[{TABLE}]]")
    rows = cast("list[object]", table)
    if len(rows) > RULES_MAX:
        raise ConfigError(f"[[{TABLE}]] has {len(rows)} rows, more than {RULES_MAX}")
    rules: dict[str, Rule] = {}
    for number, row in enumerate(rows, start=1):
        where = f"row {number} of [[{TABLE}]]"
        if not isinstance(row, dict):
            raise ConfigError(f"{where} is no table")
        rule = _parsed(cast("dict[str, object]", row), where, folder, endpoints)
        name = rule.place.rstrip("/")
        if name in rules:
            raise ConfigError(f"{where} is about {rule.prefix}, and so is {rules[name].prefix}")
        rules[name] = rule
    return tuple(rules.values())


def _parsed(row: dict[str, object], where: str, folder: Path, endpoints: Endpoints) -> Rule:
    if unknown := sorted(row.keys() - _KEYS):
        known = ", ".join(sorted(_KEYS))
        raise ConfigError(f"{where} has an unknown key {unknown[0]!r}; known are {known}")
    prefix = _text(row, "prefix", where)
    try:
        require = Require(_text(row, "require", where))
    except ValueError:
        raise ConfigError(f"{where}: require is one of {', '.join(Require)}") from None
    place = _place(prefix, where, endpoints)
    named = [key for key in _PATHS if key in row]
    if require is Require.IGNORE:
        if len(row) > 2:
            raise ConfigError(f"{where} ignores signatures, and says whom to trust")
        return Rule(prefix, place, require, alias=official(place))
    if len(named) != 1:
        raise ConfigError(f"{where} names one of {', '.join(_PATHS)}: whom to trust")
    method = _PATHS[named[0]]
    is_keyless = method is Method.KEYLESS
    if any((key in row) != is_keyless for key in ("identity", "issuer")):
        raise ConfigError(f"{where}: identity, issuer and trust_root go together")
    given = row[named[0]]
    paths: list[object] = (
        cast("list[object]", given) if method is Method.KEY and isinstance(given, list) else [given]
    )
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise ConfigError(f"{where}: {named[0]} is the path of a file")
    files = tuple(folder / str(path) for path in paths)
    if not is_keyless:
        return Rule(prefix, place, require, method, files, alias=official(place))
    identity, issuer = _text(row, "identity", where), _text(row, "issuer", where)
    return Rule(prefix, place, require, method, files, identity, issuer, official(place))


def _text(row: dict[str, object], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where} lacks {key}, which is text")
    return value


def _place(prefix: str, where: str, endpoints: Endpoints) -> str:
    if prefix == EVERYWHERE:
        return EVERYWHERE
    if prefix.endswith("://"):
        return prefix.lower()
    try:
        ref = Ref.parse(prefix)
    except UsageError as exc:
        raise ConfigError(
            f"{where}: the prefix {prefix[:200]!r} is no ref, nor {EVERYWHERE}"
        ) from exc
    if ref.pin is not None or ref.query:
        raise ConfigError(f"{where}: a prefix has neither a query nor a pin")
    place = prefix_spelling(ref, endpoints)
    return f"{place}/" if prefix.endswith("/") and not place.endswith("/") else place


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(TRUSTED_BYTES_MAX + 1)
    except OSError as exc:
        raise SignatureError(f"reading {file}, which says whom to trust") from exc
    if not data or len(data) > TRUSTED_BYTES_MAX:
        raise SignatureError(f"{file} has {len(data)} bytes or more: it says nobody to trust")
    return data


# --- keeping up with it -----------------------------------------------------------------------


class Rules:
    """The rules as they are now. Any thread may ask; asking looks at the file, so it blocks."""

    def __init__(
        self,
        rules: Sequence[Rule] = (),
        file: Path | None = None,
        endpoints: Endpoints = NO_ENDPOINTS,
    ) -> None:
        self._rules = tuple(rules)
        self._file = file
        self._endpoints = endpoints
        self._state: object = None
        self._lock = Lock()
        self.trouble = ""
        """Why the file was not read; empty while it is."""

    @classmethod
    def of(cls, file: Path | None, endpoints: Endpoints = NO_ENDPOINTS) -> "Rules":
        """Begin with what a configuration file has.

        Raises:
            ConfigError: it is broken.
        """
        rules = () if file is None else read_rules(file, endpoints)
        if any(rule.method for rule in rules) and not is_installed():
            # Not an error: the node serves what no rule is about.
            logger.warning("signatures.not_verifiable", extra={"advice": INSTALL})
        return cls(rules, file, endpoints)

    def rule_for(self, ref: Ref) -> Rule | None:
        """The rule for a ref; None: nobody cares for signatures there.

        Raises:
            SignatureError: it cannot be told which of several rules it is.
        """
        self._look()
        names = spellings(ref, self._endpoints)
        if ref.scheme == "file":
            real = os.path.realpath(ref.local_path)
            link = "/".join(["file://", *(name for name in real.split("/") if name)])
            found = [rule_for(self._rules, {*names, link})]
        else:
            found = [rule_for(self._rules, [name]) for name in names]
        below = tuple(name for name in names if name.endswith("/"))
        possible = [rule for rule in self._rules if any(map(rule.may_bind, below))]
        if len(possible) > 1:
            raise SignatureError(
                f"{ref.safe} is not accepted: it may be what the rule for {possible[0].prefix} is"
                f" about, or that for {possible[1].prefix}"
            )
        asking = [
            rule
            for rule in (*found, *possible)
            if rule is not None and rule.require is not Require.IGNORE
        ]
        return max(asking, key=_strictness, default=None)

    def all(self) -> tuple[Rule, ...]:
        """Every rule."""
        self._look()
        return self._rules

    def _look(self) -> None:
        if self._file is None:
            return
        with self._lock:
            state: object
            try:
                found = self._file.stat()
                state = (found.st_mtime_ns, found.st_size, found.st_ino)
                if state == self._state:
                    return
                self._rules = read_rules(self._file, self._endpoints)
            except (ConfigError, OSError) as exc:
                state = (type(exc), str(exc))
                self.trouble = f"{self._file}: {exc}"
                if state != self._state:
                    logger.warning("signatures.unread", extra={"error": exc, "rules": "the old"})
            else:
                self.trouble = ""
                logger.info("signatures.read", extra={"rules": len(self._rules)})
            self._state = state


def read_rules(file: Path, endpoints: Endpoints = NO_ENDPOINTS) -> tuple[Rule, ...]:
    """Read the table from a configuration file; one without it has no rules.

    Raises:
        ConfigError: it cannot be read, or is broken.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise ConfigError(f"{file} is longer than {FILE_BYTES_MAX} bytes")
        tables = tomllib.loads(data.decode())
    except (OSError, ValueError) as exc:
        raise ConfigError(f"reading the configuration {file}") from exc
    return parse_rules(tables.get(TABLE, []), file.parent, endpoints)
