"""Pushing to a hub of the tests: one commit, nothing twice, and nothing lost."""

import asyncio
import hashlib
import sys
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from damselfly.errors import (
    DamselflyError,
    OriginBusyError,
    OriginChangedError,
    OriginDeniedError,
    RemoteProtocolError,
    UsageError,
    explain,
)
from damselfly.model.digest import Digest
from damselfly.model.manifest import MANIFEST_NAME, Manifest
from damselfly.model.plan import Plan
from damselfly.model.ref import Ref
from damselfly.origin import hub_push, tree
from damselfly.origin.access import ANONYMOUS, OWN, Access
from damselfly.origin.destination import Parcel, Standing
from damselfly.origin.hub import HubOrigin
from damselfly.origin.hub_environment import HubEnvironment
from damselfly.origin.hub_push import TOGETHER_BYTES_MAX, HubDestination
from damselfly.origin.port import OriginLimits
from damselfly.origin.web import Web
from tests.fakes.hub import Hub, Repository
from tests.integration.origin_servers import weights

# The hub's client sends files in a way that is deprecated by the HTTP client below it.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = "hf_pLaNtEdToKeN0123456789"
FILES = {
    "README.md": b"---\nlicense: mit\n---\n",
    "config.json": b'{"a": 1}',
    "empty": b"",
    "model.safetensors": weights(1, 300, 3 << 20, 40),
    "original/weights.bin": b"w" * 100_000,
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Generator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hub = Hub()
    hub.tokens[TOKEN] = "somebody"
    with hub.running():
        yield hub
    huggingface_hub.close_session()


@pytest.fixture
def repository(hub: Hub) -> Repository:
    repository = hub.repository("org/name", {".gitattributes": b"*.bin filter=lfs\n"})
    repository.writers.add(TOKEN)
    return repository


def parcel_of(directory: Path, files: dict[str, bytes] | None = None) -> Parcel:
    for path, data in (files or {}).items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    found = tree.walk(directory)
    contents = [file.location.read_bytes() for file in found]
    plan = Plan.of("-", [tree.plan_file(file) for file in found])
    digests = [
        Digest.of(data[stop - length : stop])
        for file, data in zip(plan.files, contents, strict=True)
        for stop, length in zip(file.stops, file.lengths, strict=True)
    ]
    sha256 = tuple(hashlib.sha256(data).hexdigest() for data in contents)
    return Parcel(directory, tuple(found), sha256, Manifest.seal(plan, digests))


@asynccontextmanager
async def destination(
    hub: Hub, ref: str = "hf://org/name", access: Access | None = None
) -> AsyncGenerator[HubDestination]:
    web = Web(OriginLimits())
    shown = Access.of(TOKEN) if access is None else access
    made = HubDestination(
        Ref.parse(ref), web, shown, environment=HubEnvironment({"HF_ENDPOINT": hub.endpoint})
    )
    try:
        yield made
    finally:
        await made.close()
        await web.close()


async def pushed(hub: Hub, parcel: Parcel, ref: str = "hf://org/name") -> Standing:
    async with destination(hub, ref) as place:
        standing = await place.standing(parcel)
        await place.push(parcel, standing, lambda _, __: None)
        return standing


async def test_a_push_is_one_commit_that_the_origin_finds_whole(
    hub: Hub, repository: Repository, tmp_path: Path
) -> None:
    parcel = parcel_of(tmp_path, FILES)
    told: list[tuple[str, int]] = []

    async with destination(hub) as place:
        standing = await place.standing(parcel)
        await place.push(parcel, standing, lambda path, count: told.append((path, count)))

    assert (standing.kept, standing.is_whole) == (frozenset(), False)
    assert standing.bytes_missing == sum(len(data) for data in FILES.values())
    assert dict(told) == {path: len(data) for path, data in FILES.items()}
    files = repository.commits[repository.branches["main"]]
    manifest = parcel.manifest.canonical()
    assert files == {
        ".gitattributes": b"*.bin filter=lfs\n",
        **FILES,
        MANIFEST_NAME: manifest,
    }
    assert len(repository.commits) == 2
    web = Web(OriginLimits())
    origin = HubOrigin(OriginLimits(), web, HubEnvironment({"HF_ENDPOINT": hub.endpoint}))
    found = await origin.resolve(Ref.parse("hf://org/name"))
    await web.close()
    assert found.manifest == parcel.manifest


@pytest.mark.parametrize("inside", ["", "/sub/dir"])
async def test_a_signature_that_is_dropped_goes_with_the_commit(
    hub: Hub, repository: Repository, tmp_path: Path, inside: str
) -> None:
    ref = f"hf://org/name{inside}"
    async with destination(hub, ref) as place:
        assert await place.small("model.sig", 100) is None
    await pushed(hub, parcel_of(tmp_path, {**FILES, "model.sig": b"signed"}), ref)
    async with destination(hub, ref) as place:
        assert [await place.small("model.sig", most) for most in (6, 5)] == [b"signed", b""]
    (tmp_path / "model.sig").unlink()
    commits = len(repository.commits)

    await pushed(hub, replace(parcel_of(tmp_path, FILES), drops=("model.sig",)), ref)

    assert len(repository.commits) == commits + 1
    files = repository.commits[repository.branches["main"]]
    assert f"{inside}/model.sig".lstrip("/") not in files
    async with destination(hub, ref) as place:
        assert (await place.standing(parcel_of(tmp_path, FILES))).is_whole


async def test_a_push_of_what_is_there_does_nothing(
    hub: Hub, repository: Repository, tmp_path: Path
) -> None:
    parcel = parcel_of(tmp_path, FILES)
    await pushed(hub, parcel)
    commits = len(repository.commits)
    hub.seen.clear()

    standing = await pushed(hub, parcel)

    assert standing == Standing(frozenset(range(len(FILES))), 0, is_whole=True)
    assert len(repository.commits) == commits
    assert {each.method for each in hub.seen} == {"GET"}


async def test_only_what_differs_is_sent(hub: Hub, repository: Repository, tmp_path: Path) -> None:
    await pushed(hub, parcel_of(tmp_path, FILES))
    hub.seen.clear()
    parcel = parcel_of(tmp_path, {"config.json": b'{"a": 2}', "original/weights.bin": b"v" * 9})

    standing = await pushed(hub, parcel)

    kept = {parcel.files[number].path for number in standing.kept}
    assert kept == {"README.md", "empty", "model.safetensors"}
    assert standing.bytes_missing == 8 + 9
    assert len(hub.asked("other", "PUT")) == 1
    files = repository.commits[repository.branches["main"]]
    assert (files["config.json"], files["original/weights.bin"]) == (b'{"a": 2}', b"v" * 9)


async def test_what_an_interrupted_push_sent_is_not_sent_again(
    hub: Hub, repository: Repository, tmp_path: Path
) -> None:
    large = {f"{name}.bin": name.encode() * (TOGETHER_BYTES_MAX + 1) for name in "ab"}
    parcel = parcel_of(tmp_path, large)
    before = repository.branches["main"]
    sha256 = {path: hashlib.sha256(data).hexdigest() for path, data in large.items()}
    hub.refused_objects = {sha256["b.bin"]}
    told: list[str] = []

    async with destination(hub) as place:
        standing = await place.standing(parcel)
        with pytest.raises(OriginDeniedError):
            await place.push(parcel, standing, lambda path, _: told.append(path))
        left = repository.branches["main"]
        hub.refused_objects.clear()
        hub.seen.clear()
        await place.push(parcel, standing, lambda path, _: told.append(path))

    assert left == before
    assert told == ["a.bin", "a.bin", "b.bin"]
    assert [each.path for each in hub.asked("other", "PUT")] == [f"/put/{sha256['b.bin']}"]
    assert repository.commits[repository.branches["main"]].items() >= large.items()


async def test_a_push_that_is_cancelled_commits_nothing(
    hub: Hub, repository: Repository, tmp_path: Path
) -> None:
    parcel = parcel_of(tmp_path, FILES)
    before = repository.branches["main"]
    hub.held = threading.Event()

    async with destination(hub) as place:
        standing = await place.standing(parcel)
        push = asyncio.ensure_future(place.push(parcel, standing, lambda _, __: None))
        await asyncio.to_thread(hub.is_held.wait)
        push.cancel()
        await asyncio.sleep(0)
        hub.held.set()
        with pytest.raises(asyncio.CancelledError):
            await push

    assert repository.branches["main"] == before


async def test_a_commit_of_somebody_else_in_between_is_noticed(
    hub: Hub, repository: Repository, tmp_path: Path
) -> None:
    parcel = parcel_of(tmp_path, FILES)
    async with destination(hub) as place:
        standing = await place.standing(parcel)
        theirs = repository.commit({"theirs": b"1"})

        with pytest.raises(OriginChangedError, match="committed meanwhile"):
            await place.push(parcel, standing, lambda _, __: None)

    assert repository.branches["main"] == theirs


async def test_a_file_that_changes_after_it_was_hashed_is_not_committed(
    hub: Hub, repository: Repository, tmp_path: Path
) -> None:
    parcel = parcel_of(tmp_path, FILES)
    before = repository.branches["main"]
    async with destination(hub) as place:
        standing = await place.standing(parcel)
        (tmp_path / "config.json").write_bytes(b"another")

        with pytest.raises(OriginChangedError, match="config.json"):
            await place.push(parcel, standing, lambda _, __: None)

    assert repository.branches["main"] == before


async def test_a_file_that_changes_while_later_ones_are_sent_is_not_committed(
    hub: Hub, repository: Repository, tmp_path: Path
) -> None:
    large = {f"{name}.bin": name.encode() * (TOGETHER_BYTES_MAX + 1) for name in "ab"}
    parcel = parcel_of(tmp_path, large)
    before = repository.branches["main"]
    hub.objects[hashlib.sha256(large["a.bin"]).hexdigest()] = large["a.bin"]
    hub.held = threading.Event()

    async with destination(hub) as place:
        standing = await place.standing(parcel)
        push = asyncio.ensure_future(place.push(parcel, standing, lambda _, __: None))
        await asyncio.to_thread(hub.is_held.wait)
        (tmp_path / "a.bin").write_bytes(b"another")
        hub.held.set()
        with pytest.raises(OriginChangedError, match=r"a\.bin"):
            await push

    assert repository.branches["main"] == before


async def test_a_branch_of_a_dataset_has_a_directory_of_its_own(hub: Hub, tmp_path: Path) -> None:
    repository = hub.repository("org/data", {"x": b"x"}, "datasets")
    repository.writers.add(TOKEN)
    repository.commit({"y": b"y"}, "v1")

    await pushed(hub, parcel_of(tmp_path, FILES), "hf://datasets/org/data@v1/sub/dir")

    files = repository.commits[repository.branches["v1"]]
    assert files.keys() == {"y", *(f"sub/dir/{path}" for path in [*FILES, MANIFEST_NAME])}
    assert repository.commits[repository.branches["main"]] == {"x": b"x"}


async def test_what_the_repository_ignores_is_not_left_out_silently(
    hub: Hub, repository: Repository, tmp_path: Path
) -> None:
    before = repository.commit({".gitignore": b"config.json\n"})

    with pytest.raises(UsageError, match=r"gitignore.*config\.json"):
        await pushed(hub, parcel_of(tmp_path, FILES))

    assert repository.branches["main"] == before


@pytest.mark.parametrize(
    ("ref", "shown", "error", "said"),
    [
        ("hf://org/none", TOKEN, UsageError, "made first"),
        ("hf://org/name@v9", TOKEN, UsageError, "made first"),
        ("hf://org/none", None, OriginDeniedError, "--token-file"),
        ("hf://org/name", None, OriginDeniedError, "show a token"),
        ("hf://org/theirs", TOKEN, OriginDeniedError, "may not do this"),
        ("hf://org/name", "hf_wRoNg", OriginDeniedError, "may not do this"),
    ],
)
async def test_a_push_that_may_not_be_says_why_and_shows_no_token(
    hub: Hub,
    repository: Repository,
    tmp_path: Path,
    ref: str,
    shown: str | None,
    error: type[DamselflyError],
    said: str,
) -> None:
    hub.repository("org/theirs", {"x": b"x"})
    parcel = parcel_of(tmp_path, FILES)

    async def push() -> None:
        async with destination(hub, ref, Access.of(shown)) as place:
            await place.push(parcel, await place.standing(parcel), lambda _, __: None)

    with pytest.raises(error, match=said) as caught:
        await push()

    assert "hf_" not in explain(caught.value).replace("hf_hub", "")
    assert len(repository.commits) == 1


async def test_an_address_to_send_to_is_in_no_error(
    hub: Hub, repository: Repository, tmp_path: Path
) -> None:
    hub.refuse_with = [403]

    with pytest.raises(OriginDeniedError) as caught:
        await pushed(hub, parcel_of(tmp_path, FILES))

    assert "X-Amz" not in explain(caught.value)
    assert "127.0.0.1" not in explain(caught.value).replace(hub.endpoint, "")
    assert caught.value.__cause__ is None


async def test_a_hub_without_xet_is_sent_files_otherwise(
    hub: Hub, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)

    await pushed(hub, parcel_of(tmp_path, FILES))

    assert repository.commits[repository.branches["main"]].items() >= FILES.items()
    assert not [each.path for each in hub.seen if "xet" in each.path]
    assert constants.HF_HUB_DISABLE_XET is False


async def test_what_xet_was_answered_is_told_without_the_address(
    hub: Hub, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr(hub_push, "ENDPOINT", hub.endpoint)  # The hub that is thought to know Xet.

    with pytest.raises(RemoteProtocolError, match=r"answered 404 .* Xet .*HF_HUB_DISABLE_XET=1"):
        await pushed(hub, parcel_of(tmp_path, FILES))

    assert [each.status for each in hub.seen if "xet" in each.path] == [404]


async def test_a_hub_that_is_busy_is_busy(hub: Hub, repository: Repository, tmp_path: Path) -> None:
    hub.busy = [{"Retry-After": "30"}]

    with pytest.raises(OriginBusyError) as caught:
        await pushed(hub, parcel_of(tmp_path, FILES))

    assert caught.value.retry_after_s == 30.0


async def test_without_the_hubs_client_it_is_said_what_to_install(
    hub: Hub, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)

    with pytest.raises(UsageError, match=r"damselfly\[hf\]"):
        await pushed(hub, parcel_of(tmp_path, FILES))


@pytest.mark.parametrize("ref", ["hf://org/name@" + "0" * 40, "https://host/x", "hf://org/a--b"])
async def test_what_cannot_be_pushed_to_is_refused(hub: Hub, ref: str) -> None:
    with pytest.raises(UsageError):
        HubDestination(Ref.parse(ref), Web(OriginLimits()), OWN)
    with pytest.raises(UsageError, match="tokens"):
        HubDestination(
            Ref.parse("hf://org/name"), Web(OriginLimits()), Access.of(username="a", password="b")
        )
    assert ANONYMOUS.token is None
