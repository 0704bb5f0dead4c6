"""Where the addresses of agents come from: a list, a file, or a DNS name.

A source tells what it sees, first and whenever that changes. An unreadable file or an unanswered
name keeps the last answer, because an outage of discovery must not dissolve the swarm.
`kubernetes/peers.py` has one more.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from damselfly.errors import ConfigError
from damselfly.p2p.address import check_address, join_address

logger = logging.getLogger(__name__)


class PeerSource(Protocol):
    """Something that lists addresses (`host:port`)."""

    def changes(self) -> AsyncGenerator[frozenset[str]]:
        """What is listed: once it is known, and again whenever it has changed.

        It ends when nothing can change any more, and raises nothing. Close it when done.
        """
        ...


@dataclass(frozen=True, slots=True)
class StaticPeers:
    """A list that never changes."""

    listed: frozenset[str]

    async def changes(self) -> AsyncGenerator[frozenset[str]]:
        """Tell the list."""
        yield self.listed


class FilePeers:
    """A file with one address per line; `#` begins a comment. Read again when it changes."""

    def __init__(self, path: Path, *, poll_interval_s: float = 0.5) -> None:
        """Prepare to read. Looking twice a second costs nothing, and works on every file system."""
        self._path = path
        self._poll_interval_s = poll_interval_s
        self._signature: tuple[int, int, int] | None = None
        self._is_unreadable = False
        self._listed: frozenset[str] | None = None

    async def changes(self) -> AsyncGenerator[frozenset[str]]:
        """Tell what the file lists, whenever its size, time or inode differ from the last time."""
        told: frozenset[str] | None = None
        while True:
            listed = await asyncio.to_thread(self._read)
            if listed is not None and listed != told:
                told = listed
                yield listed
            await asyncio.sleep(self._poll_interval_s)

    def _read(self) -> frozenset[str] | None:
        try:
            status = self._path.stat()
            signature = (status.st_mtime_ns, status.st_size, status.st_ino)
            if signature == self._signature:
                return self._listed
            text = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            if not self._is_unreadable:
                logger.warning("peers.unreadable", extra={"path": str(self._path), "error": exc})
            self._is_unreadable = True
            self._signature = None
            return self._listed
        self._is_unreadable = False
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

    def __init__(
        self, name: str, port: int, *, poll_interval_s: float = 5.0, young_interval_s: float = 0.5
    ) -> None:
        """Prepare to resolve. Records of a cluster live for 5 s or more: sooner brings nothing.

        But agents start together, and none of them may be listed yet: until somebody is, and for
        the first `poll_interval_s`, the name is resolved every `young_interval_s`.
        """
        self._name = name
        self._port = port
        self._poll_interval_s = poll_interval_s
        self._young_interval_s = young_interval_s

    async def changes(self) -> AsyncGenerator[frozenset[str]]:
        """Resolve the name again and again; tell what is new."""
        loop = asyncio.get_running_loop()
        told: frozenset[str] | None = None
        grown_s = loop.time() + self._poll_interval_s
        while True:
            try:
                found = await loop.getaddrinfo(self._name, self._port, type=socket.SOCK_STREAM)
            except OSError as exc:
                logger.warning("peers.unresolved", extra={"host": self._name, "error": str(exc)})
            else:
                listed = frozenset(join_address(str(each[4][0]), self._port) for each in found)
                if listed != told:
                    told = listed
                    yield listed
            is_young = not told or loop.time() < grown_s
            await asyncio.sleep(self._young_interval_s if is_young else self._poll_interval_s)
