"""A push to a real S3 server: what is sent, what is kept, and what others see meanwhile."""

import asyncio
import hashlib
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from aiohttp import web

from damselfly.errors import OriginChangedError, OriginUnavailableError, UsageError
from damselfly.model.manifest import MANIFEST_NAME, Manifest
from damselfly.model.ref import Ref
from damselfly.origin.access import Access
from damselfly.origin.bucket_push import MIB, BucketDestination
from damselfly.origin.destination import Parcel, Standing
from damselfly.origin.port import OriginLimits
from damselfly.origin.push import push
from damselfly.origin.push_journal import JOURNAL_NAME, Journal, Session
from damselfly.origin.registry import Origins
from damselfly.origin.s3_place import S3Place
from damselfly.origin.s3_push import S3Destination
from damselfly.origin.web import Web
from tests.integration.bucket_servers import (
    KEY_ID,
    SECRET,
    Bucket,
    Front,
    front_in_a_thread,
    s3_error,
    s3_server,
)
from tests.integration.push_parcels import parcel_of

KEYS = Access.of(None, KEY_ID, SECRET)
PART_BYTES = 5 * MIB  # The least that S3 takes.


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as address:
        yield address


@pytest.fixture
def bucket(server: str) -> Iterator[Bucket]:
    bucket = Bucket(server)
    yield bucket
    bucket.close()


@pytest.fixture
async def front(server: str) -> AsyncGenerator[Front]:
    async with Front(server).listening() as front:
        yield front


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "big.bin").write_bytes(os.urandom(12 * MIB + 1))
    (folder / "config.json").write_bytes(b'{"a": 1}\n')
    (folder / "empty").touch()
    (folder / "sub" / "größe & <x>+%41.txt").write_bytes(b"awkward")
    return folder


@dataclass
class Pusher:
    """Pushes, and keeps what was told meanwhile."""

    front: Front
    bucket: Bucket
    pauses_s: list[float] = field(default_factory=list[float])
    advanced: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])

    async def pause(self, seconds: float) -> None:
        self.pauses_s.append(seconds)

    async def push(self, model: Path, prefix: str = "m/") -> Standing:
        ref = Ref.parse(f"s3://{self.bucket.name}/{prefix}")
        limits = OriginLimits(silence_s=20.0)
        web_ = Web(limits)
        destination: BucketDestination = S3Destination(
            ref,
            web_,
            KEYS,
            limits,
            S3Place(self.front.address),
            part_bytes=PART_BYTES,
            pause=self.pause,
        )
        try:
            parcel = parcel_of(model)
            standing = await destination.standing(parcel)
            self.advanced.clear()
            await destination.push(parcel, standing, self._advance)
            return standing
        finally:
            await destination.close()
            await web_.close()

    def _advance(self, path: str, count: int) -> None:
        self.advanced.append((path, count))


@pytest.fixture
def pusher(front: Front, bucket: Bucket) -> Pusher:
    return Pusher(front, bucket)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def bytes_of(parcel: Parcel) -> int:
    return sum(file.size for file in parcel.files)


def assert_pushed(bucket: Bucket, model: Path, prefix: str = "m/") -> None:
    """A stock client finds the files and their manifest, and nothing else."""
    expected = files_of(model)
    assert sorted(bucket.keys(prefix)) == sorted(
        [prefix + path for path in expected] + [prefix + MANIFEST_NAME]
    )
    assert {path: bucket.get(prefix + path) for path in expected} == expected
    manifest = Manifest.parse(bucket.get(prefix + MANIFEST_NAME))
    assert manifest == parcel_of(model).manifest
    assert bucket.sessions() == []


# --- what is sent ---------------------------------------------------------------------------------


async def test_a_stock_client_reads_what_was_pushed(
    pusher: Pusher, bucket: Bucket, model: Path
) -> None:
    standing = await pusher.push(model)

    assert standing == Standing(frozenset(), bytes_of(parcel_of(model)), False)
    assert sum(count for _, count in pusher.advanced) == bytes_of(parcel_of(model))
    assert_pushed(bucket, model)


async def test_an_agent_finds_the_manifest_and_every_byte(
    pusher: Pusher, bucket: Bucket, model: Path, front: Front
) -> None:
    await pusher.push(model)
    origins = Origins(s3=S3Place(front.address))
    ref = Ref.parse(f"s3://{bucket.name}/m/")

    resolved = await origins.for_ref(ref).resolve(ref, KEYS)

    assert resolved.manifest == parcel_of(model).manifest
    await origins.close()


async def test_pushing_again_sends_nothing(pusher: Pusher, model: Path, front: Front) -> None:
    await pusher.push(model)
    puts = front.count("PUT")

    standing = await pusher.push(model)

    assert standing.is_whole
    assert standing.bytes_missing == 0
    assert front.count("PUT") == puts
    assert front.count("DELETE") == 1  # The first push's journal.


async def test_only_what_changed_is_sent_and_the_old_manifest_goes_first(
    pusher: Pusher, bucket: Bucket, model: Path, front: Front
) -> None:
    await pusher.push(model)
    (model / "config.json").write_bytes(b'{"a": 2}\n')
    front.asked.clear()

    standing = await pusher.push(model)

    assert standing.bytes_missing == 9
    writes = [
        (verb, target.rpartition("/")[2])
        for verb, target in front.asked
        if verb in {"PUT", "POST", "DELETE"}
    ]
    assert writes == [
        ("PUT", "journal.json"),
        ("DELETE", MANIFEST_NAME),
        ("PUT", "config.json"),
        ("PUT", MANIFEST_NAME),
        ("DELETE", "journal.json"),
    ]
    assert_pushed(bucket, model)


async def test_the_manifest_comes_last(pusher: Pusher, model: Path, front: Front) -> None:
    await pusher.push(model)

    puts = [target for verb, target in front.asked if verb in {"PUT", "POST"}]
    assert puts[-1].endswith(MANIFEST_NAME)


async def test_what_a_stock_client_put_there_is_kept_if_its_checksum_proves_it(
    pusher: Pusher, bucket: Bucket, model: Path, front: Front
) -> None:
    bucket.put("m/config.json", (model / "config.json").read_bytes(), ChecksumAlgorithm="SHA256")

    await pusher.push(model)

    assert front.count("PUT", "config.json") == 0
    assert_pushed(bucket, model)


async def test_metadata_that_lies_about_a_checksum_does_not_keep_an_object(
    pusher: Pusher, bucket: Bucket, model: Path
) -> None:
    parcel = parcel_of(model)
    number = [file.path for file in parcel.files].index("config.json")
    mark = {"damselfly-blake3": str(parcel.manifest.files[number].id)}
    bucket.put("m/config.json", b"lies here", Metadata=mark, ChecksumAlgorithm="SHA256")

    await pusher.push(model)

    assert_pushed(bucket, model)


async def test_what_else_lies_there_is_left_alone(
    pusher: Pusher, bucket: Bucket, model: Path
) -> None:
    bucket.put("m/other.txt", b"other")

    await pusher.push(model)

    assert bucket.get("m/other.txt") == b"other"


async def test_a_bucket_that_is_not_there_is_said(
    front: Front, bucket: Bucket, model: Path
) -> None:
    bucket.name = "nobodys-bucket"

    with pytest.raises(UsageError, match="there is no bucket s3://nobodys-bucket"):
        await Pusher(front, bucket).push(model)


# --- trouble --------------------------------------------------------------------------------------


def once(
    is_it: Callable[[web.Request], bool], act: Callable[[web.Request], web.StreamResponse]
) -> Callable[[web.Request], Awaitable[web.StreamResponse | None]]:
    """Act at the first request that `is_it`, pass everything else on."""
    done: list[web.Request] = []

    async def answer(request: web.Request) -> web.StreamResponse | None:
        if done or not is_it(request):
            return None
        done.append(request)
        await request.read()
        return act(request)

    return answer


def is_part(request: web.Request, number: int) -> bool:
    return request.method == "PUT" and request.query.get("partNumber") == str(number)


async def test_a_busy_bucket_is_asked_again(
    pusher: Pusher, bucket: Bucket, model: Path, front: Front
) -> None:
    front.act = once(
        lambda request: is_part(request, 2),
        lambda _: s3_error(503, "SlowDown", {"Retry-After": "1"}),
    )

    await pusher.push(model)

    assert front.count("PUT", "partNumber=2") == 2
    assert_pushed(bucket, model)


async def test_a_part_that_came_corrupted_is_sent_again(
    pusher: Pusher, bucket: Bucket, model: Path, front: Front
) -> None:
    async def act(request: web.Request) -> web.StreamResponse | None:
        # As S3 does: what came is held against what the signature says.
        body = await request.read()
        if is_part(request, 1) and not broken:
            broken.append(request)
            body = b"X" + body[1:]
        if request.headers.get("x-amz-content-sha256") != hashlib.sha256(body).hexdigest():
            return s3_error(400, "XAmzContentSHA256Mismatch")
        return None

    broken: list[web.Request] = []
    front.act = act
    await pusher.push(model)

    assert len(pusher.pauses_s) == 1
    assert_pushed(bucket, model)


async def test_an_answer_that_is_lost_is_no_failure(
    pusher: Pusher, bucket: Bucket, model: Path, front: Front
) -> None:
    lost: set[str] = set()

    async def act(request: web.Request) -> web.StreamResponse | None:
        name = f"{request.method} {request.path}"
        if request.method not in {"PUT", "POST"} or "uploads" in request.query or name in lost:
            return None
        lost.add(name)
        return await front.passed_on(request, cut_at=0)

    front.act = act
    await pusher.push(model)

    assert len(lost) >= 4
    assert_pushed(bucket, model)


async def test_a_push_that_gives_up_leaves_no_manifest_and_its_parts_count(
    pusher: Pusher, bucket: Bucket, model: Path, front: Front
) -> None:
    async def act(request: web.Request) -> web.StreamResponse | None:
        return s3_error(500, "InternalError") if is_part(request, 3) else None

    front.act = act
    with pytest.raises(OriginUnavailableError):
        await pusher.push(model)
    assert f"m/{MANIFEST_NAME}" not in bucket.keys("m/")
    front.act = None
    front.asked.clear()

    standing = await pusher.push(model)

    assert front.count("PUT", "partNumber=") == 1
    assert sum(count for _, count in pusher.advanced) == standing.bytes_missing
    assert_pushed(bucket, model)


def test_a_push_that_was_killed_is_gone_on_from_and_only_what_lacks_is_sent(
    server: str, bucket: Bucket, model: Path, tmp_path: Path
) -> None:
    front = Front(server)

    async def act(request: web.Request) -> web.StreamResponse | None:
        if not is_part(request, 3):
            return None
        while request.transport is not None and not request.transport.is_closing():
            await asyncio.sleep(0.01)  # Until it is killed.
        return web.Response(status=500)

    front.act = act
    with front_in_a_thread(front):
        asyncio.run(_killed_half_way(front, bucket, model))
        front.act = None
        sent_before = front.count("PUT", "partNumber=")

        standing = asyncio.run(Pusher(front, bucket).push(model))

        assert standing.bytes_missing < bytes_of(parcel_of(model)) - 10 * MIB + 1
        assert front.count("PUT", "partNumber=") == sent_before + 1
        assert_pushed(bucket, model)


async def _killed_half_way(front: Front, bucket: Bucket, model: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.integration.push_parcels",
        front.address,
        f"s3://{bucket.name}/m/",
        str(model),
    )
    try:
        # Both parts before the third are answered, and so are the small files.
        while len(await asyncio.to_thread(_parts_there, bucket)) < 2 or not front.count(
            "PUT", "partNumber=3"
        ):
            assert process.returncode is None
            await asyncio.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()


def _parts_there(bucket: Bucket) -> list[object]:
    for session in bucket.sessions():
        found = bucket.client.list_parts(
            Bucket=bucket.name, Key=session["Key"], UploadId=session["UploadId"]
        )
        return list(found.get("Parts", ()))
    return []


async def test_a_file_that_is_written_to_meanwhile_leaves_no_manifest(
    pusher: Pusher, bucket: Bucket, model: Path, front: Front
) -> None:
    async def act(request: web.Request) -> web.StreamResponse | None:
        if "uploads" in request.query:
            with (model / "big.bin").open("ab") as file:
                file.write(b"more")
        return None

    front.act = act
    with pytest.raises(OriginChangedError):
        await pusher.push(model)

    assert f"m/{MANIFEST_NAME}" not in bucket.keys("m/")


async def test_a_server_without_guards_takes_a_push(
    pusher: Pusher, bucket: Bucket, model: Path, front: Front
) -> None:
    async def act(request: web.Request) -> web.StreamResponse | None:
        if {"If-Match", "If-None-Match"}.isdisjoint(request.headers) or request.method == "GET":
            return None
        await request.read()
        return s3_error(501, "NotImplemented")

    front.act = act
    await pusher.push(model)

    assert_pushed(bucket, model)


@pytest.mark.parametrize("note", [b"{}", b"\0" * 100, b"[" * 5000, b'{"format":"x"}'])
async def test_a_note_that_is_none_is_written_over(
    pusher: Pusher, bucket: Bucket, model: Path, note: bytes
) -> None:
    bucket.put(f"m/{JOURNAL_NAME}", note)

    await pusher.push(model)

    assert_pushed(bucket, model)


async def test_sessions_of_another_content_are_ended(
    pusher: Pusher, bucket: Bucket, model: Path
) -> None:
    begun = bucket.client.create_multipart_upload(Bucket=bucket.name, Key="m/big.bin")
    session = Session(begun["UploadId"], "blake3:of-something-else", PART_BYTES)
    bucket.put(f"m/{JOURNAL_NAME}", Journal("dead", {"big.bin": session}).canonical())

    await pusher.push(model)

    assert_pushed(bucket, model)


async def test_of_two_pushes_the_one_that_came_first_notices_and_loses(
    pusher: Pusher, bucket: Bucket, model: Path, front: Front, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "big.bin").write_bytes(os.urandom(11 * MIB))
    (other / "config.json").write_bytes(b'{"b": 1}\n')
    stopped, go_on = asyncio.Event(), asyncio.Event()

    async def act(request: web.Request) -> web.StreamResponse | None:
        if is_part(request, 3) and not stopped.is_set():
            stopped.set()
            await go_on.wait()
        return None

    front.act = act
    first = asyncio.create_task(pusher.push(model))
    await stopped.wait()

    await Pusher(front, bucket).push(other)
    go_on.set()
    with pytest.raises(UsageError, match="another push is writing to"):
        await first

    manifest = Manifest.parse(bucket.get(f"m/{MANIFEST_NAME}"))
    assert manifest == parcel_of(other).manifest
    assert {path: bucket.get(f"m/{path}") for path in files_of(other)} == files_of(other)


def test_an_old_signature_in_a_bucket_is_kept_replaced_or_dropped_and_never_left(
    server: str, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    (tmp_path / "a").write_bytes(b"a")
    ref = f"s3://{bucket.name}/m/"
    pushed = partial(push, tmp_path, ref, s3=S3Place(server))

    first = pushed(sign=lambda name, files, old: old or b"signed")
    assert pushed(sign=lambda name, files, old: old or b"another").artifact == first.artifact
    with pytest.raises(UsageError, match="--drop-signature"):
        pushed()
    assert bucket.get("m/model.sig") == b"signed"
    report = pushed(drops_signature=True)

    assert set(bucket.keys("m/")) == {"m/a", f"m/{MANIFEST_NAME}"}
    assert Manifest.parse(bucket.get(f"m/{MANIFEST_NAME}")) == report.manifest
    assert pushed().is_whole
