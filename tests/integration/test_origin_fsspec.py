"""Filesystems that fsspec knows: a real FTP server, and one of the tests that misbehaves."""

import asyncio
import contextlib
import importlib
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from damselfly.errors import (
    ConfigError,
    HeaderError,
    ManifestError,
    OriginChangedError,
    OriginDeniedError,
    OriginNotFoundError,
    OriginUnavailableError,
    RemoteProtocolError,
    UsageError,
    explain,
)
from damselfly.model.plan import Plan
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS, OWN, Access
from damselfly.origin.clouds import REFUSED, Clouds, check_scheme
from damselfly.origin.fsspec import version_of
from damselfly.origin.port import Origin, OriginLimits
from damselfly.origin.push import push
from damselfly.origin.registry import Origins
from tests.integration.origin_servers import write_model

fsspec: Any = importlib.import_module("fsspec")  # It has no types.
if TYPE_CHECKING:

    class AbstractFileSystem:
        _cache: ClassVar[dict[object, object]]

        def __init__(self, **options: object) -> None: ...

else:
    AbstractFileSystem = fsspec.AbstractFileSystem

SECRET = "planted-secret"


class _Shelf(AbstractFileSystem):
    """A filesystem of the tests. What it has and how it fails, all instances have in common."""

    protocol = "shelf"
    files: ClassVar[dict[str, bytes]] = {}
    versions: ClassVar[dict[str, int]] = {}
    error: ClassVar[Exception | None] = None
    surplus: ClassVar[bytes] = b""
    odd: ClassVar[list[dict[str, object]]] = []
    made: ClassVar[list[dict[str, object]]] = []
    threads: ClassVar[set[int]] = set()
    waits: ClassVar[threading.Event | None] = None

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.made.append(options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("shelf://").partition("/")[2].strip("/")

    def info(self, path: str, **_: object) -> dict[str, object]:
        self.threads.add(threading.get_ident())
        if self.waits is not None:
            self.waits.wait()
        if self.error is not None:
            raise self.error
        if path in self.files:
            return {
                "name": path,
                "size": len(self.files[path]),
                "type": "file",
                "ETag": f"v{self.versions.get(path, 0)}",
            }
        if any(name.startswith(path.rstrip("/") + "/") for name in self.files):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path: str, detail: bool = True, **_: object) -> list[dict[str, object]]:
        base = path.rstrip("/") + "/"
        below = {name[len(base) :].split("/")[0] for name in self.files if name.startswith(base)}
        return [self.info(base + name) for name in sorted(below)] + self.odd

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: object
    ) -> bytes:
        if self.error is not None:
            raise self.error
        return self.files[path][start:end] + self.surplus


@pytest.fixture
def shelf() -> Generator[type[_Shelf]]:
    fsspec.register_implementation("shelf", _Shelf, clobber=True)
    _Shelf.files, _Shelf.versions, _Shelf.odd, _Shelf.made = {}, {}, [], []
    _Shelf.error, _Shelf.surplus, _Shelf.waits, _Shelf.threads = None, b"", None, set()
    yield _Shelf
    for name in ("shelf", "mem2"):
        importlib.import_module("fsspec.registry")._registry.pop(name, None)


@contextlib.contextmanager
def ftp_server(directory: Path) -> Generator[str]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "pyftpdlib", "-i", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "-p", str(port), "-d", str(directory)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            assert process.poll() is None, "pyftpdlib ended"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
        yield f"ftp://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait()


@contextlib.asynccontextmanager
async def _origin(ref: Ref, limits: OriginLimits | None = None) -> AsyncGenerator[Origin]:
    origins = Origins(limits, clouds=Clouds(fsspec=(ref.scheme,)))
    try:
        yield origins.for_ref(ref)
    finally:
        await origins.close()


async def _read(origin: Origin, plan: Plan) -> dict[str, bytes]:
    pulled: dict[str, bytes] = {}
    for file in plan.files:
        data = bytearray(file.bytes)
        if file.bytes:
            async with origin.open(Ref.parse(plan.ref), file, 0, file.bytes, OWN) as stream:
                half = file.bytes // 2
                await stream.readinto(memoryview(data)[:half])
                await stream.readinto(memoryview(data)[half:])
                assert stream.first_byte_s is not None
        pulled[file.path] = bytes(data)
    return pulled


async def test_a_realftp_server_is_read_to_the_last_byte(tmp_path: Path) -> None:
    files = write_model(tmp_path)
    with ftp_server(tmp_path) as place:
        ref = Ref.parse(place)
        async with _origin(ref) as origin:
            resolved = await origin.resolve(ref, OWN)

            assert await _read(origin, resolved.plan) == files
            await origin.prove(ref, resolved.plan.files[0], OWN)
    local = Origins()
    here = Ref.parse(f"file://{tmp_path}/")
    expected = (await local.for_ref(here).resolve(here)).plan
    assert [file.lengths for file in resolved.plan.files] == [
        file.lengths for file in expected.files
    ]
    await local.close()


async def test_anftp_server_that_is_gone_or_says_no(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    with ftp_server(tmp_path) as place:
        ref = Ref.parse(place)
        async with _origin(ref) as origin:
            with pytest.raises(OriginNotFoundError):
                await origin.resolve(Ref.parse(f"{place}none/"), OWN)
            plan = (await origin.resolve(ref, OWN)).plan
    async with _origin(ref) as origin:
        with pytest.raises(OriginUnavailableError):
            await _read(origin, plan)


async def test_a_pushed_manifest_a_single_file_and_a_directory_without_its_slash(
    shelf: type[_Shelf], tmp_path: Path
) -> None:
    write_model(tmp_path)
    report = push(tmp_path, str(tmp_path))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            shelf.files[f"/m/{path.relative_to(tmp_path)}"] = path.read_bytes()
    ref = Ref.parse("shelf://host/m")
    async with _origin(ref) as origin:
        resolved = await origin.resolve(ref, OWN)
        single = await origin.resolve(Ref.parse("shelf://host/m/config.json"), OWN)

        assert resolved.manifest == report.manifest
        assert resolved.plan.ref == "shelf://host/m/"
        assert await _read(origin, single.plan) == {"config.json": b"{}"}


async def test_names_that_look_like_urls_are_names(tmp_path: Path) -> None:
    (tmp_path / "a#b?c").mkdir()
    (tmp_path / "a#b?c" / "50%.txt").write_bytes(b"data")
    with ftp_server(tmp_path) as place:
        ref = Ref.parse(f"{place}a%23b%3Fc/")
        async with _origin(ref) as origin:
            plan = (await origin.resolve(ref, OWN)).plan

            assert await _read(origin, plan) == {"50%.txt": b"data"}


async def test_a_file_that_changed_is_not_read(shelf: type[_Shelf]) -> None:
    shelf.files["/m/x"] = b"before"
    ref = Ref.parse("shelf://host/m/")
    async with _origin(ref) as origin:
        plan = (await origin.resolve(ref, OWN)).plan
        shelf.versions["/m/x"] = 1

        with pytest.raises(OriginChangedError, match="x at shelf://host/m/"):
            await _read(origin, plan)
        with pytest.raises(OriginChangedError):
            await origin.prove(ref, plan.files[0], OWN)


async def test_pods_and_their_credentials_read_nothing(shelf: type[_Shelf]) -> None:
    shelf.files["/m/x"] = b"data"
    ref = Ref.parse("shelf://host/m/")
    async with _origin(ref) as origin:
        plan = (await origin.resolve(ref, OWN)).plan
        shelf.made.clear()

        for access in (ANONYMOUS, Access.of(token="t")):
            with pytest.raises(OriginDeniedError):
                await origin.resolve(ref, access)
            with pytest.raises(OriginDeniedError):
                await origin.prove(ref, plan.files[0], access)
            with pytest.raises(OriginDeniedError):
                async with origin.open(ref, plan.files[0], 0, 1, access):
                    pass
    assert shelf.made == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(SECRET), OriginDeniedError),
        (FileNotFoundError(SECRET), OriginNotFoundError),
        (ConnectionResetError(SECRET), OriginUnavailableError),
        (TimeoutError(SECRET), OriginUnavailableError),
        (type("AuthenticationException", (Exception,), {})(SECRET), OriginDeniedError),
        (ValueError({"password": SECRET}), OriginUnavailableError),
    ],
)
async def test_errors_have_our_names_and_none_of_their_text(
    shelf: type[_Shelf], error: Exception, expected: type[Exception]
) -> None:
    shelf.error = error
    ref = Ref.parse("shelf://host/m/x")
    async with _origin(ref) as origin:
        with pytest.raises(expected) as found:
            await origin.resolve(ref, OWN)

    assert SECRET not in explain(found.value) + repr(found.value)
    assert found.value.__cause__ is None


async def test_what_cannot_read_ranges_is_refused(shelf: type[_Shelf]) -> None:
    shelf.files["/m/x"] = b"before"
    ref = Ref.parse("shelf://host/m/")
    async with _origin(ref) as origin:
        plan = (await origin.resolve(ref, OWN)).plan
        shelf.surplus = b"more"

        with pytest.raises(RemoteProtocolError, match="ranges"):
            await _read(origin, plan)
        shelf.surplus = b""
        shelf.files["/m/x"] = b"be"
        with pytest.raises(OriginChangedError):
            await _read(origin, plan)


@pytest.mark.parametrize(
    ("odd", "expected"),
    [
        ({"name": "/elsewhere/x", "size": 1, "type": "file"}, RemoteProtocolError),
        ({"name": "/m/..", "size": 1, "type": "file"}, ManifestError),
        ({"name": "/m/l", "size": 1, "type": "link"}, ManifestError),
        ({"name": "/m/l", "size": None, "type": "file"}, RemoteProtocolError),
        ({"name": None, "size": 1, "type": "file"}, RemoteProtocolError),
    ],
)
async def test_listings_that_lie_are_refused(
    shelf: type[_Shelf], odd: dict[str, object], expected: type[Exception]
) -> None:
    shelf.files["/m/x"] = b"data"
    shelf.odd.append(odd)
    ref = Ref.parse("shelf://host/m/")
    async with _origin(ref) as origin:
        with pytest.raises(expected):
            await origin.resolve(ref, OWN)


async def test_a_bad_header_names_its_file(shelf: type[_Shelf]) -> None:
    shelf.files["/m/x.safetensors"] = b"no header at all"
    ref = Ref.parse("shelf://host/m/")
    async with _origin(ref) as origin:
        with pytest.raises(HeaderError, match="x.safetensors at shelf://host/m/"):
            await origin.resolve(ref, OWN)


async def test_one_that_hangs_is_given_up_and_ends_nothing_else(shelf: type[_Shelf]) -> None:
    shelf.files["/m/x"] = b"data"
    shelf.waits = threading.Event()
    ref = Ref.parse("shelf://host/m/x")
    async with _origin(ref, OriginLimits(head_s=0.05, read_threads=1)) as origin:
        with pytest.raises(OriginUnavailableError, match="no answer"):
            await origin.resolve(ref, OWN)
        with pytest.raises(OriginUnavailableError, match="no answer"):
            await origin.resolve(ref, OWN)  # The only thread is still at it.
        shelf.waits.set()
        shelf.waits = None
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(OriginUnavailableError):
                    await origin.resolve(ref, OWN)
                    break
    assert threading.get_ident() not in shelf.threads


async def test_instances_are_not_cached_and_get_nothing_of_ours(shelf: type[_Shelf]) -> None:
    shelf.files["/m/x"] = b"data"
    ref = Ref.parse("shelf://host/m/")
    async with _origin(ref) as origin:
        await origin.resolve(ref, OWN)

    assert shelf.made == [{"use_listings_cache": False}] * len(shelf.made)
    assert shelf._cache == {}


async def test_metadata_addresses_are_not_connected_to(shelf: type[_Shelf]) -> None:
    ref = Ref.parse("shelf://169.254.169.254/m/")
    async with _origin(ref) as origin:
        with pytest.raises(OriginDeniedError, match="metadata"):
            await origin.resolve(ref, OWN)
    assert shelf.made == []


def test_a_scheme_that_nobody_named_is_not_spoken(shelf: type[_Shelf]) -> None:
    with pytest.raises(UsageError, match="no origin speaks"):
        Origins().for_ref(Ref.parse("shelf://host/m/"))


@pytest.mark.parametrize("scheme", sorted(REFUSED))
def test_what_is_local_wraps_others_or_is_ours_cannot_be_named(scheme: str) -> None:
    with pytest.raises(ValueError, match="spoken already"):
        check_scheme(scheme)


async def test_another_name_of_what_is_refused_is_refused(shelf: type[_Shelf]) -> None:
    memory = fsspec.get_filesystem_class("memory")
    fsspec.register_implementation("mem2", memory, clobber=True)
    ref = Ref.parse("mem2://host/m/")
    async with _origin(ref) as origin:
        with pytest.raises(UsageError, match="another name of memory"):
            await origin.resolve(ref, OWN)


async def test_unknown_schemes_and_missing_packages_are_said() -> None:
    for scheme in ("nonesuch", "smb"):
        ref = Ref.parse(f"{scheme}://host/m/")
        async with _origin(ref) as origin:
            with pytest.raises(UsageError, match=scheme):
                await origin.resolve(ref, OWN)


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({}, ""),
        ({"ETag": '"a"', "mtime": 7}, 'etag:"a"'),
        ({"mtime": 7.5}, "modified:7.5"),
        ({"generation": "12"}, "generation:12"),
        ({"etag": None, "md5": "00"}, "checksum:00"),
    ],
)
def test_identity_is_the_best_that_is_told(info: dict[str, object], expected: str) -> None:
    assert version_of(info) == expected


def test_a_long_identity_is_still_one_line() -> None:
    assert version_of({"etag": "x\n" * 1000}).startswith("etag:blake3:")


def test_the_settings_refuse_by_name() -> None:
    from damselfly.agent.settings import SETTINGS  # noqa: PLC0415

    parse = SETTINGS["origin.fsspec"].setting.parse
    assert parse("sftp, smb") == ("sftp", "smb")
    assert parse(["webhdfs"]) == ("webhdfs",)
    with pytest.raises((ValueError, ConfigError)):
        parse("sftp,file")
