"""Who we are to other agents, and whom we believe to be one: TLS 1.3, both sides with certificates.

The three files may change at any time (cert-manager renews them long before they end, the kubelet
swaps a link): connections made after that use the new ones, those that are open go on. Files that
cannot be used, perhaps because they are half-written, leave the old ones in place.

An agent is one of ours if the authority signed its certificate and one of the certificate's names
(DNS, or URI for SPIFFE) fits one of the patterns. Its address is not looked at: pods change theirs.
By default the patterns are the names of our own certificate, for agents of a DaemonSet share one.
"""

import contextlib
import fnmatch
import logging
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from damselfly.errors import ConfigError, PeerUnavailableError, explain

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0
"""How often the files are looked at, at most: every dial and every accepted connection asks."""
_PROTOCOL = "h2"
_KINDS = frozenset({"DNS", "URI"})
_STATE = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class CertificateFiles:
    """Where the certificate with its chain, its key, and the authority's certificate lie (PEM)."""

    certificate: Path
    key: Path
    authority: Path

    def state(self) -> _STATE:
        """What changes whenever a file does.

        Raises:
            OSError: one cannot be looked at.
        """
        states = [path.stat() for path in (self.certificate, self.key, self.authority)]
        return tuple((each.st_ino, each.st_size, each.st_mtime_ns) for each in states)


class Certificates:
    """The agent's certificates, as the files now have them. Belongs to one event loop.

    `names` are the patterns (`*` and `?` stand for anything) that the name of a peer has to fit;
    empty: the names of our own certificate.
    """

    def __init__(self, files: CertificateFiles, names: Sequence[str] = ()) -> None:
        """Read the files.

        Raises:
            ConfigError: they cannot be used; says which and why.
        """
        self._files = files
        self._patterns = tuple(names)
        self._looked_s = time.monotonic()
        try:
            self._state: _STATE | None = files.state()
        except OSError as exc:
            raise ConfigError("looking for the certificates of TLS") from exc
        self._loaded = _loaded(files, is_named=bool(names))

    def __repr__(self) -> str:
        return f"<Certificates {self._files.certificate}: {', '.join(self.names)}>"

    @property
    def names(self) -> tuple[str, ...]:
        """The patterns that a peer's name has to fit."""
        return self._patterns or self._loaded.names

    @property
    def ends_s(self) -> float:
        """When our certificate ends, in seconds since 1970."""
        return self._loaded.ends_s

    def server(self) -> ssl.SSLContext:
        """The context for connections that are accepted now."""
        self._look()
        return self._loaded.server

    def client(self) -> ssl.SSLContext:
        """The context for connections that are dialled now."""
        self._look()
        return self._loaded.client

    def check(self, sock: ssl.SSLSocket, who: str) -> None:
        """Check whom we have shaken hands with.

        Raises:
            PeerUnavailableError: it is none of ours, or speaks no HTTP/2.
        """
        found = _names_of(sock.getpeercert())
        if not any(fnmatch.fnmatchcase(name, each) for name in found for each in self.names):
            said = ", ".join(found[:4])[:200] or "no name at all"
            raise PeerUnavailableError(
                f"{who} has a certificate for {said}: peers are {', '.join(self.names)[:200]}"
            )
        if sock.selected_alpn_protocol() != _PROTOCOL:
            raise PeerUnavailableError(f"{who} speaks TLS, and no HTTP/2 in it")

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_s < LOOK_INTERVAL_S:
            return
        self._looked_s = now
        try:
            state = self._files.state()
        except OSError:
            state = None
        if state == self._state:
            return
        self._state = state
        try:
            self._loaded = _loaded(self._files, is_named=bool(self._patterns))
        except ConfigError as exc:
            logger.warning("certificates.unusable", extra={"error": explain(exc)})
        else:
            logger.info("certificates.loaded", extra={"names": ",".join(self.names)})


@dataclass(frozen=True)
class _Loaded:
    server: ssl.SSLContext
    client: ssl.SSLContext
    names: tuple[str, ...]
    ends_s: float


def _loaded(files: CertificateFiles, *, is_named: bool) -> _Loaded:
    """Make contexts of the files, and try them on each other: what we refuse, peers would.

    Raises:
        ConfigError: they cannot be used; says which and why.
    """
    server = _context(ssl.PROTOCOL_TLS_SERVER, files)
    server.num_tickets = 0  # Connections live long: nobody resumes one.
    client = _context(ssl.PROTOCOL_TLS_CLIENT, files)
    try:
        found = _shaken(server, client)
    except ssl.SSLError as exc:
        reason = getattr(exc, "verify_message", "") or exc.reason
        raise ConfigError(
            f"peers would not believe the certificate {files.certificate}, signed by"
            f" {files.authority}: {reason}"
        ) from exc
    names = _names_of(found)
    if not names and not is_named:
        raise ConfigError(
            f"the certificate {files.certificate} has no DNS name and no URI by which peers could"
            " be told: give --tls-names"
        )
    return _Loaded(server, client, names, ssl.cert_time_to_seconds(str(found["notAfter"])))


def _context(protocol: int, files: CertificateFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False  # `Certificates.check` looks at the name.
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols([_PROTOCOL])
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"loading the certificate {files.certificate} and its key {files.key}"
        ) from exc
    try:
        context.load_verify_locations(cafile=files.authority)
    except OSError as exc:
        raise ConfigError(f"loading the authority's certificate {files.authority}") from exc
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted, and nobody is here to type its password")


def _shaken(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, Any]:
    """Shake hands with ourselves, in memory; returns what a peer would see of our certificate."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(back, there)
    answering = server.wrap_bio(there, back, server_side=True)
    for _ in range(4):  # Flights of TLS 1.3: hello, answer, finished; and what is left.
        for side in (asking, answering):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return cast("dict[str, Any]", answering.getpeercert())


def _names_of(found: Mapping[str, Any] | None) -> tuple[str, ...]:
    pairs = cast("tuple[tuple[str, str], ...]", (found or {}).get("subjectAltName", ()))
    return tuple(name for kind, name in pairs if kind in _KINDS)
