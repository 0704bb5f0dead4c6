"""Every origin, over every server at hand: the same directory, the same cuts, the same bytes."""

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from damselfly.errors import OriginNotFoundError
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.plan import Plan
from damselfly.model.ref import Ref
from damselfly.origin.port import Origin
from damselfly.origin.push import push
from damselfly.origin.registry import Origins
from tests.integration.origin_servers import (
    NGINX,
    aiohttp_server,
    nginx_server,
    python_server,
    write_model,
)

KINDS = ["file", "aiohttp", "python", "nginx"]


class _Place:
    """A model directory, and a ref under which the origin at hand finds it."""

    def __init__(self, directory: Path, files: dict[str, bytes], ref: Ref, origin: Origin) -> None:
        self.directory = directory
        self.files = files
        self.ref = ref
        self.origin = origin
        # nginx does not list names with a leading dot.
        self.is_complete = True

    @property
    def listed(self) -> dict[str, bytes]:
        """The files that the server tells of."""
        if self.is_complete:
            return self.files
        return {path: data for path, data in self.files.items() if not path.startswith(".")}


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[_Place]:
    kind: str = request.param
    if kind == "nginx" and NGINX is None:
        pytest.skip("nginx is not installed")
    directory = tmp_path / "model"
    files = write_model(directory)
    scratch = tmp_path / "nginx"
    scratch.mkdir()
    origins = Origins()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(origins.close)
        match kind:
            case "file":
                text = f"file://{directory}/"
            case "aiohttp":
                text = await stack.enter_async_context(aiohttp_server(directory))
            case "python":
                text = stack.enter_context(python_server(directory))
            case _:
                text = stack.enter_context(nginx_server(directory, scratch))
        ref = Ref.parse(text)
        place = _Place(directory, files, ref, origins.for_ref(ref))
        place.is_complete = kind != "nginx"
        yield place


async def _read(origin: Origin, plan: Plan, index: int) -> bytes:
    span = plan.span(index)
    data = bytearray(span.length)
    stop = span.start + span.length
    async with origin.open(Ref.parse(plan.ref), plan.files[span.file], span.start, stop) as stream:
        await stream.readinto(memoryview(data))
        assert stream.first_byte_s is not None
    return bytes(data)


async def _pulled(origin: Origin, plan: Plan) -> dict[str, bytes]:
    pulled = {file.path: b"" for file in plan.files}
    for index in range(plan.chunk_count):
        pulled[plan.files[plan.span(index).file].path] += await _read(origin, plan, index)
    return pulled


async def test_a_directory_is_found_and_read_to_the_last_byte(place: _Place) -> None:
    resolved = await place.origin.resolve(place.ref)

    assert resolved.manifest is None
    assert resolved.plan.ref == str(place.ref)
    assert {file.path: file.bytes for file in resolved.plan.files} == {
        path: len(data) for path, data in place.listed.items()
    }
    assert await _pulled(place.origin, resolved.plan) == place.listed


async def test_every_origin_cuts_alike(place: _Place, tmp_path: Path) -> None:
    local = Origins()
    ref = Ref.parse(f"file://{place.directory}")

    here = (await local.for_ref(ref).resolve(ref)).plan
    there = (await place.origin.resolve(place.ref)).plan

    lengths = {file.path: file.lengths for file in here.files}
    assert {file.path: file.lengths for file in there.files}.items() <= lengths.items()
    await local.close()


async def test_resolving_twice_gives_the_same_plan_and_revision(place: _Place) -> None:
    first = await place.origin.resolve(place.ref)
    again = await place.origin.resolve(place.ref)

    assert first.plan.id == again.plan.id
    assert first.revision == again.revision


async def test_a_changed_file_makes_another_revision(place: _Place) -> None:
    before = await place.origin.resolve(place.ref)
    (place.directory / "original/x").write_bytes(b"xy")

    after = await place.origin.resolve(place.ref)

    assert before.revision != after.revision


async def test_a_directory_without_the_slash_is_the_same_directory(place: _Place) -> None:
    if place.ref.path == "/":
        pytest.skip("the top of a server has no other spelling")

    resolved = await place.origin.resolve(place.ref.as_file)

    assert resolved.plan.id == (await place.origin.resolve(place.ref)).plan.id


async def test_a_pushed_directory_needs_no_looking_around(place: _Place) -> None:
    report = push(place.directory, str(place.directory))

    resolved = await place.origin.resolve(place.ref)

    assert resolved.manifest == report.manifest
    assert resolved.revision == str(report.artifact)
    assert await _pulled(place.origin, resolved.plan) == place.files
    digests = [
        Digest.of(await _read(place.origin, resolved.plan, index))
        for index in range(resolved.plan.chunk_count)
    ]
    assert Manifest.seal(resolved.plan, digests) == report.manifest


@pytest.mark.parametrize("path", ["original/deep/größe.bin", "a b & <c>%41.txt"])
async def test_a_single_file_is_an_artifact(place: _Place, path: str) -> None:
    ref = Ref.parse(place.ref.file_location(path))

    resolved = await place.origin.resolve(ref)

    name = path.rpartition("/")[2]
    assert [file.path for file in resolved.plan.files] == [name]
    assert resolved.plan.ref == str(ref)
    assert await _pulled(place.origin, resolved.plan) == {name: place.files[path]}


async def test_a_span_may_be_read_in_pieces_that_are_no_chunks(place: _Place) -> None:
    path = "original/deep/größe.bin"
    plan = (await place.origin.resolve(place.ref)).plan
    file = next(file for file in plan.files if file.path == path)
    data = bytearray(100_000)

    async with place.origin.open(Ref.parse(plan.ref), file, 4_000_000, 4_100_000) as stream:
        for start, stop in ((0, 1), (1, 1), (1, 70_000), (70_000, 100_000)):
            await stream.readinto(memoryview(data)[start:stop])

    assert data == place.files[path][4_000_000:4_100_000]


async def test_what_is_not_there_is_named(place: _Place) -> None:
    ref = Ref.parse(place.ref.file_location("no/such/directory") + "/")

    with pytest.raises(OriginNotFoundError, match="no/such/directory"):
        await place.origin.resolve(ref)
    with pytest.raises(OriginNotFoundError, match="no/such"):
        await place.origin.resolve(ref.as_file)
