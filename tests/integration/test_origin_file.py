"""Local directories: what counts, what is refused, and what happens when files change."""

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from damselfly.errors import (
    HeaderError,
    ManifestError,
    OriginChangedError,
    OriginDeniedError,
    OriginNotFoundError,
    explain,
)
from damselfly.model.plan import Plan
from damselfly.model.ref import Ref
from damselfly.origin.file import FileOrigin
from damselfly.origin.port import OriginLimits
from damselfly.origin.push import push
from tests.integration.origin_servers import weights


@pytest.fixture
async def origin() -> AsyncGenerator[FileOrigin]:
    origin = FileOrigin(OriginLimits())
    yield origin
    await origin.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "a.bin").write_bytes(b"0123456789")
    return directory


def _ref(place: Path) -> Ref:
    return Ref.parse(f"file://{place}")


async def _paths(origin: FileOrigin, place: Path) -> list[str]:
    return [file.path for file in (await origin.resolve(_ref(place))).plan.files]


def _descriptor_count() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def _read(origin: FileOrigin, plan: Plan, stop: int = 10) -> bytes:
    data = bytearray(stop)
    async with origin.open(Ref.parse(plan.ref), plan.files[0], 0, stop) as stream:
        await stream.readinto(memoryview(data))
    return bytes(data)


async def test_only_the_agent_that_was_asked_can_read_it(origin: FileOrigin) -> None:
    assert not origin.shared


async def test_bookkeeping_is_left_out_and_other_hidden_files_are_not(
    origin: FileOrigin, model: Path
) -> None:
    for path in (".git/HEAD", ".cache/huggingface/x", "sub/.DS_Store", ".gitattributes", "sub/.x"):
        (model / path).parent.mkdir(parents=True, exist_ok=True)
        (model / path).write_bytes(b"x")

    assert await _paths(origin, model) == [".gitattributes", "a.bin", "sub/.x"]


async def test_a_link_inside_the_directory_is_a_file(origin: FileOrigin, model: Path) -> None:
    (model / "b.bin").symlink_to("a.bin")
    (model / "sub").mkdir()
    (model / "sub/c.bin").symlink_to(model / "b.bin")

    plan = (await origin.resolve(_ref(model))).plan

    assert {file.path: file.bytes for file in plan.files} == {
        "a.bin": 10,
        "b.bin": 10,
        "sub/c.bin": 10,
    }


async def test_the_directory_itself_may_be_a_link(origin: FileOrigin, model: Path) -> None:
    link = model.parent / "link"
    link.symlink_to(model)

    assert await _paths(origin, link) == ["a.bin"]


@pytest.mark.parametrize("target", ["/etc/hostname", "../secret", "../model-2/x"])
async def test_a_link_that_leaves_the_directory_is_refused(
    origin: FileOrigin, model: Path, target: str
) -> None:
    (model.parent / "secret").write_bytes(b"secret")
    (model.parent / "model-2").mkdir()
    (model.parent / "model-2/x").write_bytes(b"secret")
    (model / "link").symlink_to(target)

    with pytest.raises(ManifestError, match=r"'link' in .* leaves the directory"):
        await origin.resolve(_ref(model))


async def test_a_link_made_after_planning_does_not_leave_either(
    origin: FileOrigin, model: Path
) -> None:
    plan = (await origin.resolve(_ref(model))).plan
    (model.parent / "secret").write_bytes(b"9876543210")
    (model / "a.bin").unlink()
    (model / "a.bin").symlink_to("../secret")

    with pytest.raises(ManifestError, match="leaves the directory"):
        await _read(origin, plan)


async def test_links_that_lead_nowhere_are_refused(origin: FileOrigin, model: Path) -> None:
    (model / "loop").symlink_to("loop")

    with pytest.raises(OriginNotFoundError, match="loop"):
        await origin.resolve(_ref(model))
    (model / "loop").unlink()
    (model / "gone").symlink_to("nothing")
    with pytest.raises(OriginNotFoundError, match="nothing"):
        await origin.resolve(_ref(model))


async def test_a_link_to_a_directory_is_refused(origin: FileOrigin, model: Path) -> None:
    (model / "sub").mkdir()
    (model / "sub/up").symlink_to("..")

    with pytest.raises(ManifestError, match="neither a file nor a directory"):
        await origin.resolve(_ref(model))


async def test_what_is_no_file_is_refused_without_waiting_for_it(
    origin: FileOrigin, model: Path
) -> None:
    os.mkfifo(model / "pipe")

    with pytest.raises(ManifestError, match="pipe is neither"):
        await origin.resolve(_ref(model))
    with pytest.raises(ManifestError, match="pipe is neither"):
        await origin.resolve(_ref(model / "pipe"))


async def test_a_name_that_is_not_text_is_refused(origin: FileOrigin, model: Path) -> None:
    (model / os.fsdecode(b"\xff.bin")).write_bytes(b"x")

    with pytest.raises(ManifestError, match="not Unicode"):
        await origin.resolve(_ref(model))


async def test_a_directory_without_files_is_no_artifact(origin: FileOrigin, tmp_path: Path) -> None:
    (tmp_path / "empty/sub").mkdir(parents=True)

    with pytest.raises(OriginNotFoundError, match="no files"):
        await origin.resolve(_ref(tmp_path / "empty"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_what_may_not_be_read_is_denied(origin: FileOrigin, model: Path) -> None:
    (model / "sub").mkdir(mode=0)

    with pytest.raises(OriginDeniedError, match="sub"):
        await origin.resolve(_ref(model))


async def test_a_malformed_safetensors_file_is_named(origin: FileOrigin, model: Path) -> None:
    (model / "m.safetensors").write_bytes(weights(1, 100)[:-1])

    with pytest.raises(HeaderError) as caught:
        await origin.resolve(_ref(model))

    assert f"{model}/m.safetensors" in explain(caught.value)
    assert "the tensors end at" in explain(caught.value)


async def test_a_header_longer_than_the_first_read_is_read(origin: FileOrigin, model: Path) -> None:
    (model / "m.safetensors").write_bytes(weights(1, *[1] * 6000))

    file = (await origin.resolve(_ref(model / "m.safetensors"))).plan.files[0]

    assert file.lengths[0] > 256 << 10
    assert file.lengths[1:] == (6000,)


async def test_a_file_that_was_written_to_has_changed(origin: FileOrigin, model: Path) -> None:
    plan = (await origin.resolve(_ref(model))).plan
    (model / "a.bin").write_bytes(b"9876543210")
    os.utime(model / "a.bin", ns=(1, 1))

    with pytest.raises(OriginChangedError, match=r"a\.bin was written to or replaced"):
        await _read(origin, plan)


async def test_a_file_that_changed_size_has_changed(origin: FileOrigin, model: Path) -> None:
    plan = (await origin.resolve(_ref(model))).plan
    (model / "a.bin").write_bytes(b"0123")

    with pytest.raises(OriginChangedError, match="has 4 bytes now: it had 10"):
        await _read(origin, plan)


async def test_a_file_that_is_written_to_while_it_is_read_has_changed(
    origin: FileOrigin, model: Path
) -> None:
    plan = (await origin.resolve(_ref(model))).plan
    async with origin.open(Ref.parse(plan.ref), plan.files[0], 0, 10) as stream:
        await stream.readinto(memoryview(bytearray(5)))
        os.utime(model / "a.bin", ns=(1, 1))

        with pytest.raises(OriginChangedError):
            await stream.readinto(memoryview(bytearray(5)))


async def test_a_file_that_is_gone_is_not_found(origin: FileOrigin, model: Path) -> None:
    plan = (await origin.resolve(_ref(model))).plan
    (model / "a.bin").unlink()

    with pytest.raises(OriginNotFoundError, match=r"a\.bin"):
        await _read(origin, plan)


async def test_files_that_differ_from_their_manifest_are_noticed_by_their_size(
    origin: FileOrigin, model: Path
) -> None:
    push(model, str(model))
    (model / "a.bin").write_bytes(b"longer than it was")

    with pytest.raises(OriginChangedError, match="push the directory again"):
        await origin.resolve(_ref(model))


async def test_a_manifest_that_cannot_be_read_is_not_passed_over(
    origin: FileOrigin, model: Path
) -> None:
    (model / "damselfly-manifest.json").write_bytes(b"{}")

    with pytest.raises(ManifestError, match=r"reading .*damselfly-manifest\.json"):
        await origin.resolve(_ref(model))


async def test_descriptors_are_given_back(origin: FileOrigin, model: Path) -> None:
    plan = (await origin.resolve(_ref(model))).plan
    before = _descriptor_count()
    for _ in range(5):
        await _read(origin, plan)
    (model / "a.bin").write_bytes(b"0123")
    for _ in range(5):
        with pytest.raises(OriginChangedError):
            await _read(origin, plan)

    assert _descriptor_count() == before


async def test_a_cancelled_reader_is_let_go_only_when_its_buffer_is_left_alone(
    model: Path,
) -> None:
    origin = FileOrigin(OriginLimits(read_threads=1))
    (model / "a.bin").write_bytes(os.urandom(64 << 20))
    plan = (await origin.resolve(_ref(model))).plan
    data = bytearray(64 << 20)
    opened = asyncio.Event()

    async def read() -> None:
        async with origin.open(Ref.parse(plan.ref), plan.files[0], 0, len(data)) as stream:
            opened.set()
            await stream.readinto(memoryview(data))

    reader = asyncio.ensure_future(read())
    await opened.wait()
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    at_return = bytes(data)
    await origin.resolve(_ref(model))  # The one thread has done all that came before.

    assert data == at_return
    await origin.close()
