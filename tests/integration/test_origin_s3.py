"""`s3://` over a real S3 server on loopback: what is found, what pins it, and what it costs."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from damselfly.errors import (
    DamselflyError,
    ManifestError,
    OriginBusyError,
    OriginChangedError,
    OriginDeniedError,
    OriginNotFoundError,
    OriginUnavailableError,
    RemoteProtocolError,
    UsageError,
    explain,
)
from damselfly.model.manifest import MANIFEST_NAME
from damselfly.model.plan import Plan
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS, OWN, Access
from damselfly.origin.port import Origin, OriginLimits, Resolved
from damselfly.origin.push import push
from damselfly.origin.registry import Origins
from damselfly.origin.s3_place import S3Place
from tests.integration.bucket_servers import (
    KEY_ID,
    SECRET,
    Bucket,
    Front,
    s3_error,
    s3_server,
)
from tests.integration.origin_servers import write_model

KEYS = Access.of(None, KEY_ID, SECRET)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as address:
        yield address


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


@pytest.fixture
def bucket(server: str) -> Iterator[Bucket]:
    bucket = Bucket(server)
    yield bucket
    bucket.close()


@pytest.fixture
def public(server: str) -> Iterator[Bucket]:
    bucket = Bucket(server, is_public=True)
    yield bucket
    bucket.close()


@pytest.fixture
async def front(server: str) -> AsyncGenerator[Front]:
    async with Front(server).listening() as front:
        yield front


@pytest.fixture
async def origin(front: Front) -> AsyncGenerator[Origin]:
    origins = Origins(s3=S3Place(front.address))
    yield origins.for_ref(Ref.parse("s3://any/"))
    await origins.close()


async def pulled(origin: Origin, plan: Plan, access: Access = KEYS) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for file in plan.files:
        data = bytearray(file.bytes)
        if file.bytes:
            opened = origin.open(Ref.parse(plan.ref), file, 0, file.bytes, access)
            async with opened as stream:
                await stream.readinto(memoryview(data))
        found[file.path] = bytes(data)
    return found


@pytest.mark.parametrize("is_versioned", [False, True])
async def test_a_prefix_is_found_and_read_to_the_last_byte(
    server: str, origin: Origin, tmp_path: Path, is_versioned: bool
) -> None:
    bucket = Bucket(server, is_versioned=is_versioned)
    files = write_model(tmp_path / "model")
    bucket.put_files("llama/v1/", files)
    bucket.put("llama/v1/", b"")
    bucket.put("llama/v1/original/", b"")
    bucket.put("llama/v10/other.bin", b"not ours")
    bucket.close()

    resolved = await origin.resolve(Ref.parse(f"s3://{bucket.name}/llama/v1/"), KEYS)

    assert resolved.plan.ref == f"s3://{bucket.name}/llama/v1/"
    assert await pulled(origin, resolved.plan) == files
    kind = "version-id:" if is_versioned else 'etag:"'
    assert all(file.version.startswith(kind) for file in resolved.plan.files)


async def test_the_cuts_are_those_of_the_same_directory_on_disk(
    bucket: Bucket, origin: Origin, tmp_path: Path
) -> None:
    bucket.put_files("m/", write_model(tmp_path / "model"))
    here = Origins()
    local = Ref.parse(f"file://{tmp_path}/model/")

    found = (await origin.resolve(Ref.parse(f"s3://{bucket.name}/m"), KEYS)).plan
    expected = (await here.for_ref(local).resolve(local)).plan

    assert [(file.path, file.lengths) for file in found.files] == [
        (file.path, file.lengths) for file in expected.files
    ]
    await here.close()


async def test_a_ref_without_a_slash_is_an_object_or_a_prefix(
    bucket: Bucket, origin: Origin
) -> None:
    bucket.put("m/one.gguf", b"weights")

    one = await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/one.gguf"), KEYS)
    prefix = await origin.resolve(Ref.parse(f"s3://{bucket.name}/m"), KEYS)
    whole = await origin.resolve(Ref.parse(f"s3://{bucket.name}"), KEYS)

    assert one.plan.ref == f"s3://{bucket.name}/m/one.gguf"
    assert await pulled(origin, one.plan) == {"one.gguf": b"weights"}
    assert prefix.plan.ref == f"s3://{bucket.name}/m/"
    assert await pulled(origin, prefix.plan) == {"one.gguf": b"weights"}
    assert await pulled(origin, whole.plan) == {"m/one.gguf": b"weights"}


async def test_a_listing_goes_on_over_its_pages(
    bucket: Bucket, origin: Origin, front: Front
) -> None:
    async def act(request: web.Request) -> web.StreamResponse | None:
        target = request.raw_path.replace("max-keys=1000", "max-keys=2")
        return await front.passed_on(request, target=target)

    bucket.put_files("m/", {f"{number} + ü%41": b"" for number in range(5)})
    front.act = act

    resolved = await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), KEYS)

    assert [file.path for file in resolved.plan.files] == [f"{n} + ü%41" for n in range(5)]
    assert front.count("GET", "continuation-token=") == 2


async def test_a_listing_that_goes_round_in_circles_ends(
    bucket: Bucket, origin: Origin, front: Front
) -> None:
    async def act(request: web.Request) -> web.StreamResponse | None:
        if "list-type" not in request.query:
            return None
        return web.Response(
            text="<ListBucketResult><IsTruncated>true</IsTruncated>"
            "<NextContinuationToken>again</NextContinuationToken></ListBucketResult>"
        )

    front.act = act
    with pytest.raises(RemoteProtocolError, match="round in circles"):
        await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), KEYS)

    assert front.count("GET", "list-type") == 2


async def test_a_listing_of_something_elsewhere_is_refused(
    bucket: Bucket, origin: Origin, front: Front
) -> None:
    async def act(request: web.Request) -> web.StreamResponse | None:
        if "list-type" not in request.query:
            return None
        return web.Response(
            text="<ListBucketResult><Contents><Key>other/secret</Key><Size>1</Size></Contents>"
            "</ListBucketResult>"
        )

    front.act = act
    with pytest.raises(RemoteProtocolError, match="elsewhere"):
        await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), KEYS)


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a [<!ENTITY x "xx">]><ListBucketResult>&x;</ListBucketResult>',
        "<ListBucketResult>" + "<a>" * 100_000,
        "not XML",
        "<Other/>",
        "<ListBucketResult><Contents><Key>m/a</Key></Contents></ListBucketResult>",
    ],
)
async def test_a_listing_that_is_none_is_refused(
    bucket: Bucket, origin: Origin, front: Front, text: str
) -> None:
    async def act(request: web.Request) -> web.StreamResponse | None:
        return web.Response(text=text) if "list-type" in request.query else None

    front.act = act
    with pytest.raises(RemoteProtocolError, match="listing s3://"):
        await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), KEYS)


@pytest.mark.parametrize("key", ["m/a//b", "m/../x", "m/a\\b"])
async def test_a_key_that_cannot_be_a_path_is_named(
    bucket: Bucket, origin: Origin, key: str
) -> None:
    bucket.put(key, b"x")

    with pytest.raises(ManifestError) as caught:
        await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), KEYS)

    assert f"s3://{bucket.name}/m/" in explain(caught.value)


async def test_an_object_that_is_also_a_directory_is_refused(
    bucket: Bucket, origin: Origin
) -> None:
    bucket.put_files("m/", {"a": b"1", "a/b": b"2"})

    with pytest.raises(ManifestError, match="is a file, and the directory of"):
        await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), KEYS)


async def test_what_is_not_there_says_what_is_missing(bucket: Bucket, origin: Origin) -> None:
    bucket.put("m/", b"")

    with pytest.raises(OriginNotFoundError, match="there are no objects below"):
        await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), KEYS)
    with pytest.raises(OriginNotFoundError, match="no such bucket"):
        await origin.resolve(Ref.parse("s3://nobodys-bucket/m"), KEYS)
    with pytest.raises(UsageError, match="not what a bucket can be called"):
        await origin.resolve(Ref.parse("s3://a..b/m"), KEYS)


async def test_a_manifest_beside_the_objects_is_taken_at_its_word(
    bucket: Bucket, origin: Origin, front: Front, tmp_path: Path
) -> None:
    files = write_model(tmp_path / "model")
    report = push(tmp_path / "model", str(tmp_path / "model"))
    bucket.put_files("m/", files)
    bucket.put(f"m/{MANIFEST_NAME}", (tmp_path / "model" / MANIFEST_NAME).read_bytes())

    resolved = await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), KEYS)

    assert resolved.manifest == report.manifest
    assert front.count("GET", "list-type") == 0
    assert await pulled(origin, resolved.plan) == files


async def test_whole_checksums_are_digests_and_those_of_parts_are_not(
    bucket: Bucket, origin: Origin
) -> None:
    bucket.put("m/whole", b"abc", ChecksumAlgorithm="SHA256")
    begun = bucket.client.create_multipart_upload(
        Bucket=bucket.name, Key="m/parts", ChecksumAlgorithm="SHA256"
    )
    part = bucket.client.upload_part(
        Bucket=bucket.name,
        Key="m/parts",
        UploadId=begun["UploadId"],
        PartNumber=1,
        Body=b"def",
        ChecksumAlgorithm="SHA256",
    )
    bucket.client.complete_multipart_upload(
        Bucket=bucket.name,
        Key="m/parts",
        UploadId=begun["UploadId"],
        MultipartUpload={
            "Parts": [
                {
                    "PartNumber": 1,
                    "ETag": part["ETag"],
                    "ChecksumSHA256": part["ChecksumSHA256"],
                }
            ]
        },
    )
    bucket.put("m/metadata", b"ghi", Metadata={"sha256": "0" * 64})

    plan = (await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), KEYS)).plan

    assert {file.path: file.digests for file in plan.files} == {
        "metadata": (),
        "parts": (),
        "whole": (f"sha256:{hashlib.sha256(b'abc').hexdigest()}",),
    }


# --- what pins ------------------------------------------------------------------------------------


async def test_an_object_that_was_replaced_is_no_longer_what_was_planned(
    bucket: Bucket, origin: Origin
) -> None:
    bucket.put("m/a", b"before")
    plan = (await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), KEYS)).plan
    bucket.put("m/a", b"after!")

    with pytest.raises(OriginChangedError):
        await pulled(origin, plan)
    with pytest.raises(OriginChangedError):
        await origin.prove(Ref.parse(plan.ref), plan.files[0], KEYS)


async def test_a_version_is_read_as_it_was_after_it_was_replaced(
    server: str, origin: Origin
) -> None:
    bucket = Bucket(server, is_versioned=True)
    bucket.put("m/a", b"before")
    plan = (await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), KEYS)).plan
    bucket.put("m/a", b"after, and longer")

    assert await pulled(origin, plan) == {"a": b"before"}
    await origin.prove(Ref.parse(plan.ref), plan.files[0], KEYS)
    bucket.close()


async def test_a_replaced_object_makes_another_revision(bucket: Bucket, origin: Origin) -> None:
    bucket.put("m/a", b"before")
    before = await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), KEYS)
    again = await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), KEYS)
    bucket.put("m/a", b"after!")

    after = await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), KEYS)

    assert before.revision == again.revision != after.revision


# --- trouble --------------------------------------------------------------------------------------


async def planned(origin: Origin, bucket: Bucket) -> Resolved:
    bucket.put("m/a", b"weights")
    return await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), KEYS)


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (403, "AccessDenied", OriginDeniedError),
        (403, "SignatureDoesNotMatch", OriginDeniedError),
        (403, "InvalidAccessKeyId", OriginDeniedError),
        (403, "RequestTimeTooSkewed", OriginDeniedError),
        (400, "ExpiredToken", OriginDeniedError),
        (404, "NoSuchBucket", OriginNotFoundError),
        (503, "SlowDown", OriginBusyError),
        (503, "ServiceUnavailable", OriginBusyError),
        (500, "InternalError", OriginUnavailableError),
        (400, "Whatever", RemoteProtocolError),
    ],
)
async def test_what_s3_says_becomes_an_error_by_name_without_its_prose(
    bucket: Bucket,
    origin: Origin,
    front: Front,
    status: int,
    code: str,
    error: type[DamselflyError],
) -> None:
    async def act(request: web.Request) -> web.StreamResponse | None:
        return s3_error(status, code)

    front.act = act
    with pytest.raises(error) as caught:
        await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), KEYS)

    assert type(caught.value) is error
    assert KEY_ID not in explain(caught.value)
    assert SECRET not in explain(caught.value)


async def test_a_busy_bucket_says_when_it_wants_to_be_asked(
    bucket: Bucket, origin: Origin, front: Front
) -> None:
    async def act(request: web.Request) -> web.StreamResponse | None:
        return s3_error(503, "SlowDown", {"Retry-After": "7"})

    front.act = act
    with pytest.raises(OriginBusyError) as caught:
        await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), KEYS)

    assert caught.value.retry_after_s == 7


async def test_a_clock_that_is_wrong_is_said(bucket: Bucket, origin: Origin, front: Front) -> None:
    async def act(request: web.Request) -> web.StreamResponse | None:
        return s3_error(403, "RequestTimeTooSkewed")

    front.act = act
    with pytest.raises(OriginDeniedError, match="clock"):
        await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), KEYS)


async def test_a_span_that_is_cut_goes_on_at_the_byte_where_it_stopped(
    bucket: Bucket, origin: Origin, front: Front
) -> None:
    plan = (await planned(origin, bucket)).plan

    async def cut(request: web.Request) -> web.StreamResponse | None:
        return await front.passed_on(request, cut_at=3)

    front.act = cut
    front.headers.clear()

    assert await pulled(origin, plan) == {"a": b"weights"}
    ranges = [headers["range"] for headers in front.headers]
    assert ranges == ["bytes=0-6", "bytes=3-6", "bytes=6-6"]
    assert all(headers["if-match"] for headers in front.headers)


async def test_a_span_that_stalls_is_unavailable(
    bucket: Bucket, origin: Origin, front: Front
) -> None:
    plan = (await planned(origin, bucket)).plan
    origins = Origins(OriginLimits(silence_s=0.2), s3=S3Place(front.address))
    impatient = origins.for_ref(Ref.parse(plan.ref))

    async def stall(request: web.Request) -> web.StreamResponse | None:
        await asyncio.Event().wait()
        return None

    front.act = stall
    with pytest.raises(OriginUnavailableError):
        await pulled(impatient, plan)
    await origins.close()


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (301, "PermanentRedirect", True),
        (400, "AuthorizationHeaderMalformed", False),
        (307, "TemporaryRedirect", True),
    ],
)
async def test_the_right_region_is_found_and_remembered(
    bucket: Bucket, origin: Origin, front: Front, status: int, code: str, said: bool
) -> None:
    async def act(request: web.Request) -> web.StreamResponse | None:
        signed = request.headers.get("Authorization", "")
        if "/eu-north-1/s3/" in signed:
            return None
        if request.method == "HEAD":
            headers = {"x-amz-bucket-region": "eu-north-1"} if said else {}
            return web.Response(status=status, headers=headers)
        told = "" if said else "<Region>eu-north-1</Region>"
        headers = {"x-amz-bucket-region": "eu-north-1"} if said else {}
        return s3_error(status, code, headers, told)

    bucket.put("m/a", b"weights")
    front.act = act

    plan = (await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), KEYS)).plan
    before = len(front.asked)

    assert await pulled(origin, plan) == {"a": b"weights"}
    assert len(front.asked) == before + 1


async def test_a_region_that_moved_is_found_by_whoever_reads(
    bucket: Bucket, origin: Origin, front: Front
) -> None:
    plan = (await planned(origin, bucket)).plan

    async def act(request: web.Request) -> web.StreamResponse | None:
        if "/eu-north-1/s3/" in request.headers.get("Authorization", ""):
            return None
        return s3_error(301, "PermanentRedirect", {"x-amz-bucket-region": "eu-north-1"})

    front.act = act

    assert await pulled(origin, plan, KEYS) == {"a": b"weights"}


async def test_a_region_that_is_no_name_of_one_is_not_believed(
    bucket: Bucket, origin: Origin, front: Front
) -> None:
    async def act(request: web.Request) -> web.StreamResponse | None:
        return s3_error(301, "PermanentRedirect", {"x-amz-bucket-region": "evil.example/x"})

    front.act = act
    with pytest.raises(RemoteProtocolError):
        await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), KEYS)

    assert len(front.asked) < 20


# --- who asks -------------------------------------------------------------------------------------


def signed_by(front: Front) -> set[str]:
    found = {headers.get("authorization", "") for headers in front.headers}
    return {text.partition("Credential=")[2].partition("/")[0] for text in found}


async def test_whoever_shows_nothing_asks_unsigned_whatever_the_environment_has(
    public: Bucket, origin: Origin, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOFTHEAGENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret of the agent")
    public.put("m/a", b"weights")
    plan = (await origin.resolve(Ref.parse(f"s3://{public.name}/m/"))).plan

    await pulled(origin, plan, ANONYMOUS)
    await origin.prove(Ref.parse(plan.ref), plan.files[0], ANONYMOUS)

    assert signed_by(front) == {""}


async def test_a_callers_keys_sign(bucket: Bucket, origin: Origin, front: Front) -> None:
    bucket.put("m/a", b"weights")

    plan = (await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), KEYS)).plan
    await pulled(origin, plan)

    assert signed_by(front) == {KEY_ID}


async def test_a_token_is_refused_with_a_word_on_what_would_do(
    bucket: Bucket, origin: Origin, front: Front
) -> None:
    with pytest.raises(OriginDeniedError, match="access key id as the user name"):
        await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), Access.of("hf_token"))

    assert front.asked == []


async def test_the_agent_itself_signs_with_what_its_environment_has(
    bucket: Bucket, origin: Origin, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOFTHEAGENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret of the agent")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session of the agent")
    bucket.put("m/a", b"weights")

    plan = (await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), OWN)).plan

    assert await pulled(origin, plan, OWN) == {"a": b"weights"}
    assert signed_by(front) == {"AKIAOFTHEAGENT"}
    assert {headers["x-amz-security-token"] for headers in front.headers} == {
        "session of the agent"
    }


async def test_an_agent_without_keys_asks_unsigned(
    public: Bucket, origin: Origin, front: Front
) -> None:
    public.put("m/a", b"weights")

    await origin.resolve(Ref.parse(f"s3://{public.name}/m/"), OWN)

    assert signed_by(front) == {""}


async def test_keys_that_ran_out_are_looked_for_once_more(
    bucket: Bucket, origin: Origin, front: Front, tmp_path: Path
) -> None:
    def write(key_id: str) -> None:
        (tmp_path / "credentials").write_text(
            f"[default]\naws_access_key_id = {key_id}\naws_secret_access_key = secret\n"
        )

    async def act(request: web.Request) -> web.StreamResponse | None:
        if "AKIAOLD" not in request.headers["Authorization"]:
            return None
        return (
            s3_error(400, "ExpiredToken") if request.method != "HEAD" else web.Response(status=400)
        )

    write("AKIAOLD")
    bucket.put("m/a", b"weights")
    plan = (await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), OWN)).plan
    write("AKIANEW")
    front.act = act

    assert await pulled(origin, plan, OWN) == {"a": b"weights"}
    assert (await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), OWN)).plan.id == plan.id


async def test_a_refusal_of_what_was_asked_unsigned_says_so(
    bucket: Bucket, origin: Origin, front: Front
) -> None:
    async def act(request: web.Request) -> web.StreamResponse | None:
        return s3_error(403, "AccessDenied")

    front.act = act
    ref = Ref.parse(f"s3://{bucket.name}/m/")
    with pytest.raises(OriginDeniedError, match="asked unsigned: no keys were found"):
        await origin.resolve(ref, OWN)
    with pytest.raises(OriginDeniedError, match="asked unsigned: no keys were given"):
        await origin.resolve(ref, ANONYMOUS)
    with pytest.raises(OriginDeniedError) as caught:
        await origin.resolve(ref, KEYS)
    assert "unsigned" not in explain(caught.value)


async def test_keys_that_stay_bad_are_a_refusal(
    bucket: Bucket, origin: Origin, front: Front, tmp_path: Path
) -> None:
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = AKIAOLD\naws_secret_access_key = secret\n"
    )

    async def act(request: web.Request) -> web.StreamResponse | None:
        return s3_error(403, "InvalidAccessKeyId")

    front.act = act
    with pytest.raises(OriginDeniedError) as caught:
        await origin.resolve(Ref.parse(f"s3://{bucket.name}/m/"), OWN)

    assert "AKIAOLD" not in explain(caught.value)
    assert len(front.asked) < 10


async def test_proving_reads_a_byte_of_the_file_with_the_askers_keys(
    bucket: Bucket, origin: Origin, front: Front
) -> None:
    async def act(request: web.Request) -> web.StreamResponse | None:
        if KEY_ID in request.headers.get("Authorization", ""):
            return None
        return s3_error(403, "AccessDenied")

    plan = (await planned(origin, bucket)).plan
    front.act = act
    front.headers.clear()

    await origin.prove(Ref.parse(plan.ref), plan.files[0], KEYS)
    assert front.headers[0]["range"] == "bytes=0-0"
    with pytest.raises(OriginDeniedError):
        await origin.prove(Ref.parse(plan.ref), plan.files[0], ANONYMOUS)
