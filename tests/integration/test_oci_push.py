"""Pushes to a registry: only what lacks, through what breaks, the tag last."""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from hashlib import sha256 as sha256_of
from pathlib import Path

import pytest
from aiohttp import web

from damselfly.agent.settings import SETTINGS
from damselfly.errors import (
    OriginBusyError,
    OriginChangedError,
    OriginDeniedError,
    OriginUnavailableError,
    RemoteProtocolError,
    UsageError,
)
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.paths import MANIFEST_NAME
from damselfly.model.plan import Plan
from damselfly.model.ref import Ref
from damselfly.origin import oci_session
from damselfly.origin.access import ANONYMOUS, Access
from damselfly.origin.destination import Parcel
from damselfly.origin.oci import OCIOrigin
from damselfly.origin.oci_push import INSECURE_VARIABLE, OCIDestination
from damselfly.origin.parcel import Sign
from damselfly.origin.port import OriginLimits
from damselfly.origin.push import PushReport, push
from damselfly.origin.tree import plan_file, walk
from damselfly.origin.web import Web
from tests.fakes.registry import FakeRegistry, sha256
from tests.integration.origin_servers import write_model

USER = Access.of(username="ada", password="SECRET-OF-ADA")
Push = Callable[..., Awaitable[None]]


@pytest.fixture
async def registry() -> AsyncGenerator[FakeRegistry]:
    async with FakeRegistry(users={"ada": "SECRET-OF-ADA"}).serving() as registry:
        yield registry


@pytest.fixture
async def web_() -> AsyncGenerator[Web]:
    web_ = Web(OriginLimits())
    yield web_
    await web_.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_model(folder)
    return folder


def parcel_of(folder: Path) -> Parcel:
    files = walk(folder)
    plan = Plan.of("-", [plan_file(file) for file in files])
    digests: list[Digest] = []
    for file in plan.files:
        data = (folder / file.path).read_bytes()
        starts = (0, *file.stops)
        digests += [
            Digest.of(data[start:stop]) for start, stop in zip(starts, file.stops, strict=False)
        ]
    hexed = tuple(sha256_of(file.location.read_bytes()).hexdigest() for file in files)
    return Parcel(folder, tuple(files), hexed, Manifest.seal(plan, digests))


class Waits:
    """A clock that does not let anybody wait, and remembers what was wanted."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


class Told:
    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}

    def __call__(self, path: str, count: int) -> None:
        assert count > 0
        self.bytes[path] = self.bytes.get(path, 0) + count


def destination(
    registry: FakeRegistry, web_: Web, access: Access = ANONYMOUS, waits: Waits | None = None
) -> OCIDestination:
    ref = Ref.parse(f"oci://{registry.host}/org/model:v1")
    return OCIDestination(ref, web_, access, OriginLimits(), sleep=waits or Waits())


async def pushed(
    registry: FakeRegistry,
    web_: Web,
    parcel: Parcel,
    access: Access = ANONYMOUS,
    waits: Waits | None = None,
) -> Told:
    told = Told()
    target = destination(registry, web_, access, waits)
    await target.push(parcel, await target.standing(parcel), told)
    await target.close()
    return told


def sessions_of(registry: FakeRegistry) -> int:
    return sum(path.endswith("/uploads/") for path in registry.lines("POST"))


async def test_what_was_pushed_is_found_with_every_digest(
    registry: FakeRegistry, web_: Web, folder: Path
) -> None:
    parcel = parcel_of(folder)
    told = await pushed(registry, web_, parcel)
    origin = OCIOrigin(OriginLimits(), web_)

    resolved = await origin.resolve(Ref.parse(f"oci://{registry.host}/org/model:v1"))

    assert resolved.manifest == parcel.manifest
    assert told.bytes == {file.path: file.size for file in parcel.files if file.size}
    assert {f"sha256:{hexed}" for hexed in parcel.sha256} <= registry.blobs.keys()


async def test_the_artifact_is_what_the_specification_of_modelpack_says(
    registry: FakeRegistry, web_: Web, folder: Path
) -> None:
    (folder / "model.sig").write_bytes(b"{}")
    (folder / "modeling_x.py").write_bytes(b"import os\n")
    await pushed(registry, web_, parcel_of(folder))

    media_type, data = registry.manifests["org/model", "v1"]

    manifest = json.loads(data)
    assert media_type == manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    kinds = {
        layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"].split(".model.")[1]
        for layer in manifest["layers"]
    }
    assert kinds["model-00001-of-00002.safetensors"] == "weight.v1.raw"
    assert kinds["config.json"] == "weight.config.v1.raw"
    assert kinds["README.md"] == kinds["model.sig"] == kinds[MANIFEST_NAME] == "doc.v1.raw"
    assert kinds["modeling_x.py"] == "code.v1.raw"
    for layer in manifest["layers"]:
        notes = layer["annotations"]
        assert notes["org.opencontainers.image.title"] == notes["org.cncf.model.filepath"]
        assert len(registry.blobs[layer["digest"]]) == layer["size"]
    config = json.loads(registry.blobs[manifest["config"]["digest"]])
    assert config["descriptor"] == {"name": "model"}
    assert config["config"] == {"format": "safetensors"}
    assert config["modelfs"] == {
        "type": "layers",
        "diffIds": [layer["digest"] for layer in manifest["layers"]],
    }


async def test_a_second_push_has_nothing_to_do_and_a_third_sends_what_changed(
    registry: FakeRegistry, web_: Web, folder: Path
) -> None:
    parcel = parcel_of(folder)
    target = destination(registry, web_)
    before = await target.standing(parcel)
    await pushed(registry, web_, parcel)

    after = await target.standing(parcel)
    (folder / "config.json").write_bytes(b'{"changed": true}')
    changed = await target.standing(parcel_of(folder))
    sessions = sessions_of(registry)
    told = await pushed(registry, web_, parcel_of(folder))

    sizes = {file.path: file.size for file in parcel.files}
    assert (before.kept, before.is_whole) == (frozenset(), False)
    assert before.bytes_missing == sum(sizes.values())
    assert (len(after.kept), after.bytes_missing, after.is_whole) == (len(sizes), 0, True)
    assert (changed.bytes_missing, changed.is_whole) == (17, False)
    assert told.bytes == {"config.json": 17}
    assert sessions_of(registry) == sessions + 3  # The file, the config and our manifest.


async def test_two_files_with_the_same_content_are_sent_once(
    registry: FakeRegistry, web_: Web, tmp_path: Path
) -> None:
    folder = tmp_path / "twins"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_bytes(b"the same")

    standing = await destination(registry, web_).standing(parcel_of(folder))
    await pushed(registry, web_, parcel_of(folder))

    assert standing.bytes_missing == 8
    assert sessions_of(registry) == 3


async def test_the_tag_moves_last_and_not_at_all_when_a_push_breaks(
    registry: FakeRegistry, web_: Web, folder: Path
) -> None:
    old = parcel_of(folder)
    await pushed(registry, web_, old)
    former = registry.manifests["org/model", "v1"]
    (folder / "config.json").write_bytes(b"new")
    os.truncate(folder / "original/x", 0)

    async def broken(request: web.Request) -> web.StreamResponse | None:
        is_last = request.method == "PUT" and "/manifests/" in request.path
        return web.Response(status=403) if is_last else None

    registry.hook = broken
    with pytest.raises(OriginDeniedError):
        await pushed(registry, web_, parcel_of(folder))
    assert registry.manifests["org/model", "v1"] == former
    registry.hook = None

    sessions = sessions_of(registry)
    await pushed(registry, web_, parcel_of(folder))

    assert registry.manifests["org/model", "v1"] != former
    assert sessions_of(registry) == sessions


async def test_a_large_file_goes_in_parts_and_resumes_where_a_part_broke(
    registry: FakeRegistry, web_: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci_session, "PART_BYTES", 1 << 20)
    monkeypatch.setattr(oci_session, "READ_BYTES", 64 << 10)
    folder = tmp_path / "one"
    folder.mkdir()
    data = os.urandom((5 << 20) + 7)
    (folder / "a.bin").write_bytes(data)
    kept = 300_000
    breaks = 1

    async def break_one(request: web.Request) -> web.StreamResponse | None:
        """Keep some of the third part, and hang up."""
        nonlocal breaks
        if (
            request.method == "PATCH"
            and len(registry.sessions.get("s0", b"")) == 2 << 20
            and breaks
        ):
            breaks -= 1
            registry.sessions["s0"] += await request.content.readexactly(kept)
            assert request.transport is not None
            request.transport.close()
        return None

    registry.hook = break_one
    waits = Waits()

    told = await pushed(registry, web_, parcel_of(folder), waits=waits)

    assert breaks == 0
    assert registry.blobs[sha256(data)] == data
    assert told.bytes == {"a.bin": len(data)}
    assert len(waits.seconds) == 1
    # Two, the one that broke, and from there on four more; then the two small blobs.
    assert len(registry.lines("PATCH")) == 2 + 1 + 3 + 2


async def test_a_registry_may_want_larger_parts(
    registry: FakeRegistry, web_: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci_session, "PART_BYTES", 1 << 20)
    registry.part_bytes_min = 3 << 20
    (tmp_path / "a.bin").write_bytes(bytes(5 << 20))

    await pushed(registry, web_, parcel_of(tmp_path))

    assert len(registry.lines("PATCH")) == 2 + 2


async def test_a_session_that_the_registry_forgot_is_begun_anew(
    registry: FakeRegistry, web_: Web, folder: Path
) -> None:
    forgets = 2

    async def forget(request: web.Request) -> web.StreamResponse | None:
        nonlocal forgets
        if request.method == "PATCH" and forgets:
            forgets -= 1
            registry.sessions.clear()
        return None

    registry.hook = forget
    parcel = parcel_of(folder)

    told = await pushed(registry, web_, parcel)

    assert forgets == 0
    assert told.bytes == {file.path: file.size for file in parcel.files if file.size}


async def test_an_answer_that_got_lost_after_the_end_costs_no_second_sending(
    registry: FakeRegistry, web_: Web, tmp_path: Path
) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"x" * 1000)
    lost = 1

    async def lose(request: web.Request) -> web.StreamResponse | None:
        nonlocal lost
        if request.method == "PUT" and "digest" in request.query and lost:
            lost -= 1
            registry.hook = None
            await registry._answer(request)  # pyright: ignore[reportPrivateUsage]
            registry.hook = lose
            return web.Response(status=504)
        return None

    registry.hook = lose

    await pushed(registry, web_, parcel_of(folder))

    assert lost == 0
    assert sessions_of(registry) == 3


async def test_a_registry_that_asks_for_rest_gets_it(
    registry: FakeRegistry, web_: Web, folder: Path
) -> None:
    rests = {"HEAD", "PATCH", "PUT"}

    async def busy(request: web.Request) -> web.StreamResponse | None:
        """Once for looking, once for sending, once for the manifest."""
        is_blob_end = request.method == "PUT" and "digest" in request.query
        if request.method not in rests or is_blob_end:
            return None
        rests.remove(request.method)
        await request.read()
        return web.Response(status=503, headers={"Retry-After": "1"})

    registry.hook = busy

    await pushed(registry, web_, parcel_of(folder))

    assert not rests
    assert ("org/model", "v1") in registry.manifests


async def test_a_registry_that_fails_now_and_then_gets_everything(
    registry: FakeRegistry, web_: Web, folder: Path
) -> None:
    number = 0

    async def flaky(request: web.Request) -> web.StreamResponse | None:
        nonlocal number
        number += 1
        if number % 4:
            return None
        await request.read()
        return web.Response(status=502)

    registry.hook = flaky
    parcel = parcel_of(folder)

    told = await pushed(registry, web_, parcel)

    assert told.bytes == {file.path: file.size for file in parcel.files if file.size}
    assert ("org/model", "v1") in registry.manifests


async def test_patience_with_a_registry_ends(
    registry: FakeRegistry, web_: Web, folder: Path
) -> None:
    async def broken(request: web.Request) -> web.StreamResponse | None:
        """Takes no part of anything."""
        return web.Response(status=500) if request.method == "PATCH" else None

    async def restless(request: web.Request) -> web.StreamResponse:
        del request
        return web.Response(status=503, headers={"Retry-After": "100000"})

    parcel, waits = parcel_of(folder), Waits()
    registry.hook = broken
    with pytest.raises(OriginUnavailableError):
        await pushed(registry, web_, parcel, waits=waits)
    assert len(waits.seconds) >= 8
    registry.hook = restless
    with pytest.raises(OriginBusyError):
        await pushed(registry, web_, parcel)


async def test_a_token_that_ends_in_the_middle_is_renewed(
    registry: FakeRegistry, web_: Web, folder: Path
) -> None:
    registry.wants, registry.opens_to_anybody = "bearer", False
    ends = 3

    async def end_tokens(request: web.Request) -> web.StreamResponse | None:
        nonlocal ends
        if request.method == "PATCH" and ends:
            ends -= 1
            registry.tokens.clear()
        return None

    registry.hook = end_tokens

    await pushed(registry, web_, parcel_of(folder), USER)

    assert ends == 0
    assert {scope for _, scope in registry.asked_for_tokens} == {"repository:org/model:pull,push"}
    assert ("org/model", "v1") in registry.manifests


async def test_whoever_may_not_push_is_told_so_before_anything_is_sent(
    registry: FakeRegistry, web_: Web, folder: Path
) -> None:
    registry.wants = "bearer"
    stranger = Access.of(username="bob", password="SECRET-OF-BOB")

    with pytest.raises(OriginDeniedError):
        await pushed(registry, web_, parcel_of(folder), stranger)
    with pytest.raises(OriginDeniedError):
        await pushed(registry, web_, parcel_of(folder))

    assert registry.lines("PATCH") == []


async def test_a_file_that_changes_meanwhile_ends_the_push(
    registry: FakeRegistry, web_: Web, folder: Path
) -> None:
    parcel = parcel_of(folder)
    (folder / "config.json").write_bytes(b"changed since")

    with pytest.raises(OriginChangedError, match=r"config\.json"):
        await pushed(registry, web_, parcel)

    assert registry.manifests == {}


async def test_a_registry_that_goes_on_elsewhere_is_followed_without_credentials(
    registry: FakeRegistry, web_: Web, folder: Path
) -> None:
    registry.wants = "basic"
    async with FakeRegistry().serving() as other:
        other.blobs = registry.blobs

        async def elsewhere(request: web.Request) -> web.StreamResponse | None:
            if request.method != "POST" or not request.headers.get("Authorization"):
                return None
            number = f"o{len(other.asked)}-{len(registry.asked)}"
            other.sessions[number] = bytearray()
            place = f"{other.address}/v2/org/model/blobs/uploads/{number}?state=of+{number}"
            return web.Response(status=202, headers={"Location": place})

        registry.hook = elsewhere
        await pushed(registry, web_, parcel_of(folder), USER)

        assert other.lines("PATCH")
        assert {each.authorization for each in other.asked} == {""}
    assert ("org/model", "v1") in registry.manifests


@pytest.mark.parametrize("location", ["ftp://x/y", "http://u:p@x/y", "http://[/", "//x:99999/", ""])
async def test_a_session_at_no_address_is_an_error(
    registry: FakeRegistry, web_: Web, folder: Path, location: str
) -> None:
    async def nowhere(request: web.Request) -> web.StreamResponse | None:
        if request.method != "POST":
            return None
        return web.Response(status=202, headers={"Location": location} if location else {})

    registry.hook = nowhere

    with pytest.raises(RemoteProtocolError):
        await pushed(registry, web_, parcel_of(folder))


async def test_a_push_asks_in_plain_http_where_the_variable_of_the_agent_says_so(
    web_: Web, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = Ref.parse("oci://registry.test:5000/org/m")
    monkeypatch.setenv(INSECURE_VARIABLE, "other.test, registry.test:5000")
    listed = OCIDestination(ref, web_, ANONYMOUS, OriginLimits(), sleep=Waits())
    monkeypatch.delenv(INSECURE_VARIABLE)
    unlisted = OCIDestination(ref, web_, ANONYMOUS, OriginLimits(), sleep=Waits())
    told: list[str] = []

    for target in (listed, unlisted):
        with pytest.raises(OriginUnavailableError) as caught:
            await target.standing(parcel_of(folder))
        told.append(str(caught.value))

    assert SETTINGS["origin.insecure"].variable == INSECURE_VARIABLE
    assert " http://registry.test:5000/" in told[0]
    assert " https://registry.test:5000/" in told[1]


async def test_a_small_file_of_the_tag_is_read(
    registry: FakeRegistry, web_: Web, folder: Path
) -> None:
    there = destination(registry, web_)
    assert await there.small("model.sig", 100) is None
    (folder / "model.sig").write_bytes(b"signed")
    await pushed(registry, web_, parcel_of(folder))

    assert [await there.small("model.sig", most) for most in (6, 5)] == [b"signed", b""]
    assert await there.small("none", 100) is None


async def test_a_tag_keeps_its_signature_until_something_else_is_pushed(
    registry: FakeRegistry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INSECURE_VARIABLE, registry.host)
    offered: list[bytes | None] = []

    def sign(name: str, files: Sequence[tuple[str, str]], old: bytes | None) -> bytes:
        del name, files
        offered.append(old)
        return old or b"signed"

    def pushed_by(sign: Sign | None) -> PushReport:
        return push(folder, f"oci://{registry.host}/org/model:v1", sign=sign)

    first = await asyncio.to_thread(pushed_by, sign)
    again = await asyncio.to_thread(pushed_by, sign)
    unsigned = await asyncio.to_thread(pushed_by, None)

    assert offered == [None, b"signed"]
    assert (again.artifact, again.is_whole) == (first.artifact, True)
    assert "model.sig" not in {file.path for file in unsigned.manifest.files}


async def test_a_push_goes_to_a_tag_and_not_to_a_digest(web_: Web) -> None:
    digest = "sha256:" + "0" * 64

    with pytest.raises(UsageError, match="tag"):
        OCIDestination(Ref.parse(f"oci://h/org/m@{digest}"), web_, ANONYMOUS, OriginLimits())
