"""`hf://` against a hub of the tests: what is found, read, remembered, refused."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from damselfly.errors import (
    ConfigError,
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
from damselfly.model.digest import Digest
from damselfly.model.manifest import MANIFEST_NAME, Manifest
from damselfly.model.plan import Plan, PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS, OWN, Access
from damselfly.origin.hub import HubOrigin
from damselfly.origin.hub_environment import HubEnvironment
from damselfly.origin.port import OriginLimits
from damselfly.origin.web import Web
from tests.fakes.hub import Hub, git_oid, sha256_of
from tests.integration.origin_servers import weights

TOKEN = "hf_pLaNtEdToKeN0123456789"
SHARD = weights(1, 300, 3 << 20, 40, (5 << 20) - 1)
FILES = {
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "README.md": b"",
    "a b & <c>%41.txt": b"awkward",
    "config.json": b'{"a": 1}',
    "model.safetensors": SHARD,
    "original/deep/größe.bin": bytes(range(256)) * 20_000,
    "original/x": b"x",
}


@pytest.fixture
def hub() -> Generator[Hub]:
    hub = Hub()
    hub.tokens[TOKEN] = "somebody"
    with hub.running():
        yield hub


@pytest.fixture
async def origin(hub: Hub) -> AsyncGenerator[HubOrigin]:
    async with hub_origin({"HF_ENDPOINT": hub.endpoint, "HF_HOME": "/nowhere"}) as origin:
        yield origin


@asynccontextmanager
async def hub_origin(
    variables: dict[str, str], limits: OriginLimits | None = None
) -> AsyncGenerator[HubOrigin]:
    limits = limits or OriginLimits()
    web = Web(limits)
    try:
        yield HubOrigin(limits, web, HubEnvironment(variables))
    finally:
        await web.close()


async def read(origin: HubOrigin, plan: Plan, path: str, access: Access = ANONYMOUS) -> bytes:
    file = next(file for file in plan.files if file.path == path)
    if not file.bytes:
        return b""
    async with origin.open(Ref.parse(plan.ref), file, 0, file.bytes, access) as stream:
        data = bytearray(file.bytes)
        await stream.readinto(memoryview(data))
    return bytes(data)


def planned(plan: Plan, path: str) -> PlannedFile:
    return next(file for file in plan.files if file.path == path)


# --- what is found ------------------------------------------------------------------------------


async def test_a_ref_is_a_commit_and_its_files_are_read_whole(hub: Hub, origin: HubOrigin) -> None:
    commit = hub.repository("org/name", FILES).branches["main"]

    plan = (await origin.resolve(Ref.parse("hf://org/name"))).plan

    assert plan.ref == f"hf://org/name@{commit}/"
    assert {path: await read(origin, plan, path) for path in FILES} == FILES
    shard, config = planned(plan, "model.safetensors"), planned(plan, "config.json")
    assert shard.version == f"lfs:{sha256_of(SHARD)}"
    assert shard.digests == (f"sha256:{sha256_of(SHARD)}",)
    assert (config.version, config.digests) == (f"blob:{git_oid(FILES['config.json'])}", ())
    assert len(shard.lengths) > 2
    assert Plan.parse(plan.canonical()) == plan


@pytest.mark.parametrize(
    ("kind", "name", "typed", "found"),
    [
        ("models", "org/name", "hf://models/org/name", "hf://org/name@{}/"),
        ("models", "org/name", "hf://org/name@v1", "hf://org/name@{}/"),
        ("models", "gpt2", "hf://gpt2", "hf://models/gpt2@{}/"),
        ("models", "gpt2", "hf://models/gpt2@v1/original", "hf://models/gpt2@{}/original/"),
        ("datasets", "org/name", "hf://datasets/org/name@v1", "hf://datasets/org/name@{}/"),
        ("datasets", "squad", "hf://datasets/squad", "hf://datasets/squad@{}/"),
        ("spaces", "org/name", "hf://spaces/org/name", "hf://spaces/org/name@{}/"),
    ],
)
async def test_repositories_of_every_kind_are_found(
    hub: Hub, origin: HubOrigin, kind: str, name: str, typed: str, found: str
) -> None:
    repository = hub.repository(name, FILES, kind)
    commit = repository.commit(FILES, "v1")
    repository.branches["main"] = commit
    ref = Ref.parse(typed)

    plan = (await origin.resolve(ref)).plan

    assert plan.ref == found.format(commit)
    assert await read(origin, plan, plan.files[-1].path) == b"x"
    assert ref.is_trusted_with(Ref.parse(plan.ref))
    assert (await origin.resolve(Ref.parse(plan.ref))).plan == plan


@pytest.mark.parametrize("end", ["", "/"])
async def test_a_directory_inside_is_an_artifact_of_its_own(
    hub: Hub, origin: HubOrigin, end: str
) -> None:
    commit = hub.repository("org/name", FILES).branches["main"]

    plan = (await origin.resolve(Ref.parse(f"hf://org/name/original{end}"))).plan

    assert plan.ref == f"hf://org/name@{commit}/original/"
    assert [file.path for file in plan.files] == ["deep/größe.bin", "x"]
    assert await read(origin, plan, "deep/größe.bin") == FILES["original/deep/größe.bin"]


async def test_a_single_file_is_an_artifact_too(hub: Hub, origin: HubOrigin) -> None:
    commit = hub.repository("org/name", FILES).branches["main"]

    plan = (await origin.resolve(Ref.parse("hf://org/name/original/x"))).plan

    assert plan.ref == f"hf://org/name@{commit}/original/x"
    assert [file.path for file in plan.files] == ["x"]
    assert await read(origin, plan, "x") == b"x"


async def test_a_pull_request_and_a_branch_are_revisions(hub: Hub, origin: HubOrigin) -> None:
    repository = hub.repository("org/name", FILES)
    commit = repository.commit({"x": b"of a pull request"}, "refs/pr/7")

    plan = (await origin.resolve(Ref.parse("hf://org/name@refs/pr/7"))).plan

    assert plan.ref == f"hf://org/name@{commit}/"


async def test_a_commit_is_not_asked_for(hub: Hub, origin: HubOrigin) -> None:
    commit = hub.repository("org/name", {"x": b"x"}).branches["main"]

    await origin.resolve(Ref.parse(f"hf://org/name@{commit}"))

    assert [each.path for each in hub.seen] == [f"/api/models/org/name/tree/{commit}"]


async def test_a_listing_of_many_pages_is_read_to_its_end(hub: Hub, origin: HubOrigin) -> None:
    files = {f"d{number % 7}/f{number}": b"%d" % number for number in range(50)}
    hub.repository("org/name", files)
    hub.page_size = 4

    plan = (await origin.resolve(Ref.parse("hf://org/name"))).plan

    assert {file.path for file in plan.files} == files.keys()


async def test_the_manifest_of_a_push_is_used_and_no_header_is_read(
    hub: Hub, origin: HubOrigin
) -> None:
    repository = hub.repository("org/name", FILES)
    plan = (await origin.resolve(Ref.parse("hf://org/name"))).plan
    manifest = sealed(plan, FILES)
    commit = repository.commit({**FILES, MANIFEST_NAME: manifest.canonical()})
    hub.seen.clear()

    found = await origin.resolve(Ref.parse("hf://org/name"))

    assert found.manifest == manifest
    assert found.plan.ref == f"hf://org/name@{commit}/"
    assert hub.asked("other") == []
    assert await read(origin, found.plan, "model.safetensors") == SHARD


@pytest.mark.parametrize("changed", ["config.json", "model.safetensors"])
async def test_a_manifest_of_another_commit_is_passed_over(
    hub: Hub, origin: HubOrigin, changed: str, caplog: pytest.LogCaptureFixture
) -> None:
    repository = hub.repository("org/name", FILES)
    manifest = sealed((await origin.resolve(Ref.parse("hf://org/name"))).plan, FILES)
    other = weights(2, 300, 3 << 20, 40, (5 << 20) - 1)
    files = {**FILES, changed: other, MANIFEST_NAME: manifest.canonical()}
    repository.commit(files)

    with caplog.at_level(logging.WARNING):
        found = await origin.resolve(Ref.parse("hf://org/name"))

    assert found.manifest is None
    assert await read(origin, found.plan, changed) == other
    assert "manifest.stale" in caplog.messages


def sealed(plan: Plan, files: dict[str, bytes]) -> Manifest:
    digests: list[Digest] = []
    for file in plan.files:
        for stop, length in zip(file.stops, file.lengths, strict=True):
            digests.append(Digest.of(files[file.path][stop - length : stop]))
    return Manifest.seal(plan, digests)


# --- what is remembered -------------------------------------------------------------------------


async def spans(origin: HubOrigin, plan: Plan, count: int, access: Access = ANONYMOUS) -> None:
    file = planned(plan, "model.safetensors")
    for number in range(count):
        async with origin.open(Ref.parse(plan.ref), file, number, number + 9, access) as stream:
            data = bytearray(9)
            await stream.readinto(memoryview(data))
        assert data == SHARD[number : number + 9]


async def test_a_signed_address_is_asked_for_once(hub: Hub, origin: HubOrigin) -> None:
    hub.repository("org/name", FILES)
    plan = (await origin.resolve(Ref.parse("hf://org/name"))).plan
    hub.seen.clear()

    await spans(origin, plan, 5)

    assert [each.at for each in hub.seen] == ["other"] * 5


async def test_each_asker_has_an_address_of_its_own(hub: Hub, origin: HubOrigin) -> None:
    hub.repository("org/name", FILES)
    plan = (await origin.resolve(Ref.parse("hf://org/name"))).plan
    hub.seen.clear()

    await spans(origin, plan, 2, Access.of(TOKEN))

    assert [each.at for each in hub.seen] == ["hub", "other", "other"]


async def test_an_address_that_has_expired_is_asked_for_anew(hub: Hub, origin: HubOrigin) -> None:
    hub.repository("org/name", FILES)
    plan = (await origin.resolve(Ref.parse("hf://org/name"))).plan
    await spans(origin, plan, 1)
    hub.seen.clear()
    hub.expire()

    await spans(origin, plan, 2)

    told = [(each.at, each.status) for each in hub.seen]
    assert told == [("other", 403), ("hub", 302), ("other", 206), ("other", 206)]


async def test_an_address_is_not_used_past_the_end_that_it_tells(
    hub: Hub, origin: HubOrigin
) -> None:
    hub.repository("org/name", FILES)
    hub.lasting_s = 1
    plan = (await origin.resolve(Ref.parse("hf://org/name"))).plan
    hub.seen.clear()

    await spans(origin, plan, 2)

    assert [each.at for each in hub.seen] == ["hub", "other"] * 2


@pytest.mark.parametrize("status", [400, 401, 403, 410])
async def test_a_remembered_address_that_is_refused_is_asked_for_once_more(
    hub: Hub, origin: HubOrigin, status: int
) -> None:
    hub.repository("org/name", FILES)
    plan = (await origin.resolve(Ref.parse("hf://org/name"))).plan
    hub.seen.clear()
    hub.refuse_with = [status]

    await spans(origin, plan, 1)

    assert [each.at for each in hub.seen] == ["other", "hub", "other"]


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_a_new_address_that_is_refused_is_a_refusal(
    hub: Hub, origin: HubOrigin, status: int
) -> None:
    hub.repository("org/name", FILES)
    plan = (await origin.resolve(Ref.parse("hf://org/name"))).plan
    hub.seen.clear()
    hub.refuse_with = [status, status, status]

    with pytest.raises(OriginDeniedError) as caught:
        await spans(origin, plan, 1)

    assert [each.at for each in hub.seen] == ["other", "hub", "other"]
    assert "X-Amz" not in explain(caught.value)


async def test_an_address_that_expires_in_the_middle_is_unavailability_and_goes_on(
    hub: Hub, origin: HubOrigin
) -> None:
    hub.repository("org/name", FILES)
    plan = (await origin.resolve(Ref.parse("hf://org/name"))).plan
    file = planned(plan, "model.safetensors")
    ref = Ref.parse(plan.ref)
    hub.expire_after = hub.bytes_sent + (2 << 20)
    hub.seen.clear()
    data = bytearray(file.bytes)
    position = 0

    async def read_on() -> None:
        nonlocal position
        async with origin.open(ref, file, 0, file.bytes) as stream:
            while position < file.bytes:
                await stream.readinto(memoryview(data)[position : position + 100_000])
                position += 100_000

    with pytest.raises(OriginUnavailableError) as caught:
        await read_on()
    async with origin.open(ref, file, position, file.bytes) as stream:
        await stream.readinto(memoryview(data)[position:])

    assert bytes(data) == SHARD
    assert position >= 1 << 20
    # Going on where it stopped is refused by then: that is no refusal, and a new address is good.
    assert [each.at for each in hub.seen] == ["other", "other", "hub", "other"]
    assert "X-Amz" not in explain(caught.value)


async def test_a_stalled_body_is_gone_on_with_where_it_stopped(hub: Hub) -> None:
    hub.repository("org/name", FILES)
    limits = OriginLimits(body_silence_s=0.2)
    variables = {"HF_ENDPOINT": hub.endpoint}
    async with hub_origin(variables, limits) as origin:
        plan = (await origin.resolve(Ref.parse("hf://org/name"))).plan
        sent = hub.bytes_sent
        hub.stall_after = 1 << 20

        data = await read(origin, plan, "model.safetensors")

        assert data == SHARD
        assert hub.bytes_sent - sent < len(SHARD) + (1 << 20)


async def test_a_mirror_that_knows_no_head_is_read_through_its_redirects(
    hub: Hub, origin: HubOrigin
) -> None:
    hub.repository("org/name", FILES)

    def tampered(path: str, response: web.Response) -> web.Response | None:
        is_head = "/resolve/" in path and hub.seen[-1].method == "HEAD"
        return web.Response(status=405) if is_head else response

    hub.tampered = tampered
    plan = (await origin.resolve(Ref.parse("hf://org/name"), Access.of(TOKEN))).plan

    assert await read(origin, plan, "model.safetensors", Access.of(TOKEN)) == SHARD
    assert all("authorization" not in each.headers for each in hub.asked("other"))


async def test_spans_that_begin_at_once_ask_for_one_address(hub: Hub, origin: HubOrigin) -> None:
    hub.repository("org/name", FILES)
    plan = (await origin.resolve(Ref.parse("hf://org/name"))).plan
    hub.expire()
    await spans(origin, plan, 1)
    hub.seen.clear()

    await asyncio.gather(*(spans(origin, plan, 1, Access.of(TOKEN)) for _ in range(8)))

    assert len(hub.asked("hub")) == 1
    assert len(hub.asked("other")) == 8


# --- who asks -----------------------------------------------------------------------------------


async def test_a_token_is_shown_to_the_hub_and_to_nobody_else(hub: Hub, origin: HubOrigin) -> None:
    repository = hub.repository("org/name", FILES)
    repository.is_private = True
    repository.readers.add(TOKEN)
    access = Access.of(TOKEN)

    plan = (await origin.resolve(Ref.parse("hf://org/name"), access)).plan
    assert await read(origin, plan, "model.safetensors", access) == SHARD

    assert {each.headers.get("authorization") for each in hub.asked("hub")} == {f"Bearer {TOKEN}"}
    allowed = {"host", "range", "accept", "accept-encoding", "user-agent"}
    assert all(each.headers.keys() <= allowed for each in hub.asked("other"))


async def test_the_environments_token_is_for_the_agent_alone(hub: Hub) -> None:
    repository = hub.repository("org/name", FILES)
    repository.is_private = True
    repository.readers.add(TOKEN)
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN}
    async with hub_origin(variables) as origin:
        plan = (await origin.resolve(Ref.parse("hf://org/name"), OWN)).plan
        assert await read(origin, plan, "model.safetensors", OWN) == SHARD
        file = planned(plan, "model.safetensors")
        hub.seen.clear()

        with pytest.raises(OriginDeniedError, match="private, or there is none"):
            await origin.resolve(Ref.parse("hf://org/name"), ANONYMOUS)
        with pytest.raises(OriginDeniedError):
            await origin.prove(Ref.parse(plan.ref), file, ANONYMOUS)
        with pytest.raises(OriginDeniedError):
            await read(origin, plan, "model.safetensors", ANONYMOUS)

        assert all("authorization" not in each.headers for each in hub.seen)


async def test_a_proof_reads_a_byte_of_the_very_file_with_what_was_shown(
    hub: Hub, origin: HubOrigin
) -> None:
    repository = hub.repository("org/name", FILES)
    repository.is_gated = True
    repository.readers.add(TOKEN)
    access = Access.of(TOKEN)
    plan = (await origin.resolve(Ref.parse("hf://org/name"), access)).plan
    ref, file = Ref.parse(plan.ref), planned(plan, "model.safetensors")
    hub.seen.clear()

    await origin.prove(ref, file, access)
    await origin.prove(ref, planned(plan, "README.md"), access)

    # What is remembered proves nothing: the hub is asked each time.
    assert [each.at for each in hub.seen] == ["hub", "other", "hub"]
    assert hub.seen[1].headers["range"] == "bytes=0-0"
    repository.readers.clear()
    with pytest.raises(OriginDeniedError, match=r"gated: accept its conditions at http.*/org/name"):
        await origin.prove(ref, file, access)


@pytest.mark.parametrize("shown", [None, TOKEN])
async def test_a_gated_repository_tells_what_to_do(
    hub: Hub, origin: HubOrigin, shown: str | None
) -> None:
    hub.repository("org/name", FILES).is_gated = True

    with pytest.raises(OriginDeniedError, match="accept its conditions at") as caught:
        await origin.resolve(Ref.parse("hf://org/name"), Access.of(shown))

    assert TOKEN not in explain(caught.value)


async def test_a_wrong_token_is_a_refusal_that_does_not_show_it(
    hub: Hub, origin: HubOrigin
) -> None:
    hub.repository("org/name", FILES)

    with pytest.raises(OriginDeniedError, match="the token that was shown") as caught:
        await origin.resolve(Ref.parse("hf://org/name"), Access.of("hf_wRoNg"))

    assert "hf_wRoNg" not in explain(caught.value)


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("hf://org/name@v9", "no revision v9"),
        ("hf://org/name/nowhere/", "no such file or directory"),
        ("hf://org/name/nowhere", "no such file or directory"),
        ("hf://org/name@" + "0" * 40, "no revision 0000"),
        ("hf://datasets/org/none", "no dataset org/none"),
    ],
)
async def test_what_is_not_there_is_named(hub: Hub, origin: HubOrigin, ref: str, said: str) -> None:
    hub.repository("org/name", FILES)

    with pytest.raises(OriginNotFoundError, match=said):
        await origin.resolve(Ref.parse(ref), Access.of(TOKEN))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "17"}, 17.0),
        ({"RateLimit": '"api";r=0;t=42'}, 42.0),
    ],
)
async def test_a_hub_that_is_busy_says_until_when(
    hub: Hub, origin: HubOrigin, headers: dict[str, str], seconds: float
) -> None:
    hub.repository("org/name", FILES)
    hub.busy = [headers]

    with pytest.raises(OriginBusyError) as caught:
        await origin.resolve(Ref.parse("hf://org/name"))

    assert caught.value.retry_after_s == seconds


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "9" * 400}])
async def test_a_hub_that_is_busy_and_does_not_say_until_when_is_asked_again(
    hub: Hub, origin: HubOrigin, headers: dict[str, str]
) -> None:
    hub.repository("org/name", FILES)
    hub.busy = [headers]

    resolved = await origin.resolve(Ref.parse("hf://org/name"))

    assert len(resolved.plan.files) == len(FILES)


# --- what strangers may say ---------------------------------------------------------------------


def tree_of(*entries: object, **headers: str) -> Callable[[str, web.Response], web.Response | None]:
    def tampered(path: str, _: web.Response) -> web.Response | None:
        return web.json_response(list(entries), headers=headers) if "/tree/" in path else None

    return tampered


def entry(**fields: object) -> dict[str, object]:
    return {"type": "file", "path": "x", "size": 1, "oid": "0" * 40} | fields


@pytest.mark.parametrize(
    ("listed", "error"),
    [
        (entry(size=-1), RemoteProtocolError),
        (entry(size=1 << 62), RemoteProtocolError),
        (entry(size=10**400), RemoteProtocolError),
        (entry(size="1"), RemoteProtocolError),
        (entry(size=True), RemoteProtocolError),
        (entry(size=1.5), RemoteProtocolError),
        (entry(oid="../.."), RemoteProtocolError),
        (entry(path=None), RemoteProtocolError),
        (entry(path="../x"), ManifestError),
        (entry(path="/x"), ManifestError),
        (entry(path="a//x"), ManifestError),
        (entry(lfs={"oid": "0" * 63, "size": 1}), RemoteProtocolError),
        (entry(lfs={"oid": "0" * 64, "size": 2}), RemoteProtocolError),
        (entry(lfs=[]), RemoteProtocolError),
        ([], RemoteProtocolError),
        (None, RemoteProtocolError),
    ],
)
async def test_a_listing_that_lies_is_refused(
    hub: Hub, origin: HubOrigin, listed: object, error: type[DamselflyError]
) -> None:
    hub.repository("org/name", FILES)
    hub.tampered = tree_of(listed)

    with pytest.raises(error):
        await origin.resolve(Ref.parse("hf://org/name"))


async def test_more_bytes_than_an_artifact_has_are_refused_before_anything_is_cut(
    hub: Hub, origin: HubOrigin
) -> None:
    hub.repository("org/name", FILES)
    hub.tampered = tree_of(*(entry(path=f"f{n}", size=4_000_000_000_000) for n in range(3)))

    with pytest.raises(ManifestError, match="more bytes"):
        await origin.resolve(Ref.parse("hf://org/name"))


async def test_what_is_listed_outside_of_the_directory_is_refused(
    hub: Hub, origin: HubOrigin
) -> None:
    hub.repository("org/name", FILES)
    hub.tampered = tree_of(entry(path="config.json"))

    with pytest.raises(RemoteProtocolError, match="listed below 'original'"):
        await origin.resolve(Ref.parse("hf://org/name/original/"))


@pytest.mark.parametrize(
    "link",
    ["http://127.0.0.1:9/api/next", "//127.0.0.1:9/api/next", "https://huggingface.co/api/x"],
)
async def test_a_next_page_on_another_host_is_not_asked_for(
    hub: Hub, origin: HubOrigin, link: str
) -> None:
    hub.repository("org/name", FILES)
    hub.tampered = tree_of(entry(), Link=f'<{link}>; rel="next"')

    with pytest.raises(RemoteProtocolError, match="another host"):
        await origin.resolve(Ref.parse("hf://org/name"), Access.of(TOKEN))


async def test_pages_that_bring_nothing_are_not_read_for_ever(hub: Hub, origin: HubOrigin) -> None:
    hub.repository("org/name", FILES)
    numbers = iter(range(10_000))

    def tampered(path: str, _: web.Response) -> web.Response | None:
        link = f'<{hub.endpoint}{path}?cursor={next(numbers)}>; rel="next"'
        listed = [entry(type="directory", path="d")]
        return web.json_response(listed, headers={"Link": link}) if "/tree/" in path else None

    hub.tampered = tampered

    with pytest.raises(RemoteProtocolError, match="do not end"):
        await origin.resolve(Ref.parse("hf://org/name"))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" + "0," * 600_000 + "0]", "{}", "{", '{"a":1,"a":2}', "NaN"]
)
async def test_json_that_would_cost_too_much_is_refused(
    hub: Hub, origin: HubOrigin, text: str
) -> None:
    hub.repository("org/name", FILES)
    hub.tampered = lambda path, _: web.Response(text=text) if "/tree/" in path else None

    with pytest.raises(RemoteProtocolError):
        await origin.resolve(Ref.parse("hf://org/name"))


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Linked-Size": "1"},
        {"X-Linked-ETag": f'"{"0" * 64}"'},
        {"X-Repo-Commit": "0" * 40},
    ],
)
async def test_a_file_that_the_hub_says_is_another_is_not_read(
    hub: Hub, origin: HubOrigin, headers: dict[str, str]
) -> None:
    hub.repository("org/name", FILES)
    plan = (await origin.resolve(Ref.parse("hf://org/name"))).plan

    def tampered(_: str, response: web.Response) -> web.Response | None:
        response.headers.update(headers)
        return response

    hub.tampered = tampered
    with pytest.raises(OriginChangedError):
        await origin.prove(Ref.parse(plan.ref), planned(plan, "model.safetensors"), ANONYMOUS)


async def test_a_large_file_of_another_size_is_not_read(hub: Hub, origin: HubOrigin) -> None:
    hub.repository("org/name", FILES)
    plan = (await origin.resolve(Ref.parse("hf://org/name"))).plan
    hub.objects[sha256_of(SHARD)] = SHARD[:-1]
    # The address is remembered, so that the hub is not asked and does not mend it.

    with pytest.raises(OriginChangedError, match="bytes now"):
        await read(origin, plan, "model.safetensors")


async def test_a_digest_that_is_wrong_is_planned_as_the_hub_says_it(
    hub: Hub, origin: HubOrigin
) -> None:
    hub.repository("org/name", FILES).lies["model.safetensors"] = "ab" * 32

    plan = (await origin.resolve(Ref.parse("hf://org/name"))).plan

    # Whoever pulls holds the bytes against it.
    assert planned(plan, "model.safetensors").digests == ("sha256:" + "ab" * 32,)


async def test_a_redirect_to_where_no_model_lives_is_not_followed(
    hub: Hub, origin: HubOrigin
) -> None:
    hub.repository("org/name", FILES)
    hub.other = "http://169.254.169.254"

    with pytest.raises(OriginDeniedError, match="metadata"):
        await origin.resolve(Ref.parse("hf://org/name"))


async def test_a_plan_that_leads_elsewhere_is_not_read(hub: Hub, origin: HubOrigin) -> None:
    file = PlannedFile("x", (1,), "blob:" + "0" * 40)

    for place in (f"{hub.endpoint}/org/name/", "hf://org/name@../", "hf://org/name.git"):
        with pytest.raises(UsageError):
            await origin.prove(Ref.parse(place), file, ANONYMOUS)

    assert hub.seen == []


# --- the environment ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "endpoint",
    ["huggingface.co", "ftp://h/x", "https://h/x?y=1", "https://u:hunter2@h", "hf://h/x"],
)
async def test_an_endpoint_that_is_none_is_an_error(endpoint: str) -> None:
    async with hub_origin({"HF_ENDPOINT": endpoint}) as origin:
        with pytest.raises(ConfigError, match="HF_ENDPOINT") as caught:
            await origin.resolve(Ref.parse("hf://org/name"))

    assert "hunter2" not in explain(caught.value)


def test_the_hub_is_asked_by_https_unless_it_is_written_otherwise() -> None:
    assert HubEnvironment({}).endpoint == "https://huggingface.co"
    assert HubEnvironment({"HF_ENDPOINT": ""}).endpoint == "https://huggingface.co"
    mirror = HubEnvironment({"HF_ENDPOINT": "http://mirror:8080/api/hub/"})
    assert mirror.endpoint == "http://mirror:8080/api/hub"


async def test_a_token_is_found_where_the_hubs_own_client_has_it(tmp_path: Path) -> None:
    (tmp_path / "huggingface").mkdir()
    (tmp_path / "huggingface/token").write_text("in-cache\n")
    (tmp_path / "token").write_text("in-home\n")
    (tmp_path / "other").write_text("in-path\n")
    cache, home, path = str(tmp_path), str(tmp_path), str(tmp_path / "other")
    variables = {"XDG_CACHE_HOME": cache}
    found: list[str | None] = []
    for more in ({}, {"HF_HOME": home}, {"HF_TOKEN_PATH": path}, {"HF_TOKEN": "said"}):
        variables |= more
        found.append((await HubEnvironment(variables).access(OWN)).token)

    assert found == ["in-cache", "in-home", "in-path", "said"]
    assert await HubEnvironment(variables).access(ANONYMOUS) == ANONYMOUS
    assert await HubEnvironment(variables).access(Access.of("theirs")) == Access.of("theirs")


@pytest.mark.parametrize("text", ["two words", "x" * 9000, "\x00"])
def test_a_token_of_the_environment_that_is_none_is_not_shown(text: str) -> None:
    with pytest.raises(ConfigError, match="HF_TOKEN") as caught:
        HubEnvironment({"HF_TOKEN": text}).own()

    assert text not in explain(caught.value)


def test_a_token_file_that_was_named_and_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file"):
        HubEnvironment({"HF_TOKEN_PATH": str(tmp_path / "none")}).own()

    assert HubEnvironment({"HF_HOME": str(tmp_path)}).own() == ANONYMOUS
