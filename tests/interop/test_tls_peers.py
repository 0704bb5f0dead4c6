"""Agents that speak TLS: with each other, with strangers, and with nobody else."""

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from damselfly.errors import ConfigError, PeerUnavailableError, explain
from damselfly.p2p.transport import (
    CertificateFiles,
    Certificates,
    Limits,
    PeerPool,
    PeerServer,
    certificates as certificates_module,
)
from tests.fakes.authority import NAME, Authority, Issued
from tests.fakes.peers import Library, address_of, nobody_else, until

CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def library() -> Iterator[Library]:
    with Library(CONTENT) as library:
        yield library
        assert library.running == 0


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def ours(authority: Authority, tmp_path: Path) -> Certificates:
    return Certificates(authority.write(tmp_path / "ours"))


class Serving:
    """A server with TLS, and what a pool gets from it."""

    def __init__(self, library: Library, certificates: Certificates | None) -> None:
        self.server = PeerServer(library, Limits(handshake_s=1.0), certificates)

    async def __aenter__(self) -> Self:
        await self.server.start("127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.close()
        await until(nobody_else)

    async def answers(self, certificates: Certificates | None) -> int:
        """Ask once, with a pool of its own; raises what the pool does."""
        pool = PeerPool(Limits(connect_s=1.0), certificates)
        try:
            reply = await pool.request(
                address_of(self.server), "GET", "/file?start=0&stop=9", deadline_s=5
            )
            assert reply.body == CONTENT[:9]
            return reply.status
        finally:
            await pool.close()

    async def refusal(self, certificates: Certificates | None) -> str:
        """Ask once, and be refused: how that is told."""
        with pytest.raises(PeerUnavailableError) as caught:
            await self.answers(certificates)
        return explain(caught.value)


async def test_agents_of_one_authority_speak(library: Library, ours: Certificates) -> None:
    async with Serving(library, ours) as serving:
        assert await serving.answers(ours) == 200


async def test_nobody_falls_back_to_plain(library: Library, ours: Certificates) -> None:
    async with Serving(library, ours) as secure:
        assert "connection" in await secure.refusal(None)
    async with Serving(library, None) as plain:
        assert "does not speak TLS" in await plain.refusal(ours)


async def test_a_stranger_with_another_authority_is_refused_by_both(
    library: Library, ours: Certificates, tmp_path: Path
) -> None:
    theirs = Certificates(Authority("another").write(tmp_path / "theirs"))

    async with Serving(library, ours) as serving:
        assert "certificate is not believed" in await serving.refusal(theirs)
    assert library.opened == 0


async def test_a_stranger_that_believes_us_is_refused_all_the_same(
    library: Library, ours: Certificates, authority: Authority, tmp_path: Path
) -> None:
    theirs = Authority("another")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    files = theirs.write(tmp_path / "theirs")
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(cadata=authority.pem.decode())
    context.check_hostname = False

    async with Serving(library, ours) as serving:
        for each in (context, _without_certificate(context)):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.to_thread(_read, each, serving.server.port)


def _without_certificate(like: ssl.SSLContext) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(like.get_ca_certs(True)[0]))
    return context


def _read(context: ssl.SSLContext, port: int) -> bytes:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as sock,
        context.wrap_socket(sock) as secure,
    ):
        return secure.recv(1) or _hung_up()


def _hung_up() -> bytes:
    raise ConnectionError("hung up")


async def test_tls_12_is_not_spoken(
    library: Library, ours: Certificates, authority: Authority, tmp_path: Path
) -> None:
    files = authority.write(tmp_path / "theirs")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(cafile=files.authority)
    context.check_hostname = False
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    async with Serving(library, ours) as serving:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(_read, context, serving.server.port)


@pytest.mark.parametrize(
    ("names", "patterns", "is_ours"),
    [
        ((NAME,), (), True),
        (("other.damselfly.test",), (), False),
        (("node-7.agents.test",), ("*.agents.test",), True),
        (("node-7.agents.test.evil",), ("*.agents.test",), False),
        (("spiffe://cluster/ns/models/sa/damselfly",), ("spiffe://cluster/ns/models/sa/*",), True),
        (("spiffe://cluster/ns/other/sa/damselfly",), ("spiffe://cluster/ns/models/sa/*",), False),
        (("127.0.0.1",), ("127.0.0.1",), False),
        ((), ("*",), False),
    ],
)
async def test_a_peer_is_known_by_a_name_that_the_authority_signed(
    library: Library,
    authority: Authority,
    tmp_path: Path,
    names: tuple[str, ...],
    patterns: tuple[str, ...],
    is_ours: bool,
) -> None:
    wanted = patterns or (NAME,)
    theirs = Certificates(
        authority.write(tmp_path / "theirs", authority.issue(*names)), (*wanted, NAME, "*")
    )
    ours = Certificates(authority.write(tmp_path / "ours"), patterns)

    async with Serving(library, theirs) as serving:
        if is_ours:
            assert await serving.answers(ours) == 200
        else:
            assert f"peers are {', '.join(wanted)}" in await serving.refusal(ours)
    async with Serving(library, ours) as serving:
        if is_ours:
            assert await serving.answers(theirs) == 200
        else:
            assert "connection" in await serving.refusal(theirs)
    assert library.opened == (2 if is_ours else 0)


async def test_new_files_count_for_new_connections_and_open_ones_go_on(
    library: Library, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates_module, "LOOK_INTERVAL_S", 0.0)
    folder = tmp_path / "tls"
    certificates = Certificates(authority.write(folder))
    old = Certificates(authority.write(tmp_path / "old"))
    renewed = Authority("the next")

    async with Serving(library, certificates) as serving:
        pool = PeerPool(None, old)
        address = address_of(serving.server)
        assert (await pool.request(address, "GET", "/file?stop=9", deadline_s=5)).status == 200

        renewed.write(folder)

        assert (await pool.request(address, "GET", "/file?stop=9", deadline_s=5)).status == 200
        assert pool.connection_count == 1
        assert await serving.answers(certificates) == 200
        assert "is not believed" in await serving.refusal(old)
        await pool.close()


async def test_files_that_cannot_be_used_leave_the_old_ones(
    library: Library,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(certificates_module, "LOOK_INTERVAL_S", 0.0)
    files = authority.write(tmp_path / "tls")
    certificates = Certificates(files)
    caplog.set_level("INFO")

    async with Serving(library, certificates) as serving:
        files.key.write_bytes(authority.issue(NAME).key)  # Half of a renewal.
        assert await serving.answers(certificates) == 200
        files.certificate.unlink()
        assert await serving.answers(certificates) == 200
        authority.write(tmp_path / "tls")
        assert await serving.answers(certificates) == 200

    told = [record.message for record in caplog.records]
    assert told.count("certificates.unusable") == 2
    assert told.count("certificates.loaded") == 1


def _swapped(files: CertificateFiles, authority: Authority) -> None:
    files.key.write_bytes(authority.issue(NAME).key)


def _junk(files: CertificateFiles, _: Authority) -> None:
    files.authority.write_bytes(b"junk")


def _old(files: CertificateFiles, authority: Authority) -> None:
    authority.write(files.key.parent, authority.issue(NAME, hours=-1))


def _foreign(files: CertificateFiles, _: Authority) -> None:
    issued: Issued = Authority("another").issue(NAME)
    files.certificate.write_bytes(issued.certificate)
    files.key.write_bytes(issued.key)


def _nameless(files: CertificateFiles, authority: Authority) -> None:
    authority.write(files.key.parent, authority.issue())


def _keyless(files: CertificateFiles, _: Authority) -> None:
    files.key.unlink()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_swapped, "tls.crt and its key"),
        (_junk, "loading the authority's certificate"),
        (_old, "certificate has expired"),
        (_foreign, "peers would not believe the certificate"),
        (_nameless, "no DNS name and no URI"),
        (_keyless, "looking for the certificates"),
    ],
)
def test_what_peers_would_refuse_is_refused_at_the_start(
    authority: Authority,
    tmp_path: Path,
    spoil: Callable[[CertificateFiles, Authority], None],
    told: str,
) -> None:
    files = authority.write(tmp_path / "tls")
    spoil(files, authority)

    with pytest.raises(ConfigError) as caught:
        Certificates(files)
    assert told in explain(caught.value)


async def test_who_does_not_shake_hands_is_sent_away(library: Library, ours: Certificates) -> None:
    async with Serving(library, ours) as serving:
        idle = [socket.create_connection(("127.0.0.1", serving.server.port)) for _ in range(20)]
        try:
            assert await serving.answers(ours) == 200
            for sock in idle:
                sock.setblocking(False)
                assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
        finally:
            for sock in idle:
                sock.close()


async def test_curl_fetches_over_tls(
    library: Library, ours: Certificates, authority: Authority, tmp_path: Path
) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    files = authority.write(tmp_path / "curl")
    async with Serving(library, ours) as serving:
        port = serving.server.port
        command = [curl, "--silent", "--show-error", "--fail", "--http2", "--tlsv1.3"]
        command += ["--cert", str(files.certificate), "--key", str(files.key)]
        command += ["--cacert", str(files.authority), "--resolve", f"{NAME}:{port}:127.0.0.1"]
        command += ["--write-out", "%{stderr}%{http_version}"]
        command += [f"https://{NAME}:{port}/file?start=0&stop=1000000"]
        version, data = await asyncio.to_thread(_output, command)

    assert version == b"2"
    assert data == CONTENT[:1_000_000]


def _output(command: list[str]) -> tuple[bytes, bytes]:
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr, done.stdout
