"""Artifacts of registries: found by tag and digest, read by layer, by whoever may."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web

from damselfly.errors import (
    DigestMismatchError,
    ManifestError,
    OriginChangedError,
    OriginDeniedError,
    OriginNotFoundError,
    RemoteProtocolError,
    UnsupportedFormatError,
    UsageError,
    explain,
)
from damselfly.model.manifest import Manifest
from damselfly.model.paths import MANIFEST_NAME
from damselfly.model.plan import Plan
from damselfly.model.ref import Ref
from damselfly.origin import bearer
from damselfly.origin.access import ANONYMOUS, OWN, Access
from damselfly.origin.bearer import PULL, Asking, Tokens
from damselfly.origin.oci import OCIOrigin
from damselfly.origin.oci_manifest import OWN_MANIFEST_TYPE
from damselfly.origin.oci_name import OCIName
from damselfly.origin.port import OriginLimits, Resolved
from damselfly.origin.push import push
from damselfly.origin.registry import Origins
from damselfly.origin.tree import plan_file, walk
from damselfly.origin.web import Web
from tests.fakes.registry import INDEX, FakeRegistry, sha256
from tests.integration.origin_servers import weights, write_model

USER = Access.of(username="ada", password="SECRET-OF-ADA")
OTHER = Access.of(username="bob", password="SECRET-OF-BOB")
FILES = {
    "config.json": b'{"a": 1}',
    "model.safetensors": weights(1, 300, 3 << 20, 40, (5 << 20) - 1),
    "sub/deep/größe.bin": bytes(range(256)) * 20_000,
    "empty": b"",
}


@pytest.fixture
async def registry() -> AsyncGenerator[FakeRegistry]:
    async with FakeRegistry(users={"ada": "SECRET-OF-ADA"}).serving() as registry:
        yield registry


@pytest.fixture
async def origin() -> AsyncGenerator[OCIOrigin]:
    origin = OCIOrigin(OriginLimits())
    yield origin
    await origin.close()


def ref_of(registry: FakeRegistry, rest: str = "org/model:v1") -> Ref:
    return Ref.parse(f"oci://{registry.host}/{rest}")


async def read(origin: OCIOrigin, plan: Plan, index: int, access: Access = ANONYMOUS) -> bytes:
    span = plan.span(index)
    data = bytearray(span.length)
    file = plan.files[span.file]
    async with origin.open(
        Ref.parse(plan.ref), file, span.start, span.start + span.length, access
    ) as stream:
        await stream.readinto(memoryview(data))
    return bytes(data)


async def pulled(origin: OCIOrigin, plan: Plan, access: Access = ANONYMOUS) -> dict[str, bytes]:
    chunks = await asyncio.gather(
        *(read(origin, plan, index, access) for index in range(plan.chunk_count))
    )
    found = {file.path: b"" for file in plan.files}
    for index, data in enumerate(chunks):
        found[plan.files[plan.span(index).file].path] += data
    return found


async def test_a_model_is_found_by_its_tag_and_read_to_the_last_byte(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    digest = registry.add_model("org/model", "v1", FILES)

    resolved = await origin.resolve(ref_of(registry))

    assert resolved.plan.ref == f"oci://{registry.host}/org/model@{digest}"
    assert str(Ref.parse(resolved.plan.ref)) == resolved.plan.ref
    assert resolved.manifest is None
    assert {file.path: (file.version, file.digests) for file in resolved.plan.files} == {
        path: (sha256(data), (sha256(data),)) for path, data in FILES.items()
    }
    assert await pulled(origin, resolved.plan) == FILES


async def test_layers_are_cut_as_local_files_are(
    registry: FakeRegistry, origin: OCIOrigin, tmp_path: Path
) -> None:
    files = write_model(tmp_path)
    registry.add_model("org/model", "v1", files)

    plan = (await origin.resolve(ref_of(registry))).plan

    local = Plan.of("-", [plan_file(file) for file in walk(tmp_path)])
    assert [(file.path, file.lengths) for file in plan.files] == [
        (file.path, file.lengths) for file in local.files
    ]


async def test_a_tag_that_moved_is_another_revision_and_a_digest_stays(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    digest = registry.add_model("org/model", "v1", {"a": b"one"})
    first = await origin.resolve(ref_of(registry))
    registry.add_model("org/model", "v1", {"a": b"two"})

    moved = await origin.resolve(ref_of(registry))
    pinned = await origin.resolve(ref_of(registry, f"org/model@{digest}"))

    assert moved.revision != first.revision
    assert pinned.revision == first.revision
    assert await pulled(origin, pinned.plan) == {"a": b"one"}


async def test_names_of_older_tools_and_titles_of_oras_count(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    layers: list[dict[str, object]] = [
        registry.add_blob(b"old")
        | {
            "mediaType": "application/vnd.cnai.model.weight.v1.raw",
            "annotations": {"org.cnai.model.filepath": "old.bin"},
        },
        registry.add_blob(b"title")
        | {
            "mediaType": "application/vnd.oci.image.layer.v1.tar",  # What oras calls any file.
            "annotations": {"org.opencontainers.image.title": "titled.bin"},
        },
        registry.add_blob(b"{}") | {"mediaType": "application/vnd.oci.empty.v1+json"},
    ]
    registry.add_manifest("org/model", "v1", registry.manifest_of(layers))

    resolved = await origin.resolve(ref_of(registry))

    assert await pulled(origin, resolved.plan) == {"old.bin": b"old", "titled.bin": b"title"}


async def test_a_manifest_that_push_left_gives_every_digest_in_two_requests(
    registry: FakeRegistry, origin: OCIOrigin, tmp_path: Path
) -> None:
    manifest = put_pushed(registry, tmp_path, MANIFEST_NAME, "application/octet-stream")

    resolved = await origin.resolve(ref_of(registry))

    assert resolved.manifest == manifest
    assert len(registry.asked) == 2
    assert manifest.is_of(resolved.plan)
    assert await pulled(origin, resolved.plan) == dict(sorted(FILES.items()))


async def test_a_manifest_of_push_is_known_by_its_type_too(
    registry: FakeRegistry, origin: OCIOrigin, tmp_path: Path
) -> None:
    manifest = put_pushed(registry, tmp_path, None, OWN_MANIFEST_TYPE)

    assert (await origin.resolve(ref_of(registry))).manifest == manifest


async def test_a_plan_that_was_made_of_a_manifest_alone_can_be_read(
    registry: FakeRegistry, origin: OCIOrigin, tmp_path: Path
) -> None:
    manifest = put_pushed(registry, tmp_path, MANIFEST_NAME, OWN_MANIFEST_TYPE)
    plan = manifest.plan(str(ref_of(registry)))  # As an agent makes it that got it from a peer.
    assert not any(file.digests or file.version for file in plan.files)

    assert await pulled(origin, plan) == dict(sorted(FILES.items()))


async def test_a_manifest_of_push_that_tells_of_other_layers_is_refused(
    registry: FakeRegistry, origin: OCIOrigin, tmp_path: Path
) -> None:
    put_pushed(registry, tmp_path, MANIFEST_NAME, OWN_MANIFEST_TYPE, leaving="config.json")

    with pytest.raises(ManifestError, match=r"config\.json"):
        await origin.resolve(ref_of(registry))


async def test_a_manifest_of_push_that_names_other_content_is_refused(
    registry: FakeRegistry, origin: OCIOrigin, tmp_path: Path
) -> None:
    manifest = put_pushed(registry, tmp_path, MANIFEST_NAME, OWN_MANIFEST_TYPE)
    layers: list[dict[str, object]] = [
        by_path(path, len(data), sha256(data)) for path, data in FILES.items()
    ]

    async def resolved_with(digest: str) -> Resolved:
        first, *rest = manifest.files
        named = Manifest((replace(first, digests=(digest,)), *rest)).canonical()
        own = registry.add_blob(named) | {"mediaType": OWN_MANIFEST_TYPE}
        registry.add_manifest("org/model", "v1", registry.manifest_of([*layers, own]))
        return await origin.resolve(ref_of(registry))

    assert (await resolved_with(sha256(FILES["config.json"]))).manifest is not None
    with pytest.raises(ManifestError, match=r"config\.json"):
        await resolved_with(sha256(b"something else"))


def put_pushed(
    registry: FakeRegistry, folder: Path, title: str | None, kind: str, leaving: str = ""
) -> Manifest:
    for path, data in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    manifest = push(folder, str(folder)).manifest
    layers: list[dict[str, object]] = [
        registry.add_blob(data)
        | {
            "mediaType": "application/vnd.cncf.model.weight.v1.raw",
            "annotations": {"org.cncf.model.filepath": path},
        }
        for path, data in FILES.items()
        if path != leaving
    ]
    own = registry.add_blob(manifest.canonical()) | {"mediaType": kind}
    if title is not None:
        own["annotations"] = {"org.opencontainers.image.title": title}
    registry.add_manifest("org/model", "v1", registry.manifest_of([*layers, own]))
    return manifest


# --- indexes --------------------------------------------------------------------------------------


def indexed(registry: FakeRegistry, *entries: dict[str, object]) -> None:
    value = {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)}
    registry.add_manifest("org/model", "v1", value, INDEX)


def entry(registry: FakeRegistry, tag: str, **more: object) -> dict[str, object]:
    digest = registry.add_model("org/model", tag, {"a": tag.encode()})
    size = len(registry.manifests["org/model", digest][1])
    return {"digest": digest, "size": size, "mediaType": "x/y", **more}


async def test_an_index_of_one_manifest_is_that_manifest(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    one = entry(registry, "one")
    note = entry(registry, "two", annotations={"vnd.docker.reference.type": "attestation-manifest"})
    indexed(registry, one, note)

    resolved = await origin.resolve(ref_of(registry))

    assert resolved.plan.ref.endswith(f"@{one['digest']}")
    assert await pulled(origin, resolved.plan) == {"a": b"one"}


async def test_the_one_model_of_an_index_is_meant(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    model = entry(registry, "two", artifactType="application/vnd.cncf.model.manifest.v1+json")
    indexed(registry, entry(registry, "one"), model)

    resolved = await origin.resolve(ref_of(registry))

    assert await pulled(origin, resolved.plan) == {"a": b"two"}


async def test_an_index_that_could_mean_several_names_them(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    one, two = entry(registry, "one"), entry(registry, "two")
    indexed(registry, one, two)

    with pytest.raises(UsageError) as caught:
        await origin.resolve(ref_of(registry))

    assert str(one["digest"]) in str(caught.value)
    assert str(two["digest"]) in str(caught.value)


async def test_an_index_inside_of_an_index_is_refused(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    indexed(registry, entry(registry, "one"))
    _, data = registry.manifests["org/model", "v1"]
    indexed(registry, {"digest": sha256(data), "size": len(data), "mediaType": INDEX})

    with pytest.raises(ManifestError, match="inside of an index"):
        await origin.resolve(ref_of(registry))


# --- who may --------------------------------------------------------------------------------------


async def test_sixteen_spans_at_once_ask_for_one_token(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    registry.add_model("org/model", "v1", {"a.bin": bytes(64 << 20)})
    plan = (await origin.resolve(ref_of(registry))).plan
    registry.wants = "bearer"
    registry.asked.clear()
    stranger = OCIOrigin(OriginLimits())

    await pulled(stranger, plan)
    await stranger.close()

    assert plan.chunk_count == 16
    assert registry.asked_for_tokens == [("", "repository:org/model:pull")]
    assert [each.status for each in registry.asked].count(401) == 1


async def test_a_password_goes_to_the_token_service_and_the_token_to_the_registry(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    registry.wants, registry.opens_to_anybody, registry.redirects_blobs = "bearer", False, True
    registry.add_model("org/model", "v1", FILES)

    resolved = await origin.resolve(ref_of(registry), USER)

    assert await pulled(origin, resolved.plan, USER) == FILES
    assert registry.asked_for_tokens == [("ada", "repository:org/model:pull")]
    assert {each.authorization for each in registry.asked} == {"", "Bearer token-1"}
    assert registry.asked_elsewhere
    assert {each.authorization for each in registry.asked_elsewhere} == {""}


async def test_nobody_uses_the_token_of_somebody_else(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    registry.wants, registry.opens_to_anybody = "bearer", False
    registry.add_model("org/model", "v1", FILES)
    plan = (await origin.resolve(ref_of(registry), USER)).plan
    place, largest = Ref.parse(plan.ref), max(plan.files, key=lambda file: file.bytes)
    await origin.prove(place, largest, USER)

    for stranger in (ANONYMOUS, OTHER, Access.of(token="made-up")):
        with pytest.raises(OriginDeniedError):
            await origin.resolve(ref_of(registry), stranger)
        with pytest.raises(OriginDeniedError):
            await read(origin, plan, 0, stranger)
        with pytest.raises(OriginDeniedError):
            await origin.prove(place, largest, stranger)


async def test_whoever_may_no_longer_read_proves_nothing_with_an_old_token(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    registry.wants, registry.opens_to_anybody = "bearer", False
    registry.add_model("org/model", "v1", FILES)
    plan = (await origin.resolve(ref_of(registry), USER)).plan
    registry.users.clear()

    with pytest.raises(OriginDeniedError):
        await origin.prove(Ref.parse(plan.ref), plan.files[0], USER)


async def test_a_token_that_ended_early_is_renewed_once_for_all(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    registry.wants = "bearer"
    registry.add_model("org/model", "v1", {"a.bin": bytes(64 << 20)})
    plan = (await origin.resolve(ref_of(registry))).plan
    registry.tokens.clear()

    await pulled(origin, plan)

    assert len(registry.asked_for_tokens) == 2


async def test_a_token_that_the_registry_never_takes_is_a_refusal(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    registry.wants = "bearer"
    registry.add_model("org/model", "v1", FILES)
    registry.opens_to_anybody = False

    with pytest.raises(OriginDeniedError, match="401"):
        await origin.resolve(ref_of(registry))

    assert len(registry.asked_for_tokens) == 1


async def test_a_token_of_the_caller_is_shown_to_the_registry_alone(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    registry.wants = "bearer"
    registry.tokens["brought"] = "repository:org/model:pull"
    registry.add_model("org/model", "v1", FILES)
    access = Access.of(token="brought")

    resolved = await origin.resolve(ref_of(registry), access)

    assert await pulled(origin, resolved.plan, access) == FILES
    assert registry.asked_for_tokens == []


async def test_basic_authentication_works_and_waits_until_it_is_wanted(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    registry.wants = "basic"
    registry.add_model("org/model", "v1", FILES)

    resolved = await origin.resolve(ref_of(registry), USER)

    assert await pulled(origin, resolved.plan, USER) == FILES
    assert registry.asked[0].authorization == ""
    with pytest.raises(OriginDeniedError):
        await origin.resolve(ref_of(registry), OTHER)
    with pytest.raises(OriginDeniedError, match="password"):
        await origin.resolve(ref_of(registry))


async def test_the_agent_itself_shows_what_docker_login_left_and_a_pod_does_not(
    registry: FakeRegistry,
    origin: OCIOrigin,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry.wants, registry.opens_to_anybody = "bearer", False
    registry.add_model("org/model", "v1", FILES)
    auth = "YWRhOlNFQ1JFVC1PRi1BREE="  # ada's
    text = json.dumps({"auths": {registry.host: {"auth": auth}}})
    (tmp_path / "config.json").write_text(text)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)

    resolved = await origin.resolve(ref_of(registry), OWN)

    assert len(resolved.plan.files) == len(FILES)
    with pytest.raises(OriginDeniedError):
        await origin.resolve(ref_of(registry), ANONYMOUS)
    assert [user for user, _ in registry.asked_for_tokens] == ["ada", ""]


@pytest.mark.parametrize(
    ("header", "error"),
    [
        ('Bearer realm="ftp://x/token"', RemoteProtocolError),
        ('Bearer realm="http://u:p@x/token"', RemoteProtocolError),
        ("Bearer", RemoteProtocolError),
        ('Bearer realm="http://169.254.169.254/token"', OriginDeniedError),
        ("Negotiate", OriginDeniedError),
        ("", OriginDeniedError),
    ],
)
async def test_a_registry_that_names_no_usable_token_service_is_refused(
    registry: FakeRegistry, origin: OCIOrigin, header: str, error: type[Exception]
) -> None:
    async def unauthorised(request: web.Request) -> web.StreamResponse:
        del request
        return web.Response(status=401, headers={"WWW-Authenticate": header})

    registry.hook = unauthorised

    with pytest.raises(error):
        await origin.resolve(ref_of(registry), USER)

    assert registry.asked_for_tokens == []


async def test_a_token_is_renewed_before_its_end_and_not_by_being_refused(
    registry: FakeRegistry, origin: OCIOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.wants, registry.token_lives_s = "bearer", 300
    registry.add_model("org/model", "v1", {"a": b"a"})
    plan = (await origin.resolve(ref_of(registry))).plan
    now_s = time.monotonic()

    async def read_after(seconds: float) -> int:
        clock = SimpleNamespace(monotonic=lambda: now_s + seconds)
        monkeypatch.setattr(bearer, "time", clock)
        await read(origin, plan, 0)
        return len(registry.asked_for_tokens)

    assert await read_after(280) == 1
    assert await read_after(295) == 2
    assert [each.status for each in registry.asked].count(401) == 1


async def test_a_password_is_never_sent_in_plain_http_for_a_registry_that_is_not() -> None:
    web_ = Web(OriginLimits())
    name = OCIName("registry.test", "org/model")
    asking = Asking("https://registry.test", name, PULL, USER)

    with pytest.raises(OriginDeniedError, match="plain HTTP"):
        await Tokens(web_).renewed(asking, ANONYMOUS, 'Bearer realm="http://auth.test/token"')

    await web_.close()


async def test_tokens_are_kept_for_so_many_and_no_more() -> None:
    web_ = Web(OriginLimits())
    tokens = Tokens(web_)
    askers = [
        Asking("https://h", OCIName("h", f"m{number}"), PULL, ANONYMOUS) for number in range(300)
    ]
    for asking in askers:
        tokens.accepted(asking, ANONYMOUS)

    assert not tokens.knows(askers[0])
    assert tokens.knows(askers[-1])
    await web_.close()


async def test_what_is_planned_and_is_not_there_proves_nothing(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    registry.add_model("org/model", "v1", {"a.bin": b"aaa", "empty": b""})
    plan = (await origin.resolve(ref_of(registry))).plan
    place, (file, empty) = Ref.parse(plan.ref), plan.files
    await origin.prove(place, file, ANONYMOUS)
    await origin.prove(place, empty, ANONYMOUS)

    with pytest.raises(OriginChangedError):
        await origin.prove(place, replace(file, lengths=(4,)), ANONYMOUS)
    registry.blobs.clear()
    for gone in (file, empty):
        with pytest.raises(OriginNotFoundError):
            await origin.prove(place, gone, ANONYMOUS)


async def test_a_page_where_a_layer_was_proves_nothing(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    registry.add_model("org/model", "v1", {"a.bin": b"aaa"})
    plan = (await origin.resolve(ref_of(registry))).plan

    async def log_in_first(request: web.Request) -> web.StreamResponse:
        """What answers for a registry that wants a person to log in, and happens to be as long."""
        del request
        return web.Response(body=b"<p>", content_type="text/html")

    registry.hook = log_in_first

    with pytest.raises(OriginDeniedError, match="page"):
        await origin.prove(Ref.parse(plan.ref), plan.files[0], ANONYMOUS)


async def test_no_secret_is_in_a_log_an_error_or_a_plan(
    registry: FakeRegistry, origin: OCIOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    registry.wants, registry.redirects_blobs = "bearer", True
    registry.opens_to_anybody = False
    registry.add_model("org/model", "v1", FILES)
    told: list[str] = []
    plan = (await origin.resolve(ref_of(registry), USER)).plan
    await pulled(origin, plan, USER)
    registry.users.clear()
    registry.tokens.clear()
    for failing in (
        origin.resolve(ref_of(registry), USER),
        origin.prove(Ref.parse(plan.ref), plan.files[0], USER),
        read(origin, plan, 0, USER),
        origin.resolve(ref_of(registry), Access.of(token="SECRET-TOKEN")),
    ):
        with pytest.raises(OriginDeniedError) as caught:
            await failing
        told += [explain(caught.value), repr(caught.value)]

    text = "\n".join([*told, caplog.text, plan.canonical().decode(), repr(origin)])
    for secret in ("SECRET", "token-1", "SIGNED"):
        assert secret not in text


# --- trouble --------------------------------------------------------------------------------------


async def test_blobs_elsewhere_are_read_there_and_their_signatures_are_in_no_error(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    registry.redirects_blobs = True
    registry.add_model("org/model", "v1", FILES)
    plan = (await origin.resolve(ref_of(registry))).plan
    assert await pulled(origin, plan) == FILES
    registry.blobs.clear()

    with pytest.raises(OriginNotFoundError) as caught:
        await read(origin, plan, 0)

    assert "SIGNED" not in str(caught.value)


async def two_chunks(registry: FakeRegistry, origin: OCIOrigin, access: Access) -> Plan:
    """A plan of two spans that nobody has read from, and a registry that has seen nothing yet."""
    registry.add_model("org/model", "v1", {"a.bin": bytes(8 << 20)})
    plan = (await origin.resolve(ref_of(registry), access)).plan
    assert plan.chunk_count == 2
    registry.asked.clear()
    return plan


async def test_where_a_registry_sends_spans_is_remembered_and_sees_no_token(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    registry.wants, registry.redirects_blobs = "bearer", True
    plan = await two_chunks(registry, origin, USER)

    for index in (0, 1, 1):
        await read(origin, plan, index, USER)

    assert [(each.method, each.status) for each in registry.asked] == [("GET", 307)]
    assert [each.authorization for each in registry.asked_elsewhere] == [""] * 3


async def test_spans_that_begin_at_once_are_sent_on_once(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    registry.redirects_blobs = True
    plan = await two_chunks(registry, origin, ANONYMOUS)

    await pulled(origin, plan)

    assert len(registry.asked) == 1
    assert len(registry.asked_elsewhere) == 2


async def test_a_registry_that_sends_blobs_itself_is_asked_once_for_each_span(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    plan = await two_chunks(registry, origin, ANONYMOUS)

    for index in (0, 1, 1):
        await read(origin, plan, index)

    assert [(each.method, each.status) for each in registry.asked] == [("GET", 206)] * 3


async def test_where_spans_were_sent_is_found_anew_once_when_it_has_expired(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    registry.redirects_blobs = True
    plan = await two_chunks(registry, origin, ANONYMOUS)
    await read(origin, plan, 0)
    registry.asked.clear()
    registry.asked_elsewhere.clear()
    registry.signature = "SIGNED-LATER"

    for index in (0, 1):
        await read(origin, plan, index)

    assert len(registry.asked) == 1
    assert [each.status for each in registry.asked_elsewhere] == [403, 206, 206]


async def test_one_who_may_no_longer_read_proves_nothing_by_what_is_remembered(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    registry.redirects_blobs = True
    plan = await two_chunks(registry, origin, ANONYMOUS)
    await read(origin, plan, 0)
    registry.asked_elsewhere.clear()

    async def refuse_to_read(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=403) if request.method == "GET" else None

    registry.hook = refuse_to_read

    await read(origin, plan, 1)  # Until the address ends, and it was theirs.
    with pytest.raises(OriginDeniedError):
        await origin.prove(Ref.parse(plan.ref), plan.files[0], ANONYMOUS)

    assert len(registry.asked_elsewhere) == 1


async def test_nobody_is_sent_where_somebody_else_was(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    registry.wants, registry.opens_to_anybody, registry.redirects_blobs = "bearer", False, True
    plan = await two_chunks(registry, origin, USER)
    await read(origin, plan, 0, USER)
    registry.asked_elsewhere.clear()

    for stranger in (ANONYMOUS, OTHER):
        with pytest.raises(OriginDeniedError):
            await read(origin, plan, 0, stranger)

    assert registry.asked_elsewhere == []


async def test_a_registry_without_ranges_works(registry: FakeRegistry, origin: OCIOrigin) -> None:
    registry.has_ranges = False
    registry.add_model("org/model", "v1", FILES)

    plan = (await origin.resolve(ref_of(registry))).plan

    found = {file.path: b"" for file in plan.files}
    for index in range(plan.chunk_count):
        found[plan.files[plan.span(index).file].path] += await read(origin, plan, index)
    assert found == FILES


async def test_a_manifest_that_is_not_its_digest_is_refused(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    digest = registry.add_model("org/model", "v1", {"a": b"one"})
    registry.add_model("org/model", "v2", {"a": b"two"})
    registry.manifests["org/model", digest] = registry.manifests["org/model", "v2"]

    with pytest.raises(DigestMismatchError) as caught:
        await origin.resolve(ref_of(registry, f"org/model@{digest}"))

    assert caught.value.expected == digest
    assert caught.value.actual == sha256(registry.manifests["org/model", "v2"][1])
    assert registry.host in str(caught.value)


async def test_a_manifest_of_push_that_is_not_its_digest_is_refused(
    registry: FakeRegistry, origin: OCIOrigin, tmp_path: Path
) -> None:
    manifest = put_pushed(registry, tmp_path, MANIFEST_NAME, OWN_MANIFEST_TYPE)
    data = manifest.canonical()
    registry.blobs[sha256(data)] = data[:-2] + b" }"

    with pytest.raises(DigestMismatchError):
        await origin.resolve(ref_of(registry))


async def test_no_such_tag_is_not_found(registry: FakeRegistry, origin: OCIOrigin) -> None:
    with pytest.raises(OriginNotFoundError, match="org/model:v1"):
        await origin.resolve(ref_of(registry))


def one_layer(**changes: object) -> dict[str, object]:
    layer: dict[str, object] = {
        "digest": sha256(b"x"),
        "size": 1,
        "mediaType": "application/vnd.cncf.model.weight.v1.raw",
        "annotations": {"org.cncf.model.filepath": "x.bin"},
    }
    return layer | changes


def by_path(path: str, size: int = 1, digest: str = sha256(b"x")) -> dict[str, object]:
    return one_layer(annotations={"org.cncf.model.filepath": path}, size=size, digest=digest)


def manifest_bytes(*layers: object) -> bytes:
    return json.dumps({"schemaVersion": 2, "layers": layers}).encode()


HOSTILE: list[tuple[str, bytes, type[Exception]]] = [
    ("huge", b" " * (4 << 20) + b"{}", RemoteProtocolError),
    ("too many values", b"[" + b"0," * 400_000 + b"0]", ManifestError),
    ("deep", b"[" * 200_000 + b"]" * 200_000, ManifestError),
    ("deep but cheap", b'{"layers": ' * 90_000 + b"1" + b"}" * 90_000, ManifestError),
    ("no JSON", b"<html>", ManifestError),
    ("a key twice", b'{"layers": [], "layers": []}', ManifestError),
    ("two things", b'{"layers": [], "manifests": []}', ManifestError),
    ("no layers", manifest_bytes(), ManifestError),
    ("a path up", manifest_bytes(by_path("../x")), ManifestError),
    ("an absolute path", manifest_bytes(by_path("/etc/passwd")), ManifestError),
    ("a path twice", manifest_bytes(one_layer(), one_layer()), ManifestError),
    ("a file as a directory", manifest_bytes(one_layer(), by_path("x.bin/y")), ManifestError),
    ("a negative size", manifest_bytes(one_layer(size=-1)), ManifestError),
    ("a size of 2^62", manifest_bytes(one_layer(size=1 << 62)), ManifestError),
    ("a size that is no number", manifest_bytes(one_layer(size=True)), ManifestError),
    ("a short digest", manifest_bytes(one_layer(digest="sha256:ab")), ManifestError),
    ("another digest", manifest_bytes(one_layer(digest="sha512:ab")), UnsupportedFormatError),
    ("an image", manifest_bytes(one_layer(annotations=None, mediaType="x/y")), ManifestError),
    (
        "an image layer",
        manifest_bytes(one_layer(mediaType="application/vnd.oci.image.layer.v1.tar+gzip")),
        UnsupportedFormatError,
    ),
    (
        "an archive",
        manifest_bytes(one_layer(mediaType="application/vnd.cncf.model.weight.v1.tar")),
        UnsupportedFormatError,
    ),
    (
        "a packed archive",
        manifest_bytes(one_layer(mediaType="application/vnd.cncf.model.weight.v1.tar+gzip")),
        UnsupportedFormatError,
    ),
    (
        "a directory of oras",
        manifest_bytes(
            one_layer(
                mediaType="x/y",
                annotations={
                    "org.opencontainers.image.title": "folder",
                    "io.deis.oras.content.unpack": "true",
                },
            )
        ),
        UnsupportedFormatError,
    ),
    ("schema 1", b'{"fsLayers": []}', UnsupportedFormatError),
    (
        "40,000 layers",
        b'{"layers": [' + b",".join([b"{}"] * 40_000) + b"]}",
        ManifestError,
    ),
]


@pytest.mark.parametrize(
    ("data", "error"), [case[1:] for case in HOSTILE], ids=[c[0] for c in HOSTILE]
)
async def test_a_hostile_manifest_is_a_named_error_and_nothing_else_is_asked_for(
    registry: FakeRegistry, origin: OCIOrigin, data: bytes, error: type[Exception]
) -> None:
    registry.add_manifest("org/model", "v1", data)

    with pytest.raises(error, match="org/model"):
        await origin.resolve(ref_of(registry))

    assert len(registry.asked) == 1


async def test_a_layer_that_is_an_archive_is_named_with_what_is_supported(
    registry: FakeRegistry, origin: OCIOrigin
) -> None:
    layer = one_layer(mediaType="application/vnd.cncf.model.weight.v1.tar+zstd")
    registry.add_manifest("org/model", "v1", manifest_bytes(layer))

    with pytest.raises(UnsupportedFormatError) as caught:
        await origin.resolve(ref_of(registry))

    told = str(caught.value.__cause__)
    assert "x.bin" in told
    assert "tar+zstd" in told
    assert "raw" in told


async def test_a_registry_elsewhere_is_asked_in_plain_http_only_if_it_is_listed() -> None:
    listed = Origins(insecure=frozenset({"registry.test:5000"}))
    hook: list[str] = []
    for origins in (Origins(), listed):
        origin = origins.for_ref(Ref.parse("oci://registry.test:5000/org/model"))
        assert isinstance(origin, OCIOrigin)
        with pytest.raises(Exception, match="registry.test") as caught:
            await origin.resolve(Ref.parse("oci://registry.test:5000/org/model"))
        hook.append(str(caught.value))
        await origins.close()

    assert "https://registry.test:5000/" in hook[0]
    assert "http://registry.test:5000/" in hook[1]
