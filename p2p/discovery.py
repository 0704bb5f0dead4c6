"""Where the addresses of agents come from: a list, a file, or a DNS name.

A source is asked again and again; it answers with what it sees now. An unreadable file or an
unanswered name keeps the last answer, because an outage of discovery must not dissolve the swarm.
"""

import asyncio
import logging
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from damselfly.errors import ConfigError

logger = logging.getLogger(__name__)


class PeerSource(Protocol):
    """Something that lists addresses (`host:port`)."""

    poll_interval_s: float

    async def addresses(self) -> frozenset[str]:
        """What is listed now; the last good answer when it cannot be known."""
        ...


@dataclass(slots=True)
class StaticPeers:
    """A list that never changes."""

    listed: frozenset[str]
    poll_interval_s: float = 3600.0

    async def addresses(self) -> frozenset[str]:
        """Return the list."""
        return self.listed


class FilePeers:
    """A file with one address per line; `#` begins a comment. Read again when it changes."""

    poll_interval_s = 0.5

    def __init__(self, path: Path) -> None:
        self._path = path
        self._signature: tuple[int, int, int] | None = None
        self._listed: frozenset[str] = frozenset()

    async def addresses(self) -> frozenset[str]:
        """Read the file if its size, time or inode differ from the last time."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> frozenset[str]:
        try:
            status = self._path.stat()
            signature = (status.st_mtime_ns, status.st_size, status.st_ino)
            if signature == self._signature:
                return self._listed
            text = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            if self._signature is not None:
                logger.warning("peers.unreadable", extra={"path": str(self._path), "error": exc})
                self._signature = None
            return self._listed
        addresses: set[str] = set()
        for number, line in enumerate(text.splitlines(), start=1):
            address = line.partition("#")[0].strip()
            if not address:
                continue
            try:
                addresses.add(check_address(address))
            except ConfigError as exc:
                logger.warning(
                    "peers.line_ignored",
                    extra={"path": str(self._path), "line": number, "error": str(exc)},
                )
        self._signature = signature
        self._listed = frozenset(addresses)
        return self._listed


class DNSPeers:
    """Every address that a name resolves to (a headless Service), with one port."""

    poll_interval_s = 5.0

    def __init__(self, name: str, port: int) -> None:
        self._name = name
        self._port = port
        self._listed: frozenset[str] = frozenset()

    async def addresses(self) -> frozenset[str]:
        """Resolve the name."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._name, self._port, type=socket.SOCK_STREAM)
        except OSError as exc:
            logger.warning("peers.unresolved", extra={"name": self._name, "error": str(exc)})
            return self._listed
        self._listed = frozenset(join_address(str(entry[4][0]), self._port) for entry in found)
        return self._listed


def check_address(text: str) -> str:
    """Check `host:port` or `[v6]:port` and return it.

    Raises:
        ConfigError: it is something else.
    """
    host, port = split_address(text)
    return join_address(host, port)


def split_address(text: str) -> tuple[str, int]:
    """Split `host:port` or `[v6]:port`.

    Raises:
        ConfigError: it is something else.
    """
    host, separator, digits = text.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if is_bracketed else host
    if (
        not separator
        or not bare
        or (":" in bare) != is_bracketed
        or any(char.isspace() or char in "/@" for char in bare)
        or not (digits.isascii() and digits.isdigit() and 0 <= int(digits) < 65536)
    ):
        raise ConfigError(f"{text!r} is not an address: expected HOST:PORT")
    return bare, int(digits)


def join_address(host: str, port: int) -> str:
    """The inverse of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
