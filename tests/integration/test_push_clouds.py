"""A push to `gs://` and `az://`: what is sent, what is kept, and what others see meanwhile."""

import asyncio
import contextlib
import logging
import os
import uuid
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from azure.storage.blob import (
    AccountSasPermissions,
    BlobServiceClient,
    ResourceTypes,
    generate_account_sas,
)

from damselfly.errors import (
    DamselflyError,
    OriginChangedError,
    OriginUnavailableError,
    UsageError,
    explain,
)
from damselfly.model.manifest import MANIFEST_NAME
from damselfly.model.ref import Ref
from damselfly.origin import gs_push
from damselfly.origin.access import ANONYMOUS, OWN, Access
from damselfly.origin.az_account import EMULATOR_ACCOUNT, EMULATOR_KEY, AZAccount
from damselfly.origin.az_push import AzDestination
from damselfly.origin.bucket import BucketOrigin, listed
from damselfly.origin.bucket_push import BucketDestination
from damselfly.origin.clouds import Clouds
from damselfly.origin.destination import Standing
from damselfly.origin.gs_push import GSDestination
from damselfly.origin.port import OriginLimits
from damselfly.origin.push_journal import JOURNAL_NAME
from damselfly.origin.registry import Origins
from damselfly.origin.web import Web
from tests.integration.cloud_servers import (
    AZURITE_MAIN,
    NODE,
    Gate,
    az_server,
    connection_string,
    fake_gcs,
    gate,
    gs_bucket,
    gs_put,
    gs_server,
)
from tests.integration.push_parcels import parcel_of

PART_BYTES = 256 << 10


@pytest.fixture(scope="module")
def gs_place() -> Generator[str]:
    if fake_gcs() is None:
        pytest.skip("fake-gcs-server is not installed")
    with gs_server() as place:
        yield place


@pytest.fixture(scope="module")
def az_place() -> Generator[str]:
    if NODE is None or not AZURITE_MAIN.exists():
        pytest.skip("Azurite is not installed: npm install --prefix .azurite azurite@3.35.0")
    with az_server() as place:
        yield place


class _Cloud:
    """A bucket of its own behind a gate: pushed to by us, written and read by others."""

    scheme = ""
    access = ANONYMOUS

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.bucket = f"b{uuid.uuid4().hex}"
        self.pauses_s: list[float] = []
        self.advanced: list[tuple[str, int]] = []

    @property
    def ref(self) -> Ref:
        return Ref.parse(f"{self.scheme}://{self.bucket}/m/")

    @property
    def origins(self) -> Origins:
        raise NotImplementedError

    def destination(self, web_: Web, ref: Ref) -> BucketDestination:
        raise NotImplementedError

    def put(self, key: str, data: bytes) -> None:
        raise NotImplementedError

    async def pause(self, seconds: float) -> None:
        self.pauses_s.append(seconds)

    async def push(self, model: Path, ref: Ref | None = None) -> Standing:
        web_ = Web(OriginLimits())
        destination = self.destination(web_, ref or self.ref)
        try:
            parcel = await asyncio.to_thread(parcel_of, model)
            standing = await destination.standing(parcel)
            self.gate.asked.clear()
            await destination.push(parcel, standing, self._advance)
            return standing
        finally:
            await destination.close()
            await web_.close()

    def _advance(self, path: str, count: int) -> None:
        self.advanced.append((path, count))

    async def pulled(self) -> dict[str, bytes]:
        """Every file as our origin reads it, all of it by the manifest."""
        origins = self.origins
        origin = origins.for_ref(self.ref)
        resolved = await origin.resolve(self.ref, self.access)
        assert resolved.manifest is not None
        found: dict[str, bytes] = {}
        for file in resolved.plan.files:
            data = bytearray(file.bytes)
            if file.bytes:
                async with origin.open(self.ref, file, 0, file.bytes, self.access) as stream:
                    await stream.readinto(memoryview(data))
            found[file.path] = bytes(data)
        await origins.close()
        return found


class _Google(_Cloud):
    scheme = "gs"

    def __init__(self, gate: Gate, place: str) -> None:
        super().__init__(gate)
        self._place = place
        gs_bucket(place, self.bucket)

    @property
    def origins(self) -> Origins:
        return Origins(clouds=Clouds(gs_endpoint=self.gate.url))

    def destination(self, web_: Web, ref: Ref) -> BucketDestination:
        return GSDestination(
            ref,
            web_,
            ANONYMOUS,
            OriginLimits(),
            self.gate.url,
            part_bytes=PART_BYTES,
            pause=self.pause,
        )

    def put(self, key: str, data: bytes) -> None:
        gs_put(self._place, self.bucket, key, data)


class _Azure(_Cloud):
    scheme = "az"
    access = Access.of(username=EMULATOR_ACCOUNT, password=EMULATOR_KEY)

    def __init__(self, gate: Gate, client: Any) -> None:
        super().__init__(gate)
        self.container = client.create_container(self.bucket)

    @property
    def origins(self) -> Origins:
        return Origins(clouds=Clouds(az_account=EMULATOR_ACCOUNT, az_endpoint=self.endpoint))

    @property
    def endpoint(self) -> str:
        return f"{self.gate.url}/{EMULATOR_ACCOUNT}"

    def destination(self, web_: Web, ref: Ref) -> BucketDestination:
        return AzDestination(
            ref,
            web_,
            self.access,
            OriginLimits(),
            AZAccount.of(EMULATOR_ACCOUNT, self.endpoint),
            part_bytes=PART_BYTES,
            pause=self.pause,
        )

    def put(self, key: str, data: bytes) -> None:
        self.container.upload_blob(key, data, overwrite=True)


@pytest.fixture(params=["gs", "az"])
async def cloud(request: pytest.FixtureRequest) -> AsyncGenerator[_Cloud]:
    if request.param == "gs":
        place = request.getfixturevalue("gs_place")
        async with gate(place) as made:
            yield _Google(made, place)
    else:
        place = request.getfixturevalue("az_place")
        with BlobServiceClient.from_connection_string(connection_string(place)) as client:
            async with gate(place.removesuffix(f"/{EMULATOR_ACCOUNT}")) as made:
                yield _Azure(made, client)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "big.bin").write_bytes(os.urandom(5 * PART_BYTES + 1))
    (folder / "config.json").write_bytes(b'{"a": 1}\n')
    (folder / "empty").touch()
    (folder / "sub" / "größe & <x>+%41.txt").write_bytes(b"awkward")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


async def _keys(cloud: _Cloud) -> list[str]:
    """Every key of the bucket, our bookkeeping too."""
    origins = cloud.origins
    api = cast("BucketOrigin", origins.for_ref(cloud.ref))._api
    found = [each.key async for each in listed(api, cloud.bucket, "", cloud.access)]
    await origins.close()
    return sorted(found)


async def test_what_is_pushed_is_found_by_its_manifest_and_nothing_else_is_left(
    cloud: _Cloud, model: Path
) -> None:
    standing = await cloud.push(model)

    assert standing == Standing(
        frozenset(), sum(map(len, files_of(model).values())), is_whole=False
    )
    assert await cloud.pulled() == files_of(model)
    assert await _keys(cloud) == sorted(
        [f"m/{path}" for path in files_of(model)] + [f"m/{MANIFEST_NAME}"]
    )
    counts: dict[str, int] = {}
    for path, count in cloud.advanced:
        counts[path] = counts.get(path, 0) + count
    assert counts == {path: len(data) for path, data in files_of(model).items()}


async def test_a_file_of_many_parts_is_put_together_in_order(cloud: _Cloud, tmp_path: Path) -> None:
    folder = tmp_path / "long"
    folder.mkdir()
    (folder / "long.bin").write_bytes(os.urandom(35 * PART_BYTES + 7))

    await cloud.push(folder)

    assert await cloud.pulled() == files_of(folder)
    assert await _keys(cloud) == [f"m/{MANIFEST_NAME}", "m/long.bin"]


async def _written(request: web.Request) -> str:
    """What a request writes, by name: Azure is told in the path, Google in the body."""
    if request.method == "PUT":
        return request.path
    head = (await request.read())[:1000].decode(errors="replace")
    return head if request.path.startswith("/upload") else request.path


async def test_the_manifest_comes_last(cloud: _Cloud, model: Path) -> None:
    written: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse | None:
        if request.method in {"PUT", "POST"}:
            written.append(await _written(request))
        return None

    cloud.gate.answer = answer

    await cloud.push(model)

    files = [text for text in written if "journal.json" not in text]
    assert [n for n, text in enumerate(files) if MANIFEST_NAME in text] == [len(files) - 1]


async def test_what_others_write_meanwhile_is_not_overwritten(cloud: _Cloud, model: Path) -> None:
    await cloud.push(model)
    (model / "config.json").write_bytes(b"ours")

    async def answer(request: web.Request) -> web.StreamResponse | None:
        if request.method in {"PUT", "POST"} and "config.json" in await _written(request):
            cloud.gate.answer = None
            await asyncio.to_thread(cloud.put, "m/config.json", b"theirs")
        return None

    cloud.gate.answer = answer

    with pytest.raises(OriginChangedError):
        await cloud.push(model)
    cloud.gate.answer = None
    assert f"m/{MANIFEST_NAME}" not in await _keys(cloud)


async def test_a_push_that_has_nothing_to_do_changes_nothing(cloud: _Cloud, model: Path) -> None:
    await cloud.push(model)

    standing = await cloud.push(model)

    assert standing.is_whole
    assert standing.bytes_missing == 0
    assert cloud.gate.asked == []


async def test_only_what_changed_is_sent_again(cloud: _Cloud, model: Path) -> None:
    await cloud.push(model)
    (model / "config.json").write_bytes(b"changed")
    cloud.advanced.clear()

    standing = await cloud.push(model)

    assert standing.bytes_missing == len(b"changed")
    assert [path for path, _ in cloud.advanced] == ["config.json"]
    assert await cloud.pulled() == files_of(model)


async def test_what_others_wrote_there_is_replaced(cloud: _Cloud, model: Path) -> None:
    cloud.put("m/config.json", b'{"a": 2}\n')
    cloud.put("m/big.bin", b"x" * (5 * PART_BYTES + 1))

    standing = await cloud.push(model)

    assert standing.kept == frozenset()
    assert await cloud.pulled() == files_of(model)


async def test_a_push_that_is_killed_goes_on_where_it_stopped(cloud: _Cloud, model: Path) -> None:
    reached = asyncio.Event()
    parts = 0

    async def answer(request: web.Request) -> web.StreamResponse | None:
        nonlocal parts
        body = await request.read()
        if len(body) >= PART_BYTES:
            parts += 1
            if parts > 3:
                reached.set()
                await asyncio.Event().wait()
        return None

    cloud.gate.answer = answer
    killed = asyncio.create_task(cloud.push(model))
    await reached.wait()
    killed.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await killed
    keys = await _keys(cloud)
    assert f"m/{MANIFEST_NAME}" not in keys
    for key in [key for key in keys if key.endswith("/00001")]:
        cloud.put(key, b"x" * PART_BYTES)  # Somebody's, where parts are objects: no part of ours.
    cloud.gate.answer = None
    cloud.advanced.clear()

    standing = await cloud.push(model)

    sent = sum(count for path, count in cloud.advanced if path == "big.bin")
    assert 0 < sent <= 4 * PART_BYTES + 1
    assert standing.bytes_missing < len((model / "big.bin").read_bytes())
    assert await cloud.pulled() == files_of(model)
    assert not any(JOURNAL_NAME in key or "push/" in key for key in await _keys(cloud))


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_what_fails_for_now_is_tried_again(cloud: _Cloud, model: Path, status: int) -> None:
    refused = 0

    async def answer(request: web.Request) -> web.StreamResponse | None:
        nonlocal refused
        if request.method in {"PUT", "POST"} and refused < 3:
            refused += 1
            return web.Response(status=status, headers={"Retry-After": "0"})
        return None

    cloud.gate.answer = answer

    await cloud.push(model)

    assert refused == 3
    assert await cloud.pulled() == files_of(model)


async def test_a_cloud_that_stays_down_leaves_no_manifest(cloud: _Cloud, model: Path) -> None:
    await cloud.push(model)
    (model / "big.bin").write_bytes(os.urandom(5 * PART_BYTES + 1))

    async def answer(request: web.Request) -> web.StreamResponse | None:
        is_large = len(await request.read()) >= PART_BYTES
        return web.Response(status=503) if is_large else None

    cloud.gate.answer = answer
    with pytest.raises(OriginUnavailableError):
        await cloud.push(model)
    cloud.gate.answer = None

    assert f"m/{MANIFEST_NAME}" not in await _keys(cloud)
    await cloud.push(model)
    assert await cloud.pulled() == files_of(model)


@pytest.mark.parametrize("cloud", ["gs"], indirect=True)
async def test_the_journal_is_not_written_faster_than_google_takes_it(
    cloud: _Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gs_push, "time", SimpleNamespace(monotonic=lambda: 100.0))
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(os.urandom(PART_BYTES + 1))

    await cloud.push(tmp_path)

    # Written at the start, and at the beginning and the end of each of two files in parts.
    assert cloud.pauses_s == [1.0] * 4


async def test_a_part_that_arrives_as_something_else_is_sent_again(
    cloud: _Cloud, model: Path
) -> None:
    """Google answers with an MD5 that is not the part's, once; Azure refuses it by itself."""
    spoiled = 0

    async def answer(request: web.Request) -> web.StreamResponse | None:
        nonlocal spoiled
        if request.raw_path.startswith("/upload") and not spoiled:
            spoiled += 1
            return web.json_response(
                {"name": "x", "size": "1", "generation": "1", "md5Hash": "bm9uZQ=="}
            )
        return None

    cloud.gate.answer = answer

    await cloud.push(model)

    assert spoiled == (cloud.scheme == "gs")
    assert await cloud.pulled() == files_of(model)


async def test_a_bucket_that_is_not_there_is_said(cloud: _Cloud, model: Path) -> None:
    with pytest.raises(UsageError, match="there is no"):
        await cloud.push(model, Ref.parse(f"{cloud.scheme}://nobodys-bucket/m/"))


async def test_a_push_with_a_sas_token_never_shows_it(
    az_place: str, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sas = generate_account_sas(
        EMULATOR_ACCOUNT,
        EMULATOR_KEY,
        ResourceTypes(container=True, object=True),
        AccountSasPermissions(read=True, list=True, write=True, create=True, delete=True),
        expiry="2099-01-01T00:00:00Z",
        protocol="http,https",
    )
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", sas)
    with BlobServiceClient.from_connection_string(connection_string(az_place)) as client:
        async with gate(az_place.removesuffix(f"/{EMULATOR_ACCOUNT}")) as made:
            cloud = _Azure(made, client)
            told: list[str] = []
            with caplog.at_level(logging.DEBUG):
                key_access, cloud.access = cloud.access, OWN
                await cloud.push(model)
                assert any("sig=" in line for line in made.asked)
                (model / "config.json").write_bytes(b"changed")

                async def answer(request: web.Request) -> web.StreamResponse | None:
                    return web.Response(status=403) if request.method == "PUT" else None

                made.answer = answer
                with pytest.raises(DamselflyError) as found:
                    await cloud.push(model)
                told += [explain(found.value), repr(found.value)]
                made.answer = None
                cloud.access = key_access
                await cloud.push(model)
    told += [record.getMessage() + str(record.__dict__) for record in caplog.records]
    assert not any("sig=" in text for text in told)
