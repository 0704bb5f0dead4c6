"""A stock client of registries, ORAS: it pushes and we pull, we push and it pulls."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import oras.client  # type: ignore[import-untyped]
import pytest

from damselfly.errors import UnsupportedFormatError
from damselfly.model.paths import MANIFEST_NAME
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS, Access
from damselfly.origin.oci import OCIOrigin
from damselfly.origin.oci_push import OCIDestination
from damselfly.origin.port import OriginLimits
from damselfly.origin.web import Web
from tests.fakes.registry import FakeRegistry
from tests.integration.test_oci_push import parcel_of
from tests.integration.test_origin_oci import pulled

USER = Access.of(username="ada", password="SECRET-OF-ADA")


@pytest.fixture(params=["nothing", "bearer"])
async def registry(request: pytest.FixtureRequest) -> AsyncGenerator[FakeRegistry]:
    registry = FakeRegistry(users={"ada": "SECRET-OF-ADA"}, wants=request.param)
    registry.opens_to_anybody = False
    async with registry.serving():
        yield registry


@pytest.fixture
async def origin() -> AsyncGenerator[OCIOrigin]:
    origin = OCIOrigin(OriginLimits())
    yield origin
    await origin.close()


def access_to(registry: FakeRegistry) -> Access:
    return USER if registry.wants == "bearer" else ANONYMOUS


def client_of(registry: FakeRegistry) -> Any:
    kind = "basic" if registry.wants == "basic" else "token"
    client: Any = oras.client.OrasClient(hostname=registry.host, insecure=True, auth_backend=kind)
    if registry.wants != "nothing":
        client.auth.set_basic_auth("ada", "SECRET-OF-ADA")
    return client


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The client leaves a folder behind wherever temporary files go.
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))


async def push_by_oras(registry: FakeRegistry, *places: Path) -> None:
    # The client keeps the token that it got for looking, which is none for pushing.
    wants = registry.wants
    registry.wants = "basic" if wants == "bearer" else wants
    await asyncio.to_thread(
        client_of(registry).push,
        target=f"{registry.host}/org/model:v1",
        files=[str(place) for place in places],
        disable_path_validation=True,
    )
    registry.wants = wants


async def test_files_that_oras_pushed_are_pulled(
    registry: FakeRegistry, origin: OCIOrigin, tmp_path: Path
) -> None:
    files = {"a.bin": b"a" * 100_000, "config.json": b"{}"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    await push_by_oras(registry, *(tmp_path / name for name in files))

    access = access_to(registry)
    resolved = await origin.resolve(Ref.parse(f"oci://{registry.host}/org/model:v1"), access)

    assert await pulled(origin, resolved.plan, access) == files


async def test_a_directory_that_oras_packed_is_refused_by_name(
    registry: FakeRegistry, origin: OCIOrigin, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"a")
    await push_by_oras(registry, tmp_path / "folder")
    ref = Ref.parse(f"oci://{registry.host}/org/model:v1")

    with pytest.raises(UnsupportedFormatError) as caught:
        await origin.resolve(ref, access_to(registry))

    assert "folder" in str(caught.value.__cause__)


async def test_what_we_push_oras_pulls_with_our_manifest_beside_it(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    files = {"weights.bin": b"w" * 3_000_000, "config.json": b"{}", "sub/x.txt": b"x"}
    for path, data in files.items():
        (folder / path).write_bytes(data)
    parcel = parcel_of(folder)
    web = Web(OriginLimits())
    ref = Ref.parse(f"oci://{registry.host}/org/model:v1")
    target = OCIDestination(ref, web, access_to(registry), OriginLimits())
    await target.push(parcel, await target.standing(parcel), lambda path, count: None)
    await web.close()

    out = tmp_path / "out"
    await asyncio.to_thread(
        client_of(registry).pull, target=f"{registry.host}/org/model:v1", outdir=str(out)
    )

    found = {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }
    assert found == files | {MANIFEST_NAME: parcel.manifest.canonical()}
