"""`gs://` and `az://`, read from the emulators that stand for them, well and misbehaving."""

import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from azure.storage.blob import (
    AccountSasPermissions,
    BlobServiceClient,
    PublicAccess,
    ResourceTypes,
    generate_account_sas,
)

from damselfly.errors import (
    DamselflyError,
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
from damselfly.origin import az, gs
from damselfly.origin.access import ANONYMOUS, OWN, Access
from damselfly.origin.az_account import EMULATOR_ACCOUNT, EMULATOR_KEY, AZAccount
from damselfly.origin.bucket import BucketOrigin
from damselfly.origin.cloud_tokens import CloudToken, CloudTokens
from damselfly.origin.clouds import Clouds
from damselfly.origin.port import Origin, OriginLimits
from damselfly.origin.push import push
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
    gs_remove,
    gs_server,
)
from tests.integration.origin_servers import write_model

KEYS = Access.of(username=EMULATOR_ACCOUNT, password=EMULATOR_KEY)


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
    """A bucket of its own, in a cloud behind a gate, and the origin that reads it."""

    def __init__(self, scheme: str, gate: Gate, access: Access) -> None:
        self.scheme = scheme
        self.gate = gate
        self.access = access
        self.bucket = f"b{uuid.uuid4().hex}"
        self.origins = Origins()

    @property
    def origin(self) -> Origin:
        return self.origins.for_ref(self.ref("m/"))

    def ref(self, path: str) -> Ref:
        return Ref.parse(f"{self.scheme}://{self.bucket}/{path}")

    def put(self, key: str, data: bytes) -> None:
        raise NotImplementedError

    def remove(self, key: str) -> None:
        raise NotImplementedError

    def put_all(self, files: dict[str, bytes]) -> None:
        for path, data in files.items():
            self.put(f"m/{path}", data)


class _Google(_Cloud):
    def __init__(self, gate: Gate, place: str) -> None:
        super().__init__("gs", gate, ANONYMOUS)
        self._place = place
        gs_bucket(place, self.bucket)
        self.origins = Origins(clouds=Clouds(gs_endpoint=gate.url))

    def put(self, key: str, data: bytes) -> None:
        gs_put(self._place, self.bucket, key, data)

    def remove(self, key: str) -> None:
        gs_remove(self._place, self.bucket, key)


class _Azure(_Cloud):
    def __init__(self, gate: Gate, client: Any) -> None:
        super().__init__("az", gate, KEYS)
        self.container = client.create_container(self.bucket)
        endpoint = f"{gate.url}/{EMULATOR_ACCOUNT}"
        self.origins = Origins(clouds=Clouds(az_account=EMULATOR_ACCOUNT, az_endpoint=endpoint))

    def put(self, key: str, data: bytes) -> None:
        self.container.upload_blob(key, data, overwrite=True)

    def remove(self, key: str) -> None:
        self.container.delete_blob(key)


@contextlib.asynccontextmanager
async def _google(place: str) -> AsyncGenerator[_Google]:
    async with gate(place) as made:
        cloud = _Google(made, place)
        yield cloud
        await cloud.origins.close()


@contextlib.asynccontextmanager
async def _azure(place: str) -> AsyncGenerator[_Azure]:
    target = place.removesuffix(f"/{EMULATOR_ACCOUNT}")
    with BlobServiceClient.from_connection_string(connection_string(place)) as client:
        async with gate(target) as made:
            cloud = _Azure(made, client)
            yield cloud
            await cloud.origins.close()


@pytest.fixture(params=["gs", "az"])
async def cloud(request: pytest.FixtureRequest) -> AsyncGenerator[_Cloud]:
    if request.param == "gs":
        async with _google(request.getfixturevalue("gs_place")) as google:
            yield google
    else:
        async with _azure(request.getfixturevalue("az_place")) as azure:
            yield azure


@pytest.fixture
async def google(gs_place: str) -> AsyncGenerator[_Google]:
    async with _google(gs_place) as cloud:
        yield cloud


@pytest.fixture
async def azure(az_place: str) -> AsyncGenerator[_Azure]:
    async with _azure(az_place) as cloud:
        yield cloud


async def _read(origin: Origin, plan: Plan, access: Access) -> dict[str, bytes]:
    pulled: dict[str, bytes] = {}
    for file in plan.files:
        data = bytearray(file.bytes)
        if file.bytes:
            async with origin.open(Ref.parse(plan.ref), file, 0, file.bytes, access) as stream:
                await stream.readinto(memoryview(data))
        pulled[file.path] = bytes(data)
    return pulled


# --- what is there ------------------------------------------------------------------------------


async def test_a_directory_is_found_cut_and_read_to_the_last_byte(
    cloud: _Cloud, tmp_path: Path
) -> None:
    files = write_model(tmp_path)
    cloud.put_all(files)
    cloud.put("m2/elsewhere", b"not of it")
    local = Origins()
    here = Ref.parse(f"file://{tmp_path}/")

    resolved = await cloud.origin.resolve(cloud.ref("m/"), cloud.access)

    expected = (await local.for_ref(here).resolve(here)).plan
    assert [(file.path, file.lengths) for file in resolved.plan.files] == [
        (file.path, file.lengths) for file in expected.files
    ]
    assert resolved.plan.ref == str(cloud.ref("m/"))
    assert await _read(cloud.origin, resolved.plan, cloud.access) == files
    await local.close()


async def test_a_listing_goes_on_page_by_page(
    cloud: _Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gs, "PAGE_OBJECTS", 2)
    monkeypatch.setattr(az, "PAGE_OBJECTS", 2)
    files = {f"f{number}": b"x" * number for number in range(7)}
    cloud.put_all(files)

    resolved = await cloud.origin.resolve(cloud.ref("m/"), cloud.access)

    assert {file.path: file.bytes for file in resolved.plan.files} == {
        path: len(data) for path, data in files.items()
    }
    assert len([line for line in cloud.gate.asked if "prefix" in line]) == 4


async def test_a_prefix_without_the_slash_and_a_single_object(cloud: _Cloud) -> None:
    cloud.put_all({"a b/größe%41.txt": b"one"})

    prefix = await cloud.origin.resolve(cloud.ref("m"), cloud.access)
    single = await cloud.origin.resolve(
        Ref.parse(cloud.ref("m/").file_location("a b/größe%41.txt")), cloud.access
    )

    assert [file.path for file in prefix.plan.files] == ["a b/größe%41.txt"]
    assert prefix.plan.ref == str(cloud.ref("m/"))
    assert await _read(cloud.origin, single.plan, cloud.access) == {"größe%41.txt": b"one"}


async def test_a_pushed_manifest_is_found_beside_the_objects(cloud: _Cloud, tmp_path: Path) -> None:
    write_model(tmp_path)
    report = push(tmp_path, str(tmp_path))
    found = (path for path in tmp_path.rglob("*") if path.is_file())
    cloud.put_all({str(path.relative_to(tmp_path)): path.read_bytes() for path in found})

    resolved = await cloud.origin.resolve(cloud.ref("m/"), cloud.access)

    assert resolved.manifest == report.manifest


@pytest.mark.parametrize("path", ["no/such/", "no/such"])
async def test_what_is_not_there_is_named(cloud: _Cloud, path: str) -> None:
    with pytest.raises(OriginNotFoundError, match="no/such"):
        await cloud.origin.resolve(cloud.ref(path), cloud.access)


async def test_a_bucket_that_is_not_there_or_cannot_be(cloud: _Cloud) -> None:
    with pytest.raises(OriginNotFoundError):
        await cloud.origin.resolve(Ref.parse(f"{cloud.scheme}://nobodys-bucket/m/"), cloud.access)
    with pytest.raises(UsageError, match="can be called"):
        await cloud.origin.resolve(Ref.parse(f"{cloud.scheme}://Upper..Case/m/"), cloud.access)


# --- what changes -------------------------------------------------------------------------------


async def test_an_object_that_is_replaced_is_not_read(cloud: _Cloud) -> None:
    cloud.put_all({"x": b"before"})
    plan = (await cloud.origin.resolve(cloud.ref("m/"), cloud.access)).plan

    cloud.put("m/x", b"after!")

    with pytest.raises(OriginChangedError):
        await _read(cloud.origin, plan, cloud.access)
    with pytest.raises(OriginChangedError):
        await cloud.origin.prove(Ref.parse(plan.ref), plan.files[0], cloud.access)


async def test_an_object_that_is_gone_has_changed(cloud: _Cloud) -> None:
    cloud.put_all({"x": b"before"})
    plan = (await cloud.origin.resolve(cloud.ref("m/"), cloud.access)).plan

    cloud.remove("m/x")

    with pytest.raises(OriginChangedError):
        await _read(cloud.origin, plan, cloud.access)


async def test_a_replaced_object_makes_another_revision(cloud: _Cloud) -> None:
    cloud.put_all({"x": b"same"})
    before = await cloud.origin.resolve(cloud.ref("m/"), cloud.access)
    again = await cloud.origin.resolve(cloud.ref("m/"), cloud.access)

    cloud.put("m/x", b"size")

    after = await cloud.origin.resolve(cloud.ref("m/"), cloud.access)
    assert before.revision == again.revision != after.revision


async def test_a_version_of_another_provider_is_refused(cloud: _Cloud) -> None:
    cloud.put_all({"x": b"before"})
    plan = (await cloud.origin.resolve(cloud.ref("m/"), cloud.access)).plan
    file = plan.files[0]

    for version in ("version:\r\nX: y", "generation:1&alt=json", 'etag:"a\r\nb"'):
        lying = type(file)(file.path, file.lengths, version)
        with pytest.raises((RemoteProtocolError, OriginChangedError)):
            async with cloud.origin.open(cloud.ref("m/"), lying, 0, 1, cloud.access):
                pass


# --- what fails ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_cloud_that_cannot_now_is_unavailable(cloud: _Cloud, status: int) -> None:
    async def answer(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=status, headers={"Retry-After": "7"})

    cloud.gate.answer = answer

    with pytest.raises(OriginUnavailableError, match=str(status)):
        await cloud.origin.resolve(cloud.ref("m/"), cloud.access)


async def test_a_body_that_is_cut_is_unavailable(cloud: _Cloud) -> None:
    cloud.put_all({"x": b"x" * 100_000})
    plan = (await cloud.origin.resolve(cloud.ref("m/"), cloud.access)).plan

    async def answer(request: web.Request) -> web.StreamResponse | None:
        cut = web.StreamResponse(
            status=206,
            headers={"Content-Length": "100000", "Content-Range": "bytes 0-99999/100000"},
        )
        await cut.prepare(request)
        await cut.write(b"x" * 50_000)
        assert request.transport is not None
        request.transport.close()
        return cut

    cloud.gate.answer = answer

    with pytest.raises(OriginUnavailableError, match="broke off"):
        await _read(cloud.origin, plan, cloud.access)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"{}{}",
        b'{"items": 7}',
        b'{"items": [{"name": "m/x", "size": -1}]}',
        b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        b"<Error><Code>x</Code></Error>",
        b"<EnumerationResults><Blobs><Blob><Name>m/x</Name></Blob></Blobs></EnumerationResults>",
    ],
)
async def test_a_listing_that_is_none_is_the_clouds_fault(cloud: _Cloud, body: bytes) -> None:
    async def answer(request: web.Request) -> web.StreamResponse | None:
        return web.Response(body=body) if "prefix" in request.query else None

    cloud.gate.answer = answer

    with pytest.raises(RemoteProtocolError, match="reading the listing of"):
        await cloud.origin.resolve(cloud.ref("m/"), cloud.access)


# --- who asks -----------------------------------------------------------------------------------


async def test_a_token_is_shown_as_it_was_given(cloud: _Cloud) -> None:
    with contextlib.suppress(OriginNotFoundError, OriginDeniedError):
        await cloud.origin.resolve(cloud.ref("m/"), Access.of(token="tok-123"))

    assert {headers["Authorization"] for headers in cloud.gate.headers} == {"Bearer tok-123"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AZURE_STORAGE_CONNECTION_STRING", connection_string("http://127.0.0.1:1")),
        ("AZURE_STORAGE_KEY", EMULATOR_KEY),
        ("AZURE_STORAGE_SAS_TOKEN", "sig=planted"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/none"),
    ],
)
async def test_pods_show_nothing_of_the_environments(
    cloud: _Cloud, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with contextlib.suppress(OriginNotFoundError, OriginDeniedError):
        await cloud.origin.resolve(cloud.ref("m/"), ANONYMOUS)

    assert cloud.gate.asked
    assert not any("sig=" in line for line in cloud.gate.asked)
    assert not any("Authorization" in headers for headers in cloud.gate.headers)


async def test_the_agents_own_token_is_renewed_when_it_is_refused(google: _Google) -> None:
    made = iter(["old", "new"])
    tokens = CloudTokens("gs://", lambda: CloudToken(next(made), time.time() + 3600))
    google.put_all({"x": b"data"})

    async def answer(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") != "Bearer new":
            return web.Response(status=401)
        return None

    google.gate.answer = answer
    limits = OriginLimits()
    web_of_ours = Web(limits)
    api = gs.GSBuckets(web_of_ours, google.gate.url, tokens)
    api.shows_own = True  # As it does where nobody can listen.
    origin = BucketOrigin(api, web_of_ours, limits)

    plan = (await origin.resolve(google.ref("m/"), OWN)).plan

    assert await _read(origin, plan, OWN) == {"x": b"data"}
    tokens.spoil()
    await web_of_ours.close()


async def test_a_span_that_is_refused_is_asked_for_with_a_new_token(google: _Google) -> None:
    made = iter(["old", "new"])
    tokens = CloudTokens("gs://", lambda: CloudToken(next(made), time.time() + 3600))
    google.put_all({"x": b"data"})
    limits = OriginLimits()
    web_of_ours = Web(limits)
    api = gs.GSBuckets(web_of_ours, google.gate.url, tokens)
    api.shows_own = True
    origin = BucketOrigin(api, web_of_ours, limits)
    plan = (await origin.resolve(google.ref("m/"), OWN)).plan

    async def answer(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") != "Bearer new":
            return web.Response(status=401)
        return None

    google.gate.answer = answer

    assert await _read(origin, plan, OWN) == {"x": b"data"}
    await web_of_ours.close()


async def test_an_endpoint_without_tls_is_shown_no_token_of_the_agents(google: _Google) -> None:
    def make() -> CloudToken:
        raise AssertionError("nobody asked for one")

    web_of_ours = Web(OriginLimits())
    api = gs.GSBuckets(web_of_ours, google.gate.url, CloudTokens("gs://", make))

    assert await api.authorizer(OWN) == ANONYMOUS
    await web_of_ours.close()


async def test_a_user_name_opens_no_google_bucket(google: _Google) -> None:
    with pytest.raises(OriginDeniedError, match="token"):
        await google.origin.resolve(google.ref("m/"), Access.of(username="a", password="b"))
    assert google.gate.asked == []


async def test_an_object_that_is_stored_compressed_is_refused_by_name(google: _Google) -> None:
    async def answer(request: web.Request) -> web.StreamResponse | None:
        item = {"name": "m/x", "size": "5", "generation": "1", "contentEncoding": "gzip"}
        return web.json_response({"items": [item]}) if "prefix" in request.query else None

    google.gate.answer = answer

    with pytest.raises(RemoteProtocolError, match="Content-Encoding"):
        await google.origin.resolve(google.ref("m/"))


# --- Azure's ways to open -----------------------------------------------------------------------


async def test_a_private_container_opens_with_its_key_alone(azure: _Azure) -> None:
    azure.put_all({"x": b"data"})
    wrong = Access.of(username=EMULATOR_ACCOUNT, password="d3Jvbmc=")

    for access in (ANONYMOUS, wrong):
        with pytest.raises(OriginDeniedError, match=azure.bucket):
            await azure.origin.resolve(azure.ref("m/"), access)
    with pytest.raises(OriginDeniedError, match="base64"):
        await azure.origin.resolve(azure.ref("m/"), Access.of(username="a", password="?"))


async def test_a_public_container_opens_to_everybody(azure: _Azure) -> None:
    azure.put_all({"x": b"data"})
    azure.container.set_container_access_policy({}, public_access=PublicAccess.CONTAINER)

    plan = (await azure.origin.resolve(azure.ref("m/"))).plan

    assert await _read(azure.origin, plan, ANONYMOUS) == {"x": b"data"}


async def test_the_key_of_the_environment_is_the_agents_own(
    azure: _Azure, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = f"{azure.gate.url}/{EMULATOR_ACCOUNT}"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string(endpoint))
    azure.put_all({"x": b"data"})
    origins = Origins()
    origin = origins.for_ref(azure.ref("m/"))

    plan = (await origin.resolve(azure.ref("m/"), OWN)).plan

    assert await _read(origin, plan, OWN) == {"x": b"data"}
    with pytest.raises(OriginDeniedError):
        await origin.resolve(azure.ref("m/"), ANONYMOUS)
    await origins.close()


async def test_a_sas_token_opens_and_is_never_seen(
    azure: _Azure, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sas = generate_account_sas(
        EMULATOR_ACCOUNT,
        EMULATOR_KEY,
        ResourceTypes(container=True, object=True),
        AccountSasPermissions(read=True, list=True),
        expiry="2099-01-01T00:00:00Z",
        protocol="http,https",
    )
    signature = next(part for part in sas.split("&") if part.startswith("sig="))
    endpoint = f"{azure.gate.url}/{EMULATOR_ACCOUNT}"
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", EMULATOR_ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", f"?{sas}")
    azure.put_all({"x": b"data", "y.safetensors": b"no header"})
    azure.put("good/x", b"data")
    origins = Origins(clouds=Clouds(az_endpoint=endpoint))
    origin = origins.for_ref(azure.ref("m/"))
    told: list[str] = []
    with caplog.at_level(logging.DEBUG):
        plan = (await origin.resolve(azure.ref("good/"), OWN)).plan
        assert await _read(origin, plan, OWN) == {"x": b"data"}
        told += [plan.canonical().decode(), plan.ref, repr(plan)]
        azure.put("good/x", b"after")
        failing: list[Callable[[], object]] = [
            lambda: origin.resolve(azure.ref("m/"), OWN),
            lambda: origin.resolve(azure.ref("none/"), OWN),
            lambda: _read(origin, plan, OWN),
        ]
        for fail in failing:
            with pytest.raises(DamselflyError) as found:
                await fail()  # type: ignore[misc]
            told += [explain(found.value), repr(found.value)]
        for status in (302, 403, 404, 429, 500):

            async def answer(request: web.Request, status: int = status) -> web.StreamResponse:
                return web.Response(status=status, headers={"Location": "gopher://x/"})

            azure.gate.answer = answer
            with pytest.raises(DamselflyError) as found:
                await origin.resolve(azure.ref("m/"), OWN)
            told += [explain(found.value), repr(found.value)]

    told += [record.getMessage() + str(record.__dict__) for record in caplog.records]
    assert any(signature in line for line in azure.gate.asked)
    assert not any("sig=" in text or signature[4:20] in text for text in told)
    await origins.close()


async def test_a_connection_string_of_another_account_lends_no_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string("http://127.0.0.1:1/x"))

    account = AZAccount.of("another", None)

    assert account.key is None
    assert account.endpoint == "https://another.blob.core.windows.net"
