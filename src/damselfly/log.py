"""Logs: one line per unit of work, JSON for machines and pretty for people.

How to log: the message is the event, `noun.participle`, and everything else is a field with its
unit in its name:

    logger = logging.getLogger(__name__)
    logger.info("artifact.completed", extra={"artifact": str(digest), "bytes": n, "seconds": s})
    logger.warning("peer.lost", extra={"peer": agent, "error": exc})

An exception in a field is told by `explain`. DEBUG is each chunk, INFO a change of an artifact, a
lease, a peer or the agent itself, WARNING is what we coped with, ERROR needs somebody to act.
Secrets are taken out here, at the formatter, whoever wrote them: userinfo and query strings of
URLs, Authorization headers, and every field whose name says that it is a secret. Field names that
`logging` has taken (`name`, `msg`, `args`, `process`, ...) are refused by `logging` itself.
"""

import json
import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, cast

from damselfly.errors import explain

HANDLER_NAME = "damselfly"
LINE_CHARS_MAX = 64 * 1024
_LIBRARIES = (
    *("aiohttp", "asyncio", "azure", "botocore", "fsspec", "google", "grpc", "hpack"),
    *("msal", "paramiko", "urllib3"),
)

# What a record has anyway; the rest of its attributes are our fields.
_TAKEN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_USERINFO = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#@\"']*@")
_QUERY = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*://[^\s?#\"'<>]*)\?[^\s#\"'<>]*")
_TARGET_QUERY = re.compile(r"((?:GET|HEAD|POST|PUT) /[^\s?\"']*)\?[^\s\"']*")
_AUTHORIZATION = re.compile(
    r"(?i)((?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?)(?:(?:bearer|basic|digest|aws4-\S+)\s+)?[^\s\"',;]+"
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/-]{8,}=*")
_ASSIGNED = re.compile(
    r"(?i)\b([a-z0-9_-]*(?:token|secret|password|passwd|api[_-]?key|access[_-]?key|signature|"
    r"credential)s?[\"']?\s*[=:]\s*[\"']?)[^\s\"'&,;]+"
)
_SECRET_NAME = re.compile(
    r"(?i)token|secret|password|passwd|authorization|cookie|api_?key|access_?key|credential"
)
HIDDEN = "[hidden]"


def redact(text: str) -> str:
    """Take secrets out of text that will be seen: logs, errors, what the socket answers."""
    if "://" in text:
        text = _USERINFO.sub(r"\1", text)
        text = _QUERY.sub(rf"\1?{HIDDEN}", text)
    if "?" in text:
        text = _TARGET_QUERY.sub(rf"\1?{HIDDEN}", text)
    text = _AUTHORIZATION.sub(rf"\1{HIDDEN}", text)
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    return _ASSIGNED.sub(rf"\1{HIDDEN}", text)


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    for name, value in vars(record).items():
        if name not in _TAKEN and not name.startswith("_"):
            yield name, HIDDEN if _SECRET_NAME.search(name) else _plain(value)


def _plain(value: object) -> object:
    """A value as JSON has it, without secrets."""
    match value:
        case None | bool() | int() | float():
            return value
        case BaseException():
            return redact(explain(value))
        case dict():
            return {
                str(key): HIDDEN if _SECRET_NAME.search(str(key)) else _plain(item)
                for key, item in cast("dict[object, object]", value).items()
            }
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in cast("Iterable[object]", value)]
        case _:
            return redact(str(value))


class JSONFormatter(logging.Formatter):
    """One JSON object per line: `time`, `level`, `event`, `logger`, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": redact(record.getMessage()),
            "logger": record.name,
        }
        line.update((name, value) for name, value in _fields(record) if name not in line)
        if trace := _trace(self, record):
            line["traceback"] = trace
        text = json.dumps(line, default=str)
        if len(text) <= LINE_CHARS_MAX:
            return text
        kept = {name: line[name] for name in ("time", "level", "event", "logger")}
        return json.dumps({**kept, "truncated": text[: LINE_CHARS_MAX // 2]})


_COLOURS = {"DEBUG": "2", "INFO": "36", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


class PrettyFormatter(logging.Formatter):
    """Time, level, event, `field=value`: for a terminal."""

    def __init__(self, *, is_coloured: bool) -> None:
        super().__init__()
        self._is_coloured = is_coloured

    def format(self, record: logging.LogRecord) -> str:
        """Write one line, and a traceback below it if there is one."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        parts = [
            self._colour("2", f"{clock}.{int(record.msecs):03d}"),
            self._colour(_COLOURS.get(record.levelname, "0"), f"{record.levelname.lower():7}"),
            _shown(redact(record.getMessage())),
        ]
        parts += [
            self._colour("2", f"{name}=") + _shown(value, quoted=True)
            for name, value in _fields(record)
        ]
        line = " ".join(parts)
        trace = _trace(self, record)
        return f"{line}\n{trace}" if trace else line

    def _colour(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._is_coloured else text


def _shown(value: object, *, quoted: bool = False) -> str:
    """A value for people: in quotes if it would not end, escaped if it commands terminals."""
    if isinstance(value, str) and value.isprintable():
        is_word = value and not re.search(r"[\s\"'=]", value)
        return value if is_word or not quoted else json.dumps(value, ensure_ascii=False)
    return json.dumps(value, default=str)


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts: list[str] = []
    if record.exc_info:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(record.stack_info)
    return redact("\n".join(parts))


def configure(
    level: str = "info", fmt: str = "auto", stream: TextIO | None = None
) -> logging.Handler:
    """Send every logger's lines to `stream` (stderr), and nothing anywhere else.

    `fmt` is `json`, `pretty` or `auto`. Returns the handler, which
    `logging.getLogger().removeHandler` takes away again.
    """
    target = stream or sys.stderr
    assert target is not None, "a process without stderr has nobody to tell"
    is_terminal = target.isatty()
    if fmt == "auto":
        fmt = "pretty" if is_terminal else "json"
    assert fmt in {"json", "pretty"}
    handler = logging.StreamHandler(target)
    handler.name = HANDLER_NAME
    handler.setFormatter(
        JSONFormatter() if fmt == "json" else PrettyFormatter(is_coloured=is_terminal)
    )
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if handler.name == HANDLER_NAME]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # Libraries tell at INFO what our own lines tell better, and SDKs of clouds secrets at DEBUG.
    for library in _LIBRARIES:
        logging.getLogger(library).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(capture=True)
    return handler
