"""Push: what stands at the destination, whatever was there and whenever it is interrupted."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from damselfly.errors import (
    DamselflyError,
    HeaderError,
    ManifestError,
    OriginChangedError,
    OriginDeniedError,
    OriginNotFoundError,
    StoreFullError,
    UsageError,
)
from damselfly.model.digest import Digest
from damselfly.model.manifest import MANIFEST_NAME, Manifest
from damselfly.origin import tree
from damselfly.origin.push import PushProgress, push
from tests.integration.origin_servers import write_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    write_model(directory)
    return directory


def _tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME
    }


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def _manifest(directory: Path) -> Manifest:
    return Manifest.parse((directory / MANIFEST_NAME).read_bytes())


def _check(directory: Path) -> None:
    """Every file that the manifest names is there, chunk for chunk."""
    for file in _manifest(directory).files:
        data = (directory / file.path).read_bytes()
        assert len(data) == file.bytes
        start = 0
        for chunk in file.chunks:
            assert Digest.of(data[start : start + chunk.length]) == chunk.digest
            start += chunk.length


def test_a_directory_is_copied_and_its_manifest_lies_beside(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "new/target"

    report = push(source, str(target))

    assert _tree(target) == _tree(source)
    assert _manifest(target) == report.manifest
    assert (report.files_sent, report.files_kept) == (len(_tree(source)), 0)
    assert report.bytes_sent == report.manifest.bytes
    _check(target)
    assert _names(target) == {*_names(source), MANIFEST_NAME}


def test_a_destination_may_be_a_ref(source: Path, tmp_path: Path) -> None:
    push(source, f"file://{tmp_path}/a%20b/")

    _check(tmp_path / "a b")


def test_pushing_again_copies_nothing(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    first = push(source, str(target))
    times = {path: path.stat().st_mtime_ns for path in target.rglob("*")}

    again = push(source, str(target))

    assert again.manifest == first.manifest
    assert (again.files_sent, again.bytes_sent) == (0, 0)
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*") if path.is_file()} == {
        path: time_ns for path, time_ns in times.items() if path.is_file()
    }


def test_only_what_differs_is_copied(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    push(source, str(target))
    (source / "config.json").write_bytes(b"[]")
    (source / "new.bin").write_bytes(b"new")
    (source / "original/x").unlink()

    report = push(source, str(target))

    assert (report.files_sent, report.bytes_sent) == (2, 5)
    assert "original/x" not in {file.path for file in report.manifest.files}
    assert (target / "original/x").exists()
    _check(target)


def test_a_directory_is_pushed_onto_itself(source: Path) -> None:
    before = _tree(source)

    report = push(source, str(source))

    assert report.files_sent == 0
    assert _tree(source) == before
    _check(source)
    assert push(source, str(source)).manifest == report.manifest


def test_the_manifest_does_not_depend_on_where_it_lies(source: Path, tmp_path: Path) -> None:
    there = push(source, str(tmp_path / "target")).artifact

    assert push(source, str(source)).artifact == there
    assert push(tmp_path / "target", str(tmp_path / "other")).artifact == there


def test_a_link_at_the_destination_is_replaced_by_the_file(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    outside = tmp_path / "outside"
    outside.write_bytes(b"{}")
    (target / "config.json").symlink_to(outside)

    push(source, str(target))

    assert not (target / "config.json").is_symlink()
    assert outside.read_bytes() == b"{}"


def test_a_file_of_the_directory_itself_that_changes_after_it_was_hashed_is_noticed(
    source: Path,
) -> None:
    def scribble(progress: PushProgress) -> None:
        if progress.bytes_done == progress.bytes_total:
            (source / "original/x").write_bytes(b"changed")

    with pytest.raises(OriginChangedError, match="original/x"):
        push(source, str(source), scribble)

    assert MANIFEST_NAME not in _names(source)


def _coarse(_: os.stat_result) -> str:
    return "a clock so coarse that nothing seems to change"


def test_a_copy_that_is_not_what_was_hashed_is_not_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    monkeypatch.setattr(tree, "version_of", _coarse)

    def scribble(progress: PushProgress) -> None:
        if progress.doing == "hashing" and progress.bytes_done == progress.bytes_total:
            (source / "original/x").write_bytes(b"y")

    with pytest.raises(OriginChangedError, match="original/x"):
        push(source, str(target), scribble)

    assert "x" not in _names(target / "original") if (target / "original").exists() else True
    assert MANIFEST_NAME not in _names(target)


def test_a_dry_run_changes_nothing_and_counts_what_a_push_would_do(
    source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"

    planned = push(source, str(target), is_dry=True)

    assert not target.exists()
    report = push(source, str(target))
    assert planned == report
    (source / "config.json").write_bytes(b"[]")
    (target / "original/x").unlink()
    before = _tree(target)
    again = push(source, str(target), is_dry=True)
    assert (again.files_sent, again.bytes_sent, again.is_whole) == (2, 3, False)
    assert _tree(target) == before
    assert _manifest(target) == report.manifest
    push(source, str(target))
    assert push(source, str(target), is_dry=True).is_whole


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("file", UsageError),
        ("file/below", UsageError),
        ("/proc/x", OriginDeniedError),
    ],
)
def test_a_dry_run_is_refused_where_the_push_would_be(
    source: Path, tmp_path: Path, place: str, kind: type[DamselflyError]
) -> None:
    (tmp_path / "file").write_bytes(b"k")

    with pytest.raises(kind):
        push(source, str(tmp_path / place), is_dry=True)
    with pytest.raises(DamselflyError):
        push(source, str(tmp_path / place))


def test_a_dry_run_tells_of_another_push(source: Path, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(UsageError, match="another push"):
            push(source / "original", str(tmp_path), is_dry=True)
    finally:
        os.close(descriptor)


def test_a_link_to_nothing_is_called_by_its_own_name(source: Path, tmp_path: Path) -> None:
    (source / "dangling").symlink_to(source / "gone")

    with pytest.raises(OriginNotFoundError, match=r"'dangling' .* link .*/gone"):
        push(source, str(tmp_path / "target"))


def _signed(name: str, files: Sequence[tuple[str, str]], _: bytes | None) -> bytes:
    return json.dumps([name, list(files)]).encode()


def test_a_signature_is_a_file_of_what_is_pushed_and_not_of_the_directory(
    source: Path, tmp_path: Path
) -> None:
    (source / "model.sig").write_bytes(b"an old one")
    target = tmp_path / "target"

    report = push(source, str(target), sign=_signed)

    assert (source / "model.sig").read_bytes() == b"an old one"
    name, files = json.loads((target / "model.sig").read_bytes())
    assert name == "source"
    assert dict(files) == {
        path: hashlib.sha256(data).hexdigest()
        for path, data in _tree(source).items()
        if path != "model.sig"
    }
    assert "model.sig" in {file.path for file in report.manifest.files}
    _check(target)


def test_a_signature_of_a_directory_that_is_its_own_destination_is_written_there(
    source: Path,
) -> None:
    push(source, str(source))

    report = push(source, str(source), sign=_signed)

    assert report.files_sent == 1
    assert (source / "model.sig").exists()
    _check(source)


def test_an_unsigned_push_does_not_leave_the_signature_of_other_files(
    source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    push(source, str(target), sign=_signed)
    before = _manifest(target)

    with pytest.raises(UsageError, match=r"--sign-key.*--drop-signature"):
        push(source, str(target))
    assert (_manifest(target), (target / "model.sig").exists()) == (before, True)
    with pytest.raises(UsageError, match="--drop-signature"):
        push(source, str(target), is_dry=True)

    planned = push(source, str(target), drops_signature=True, is_dry=True)
    assert not planned.is_whole
    assert (target / "model.sig").exists()
    report = push(source, str(target), drops_signature=True)

    assert not (target / "model.sig").exists()
    assert _manifest(target) == report.manifest
    assert push(source, str(target), drops_signature=True).is_whole


def test_a_signature_that_the_push_brings_itself_takes_the_place_of_the_old_one(
    source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    push(source, str(target), sign=_signed)
    (source / "model.sig").write_bytes(b"of somebody else")

    push(source, str(target))

    assert (target / "model.sig").read_bytes() == b"of somebody else"
    with pytest.raises(UsageError, match="brings a model.sig"):
        push(source, str(target), drops_signature=True)


class _InterruptedError(Exception):
    pass


def _interrupting(at: int) -> Callable[[PushProgress], None]:
    count = 0

    def interrupt(progress: PushProgress) -> None:
        nonlocal count
        count += 1
        if count == at:
            raise _InterruptedError

    return interrupt


@pytest.mark.parametrize("at", range(1, 11))
def test_an_interrupted_push_leaves_no_manifest_that_lies(
    source: Path, tmp_path: Path, at: int
) -> None:
    target = tmp_path / "target"
    push(source, str(target))
    for path in source.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            path.write_bytes(path.read_bytes() + b"!")

    with pytest.raises(_InterruptedError):
        push(source, str(target), _interrupting(at))

    if (target / MANIFEST_NAME).exists():
        _check(target)
    assert not (target / ".damselfly-push").exists()

    push(source, str(target))

    _check(target)
    assert _tree(target) == _tree(source)


_KILLED = """
import os, pathlib, sys
from damselfly.origin.push import push
left = int(sys.argv[3])
def die(progress):
    global left
    left -= 1
    if left == 0:
        os._exit(9)
push(pathlib.Path(sys.argv[1]), sys.argv[2], die)
"""


@pytest.mark.parametrize("at", [1, 4, 8])
def test_a_killed_push_leaves_no_manifest_that_lies(source: Path, tmp_path: Path, at: int) -> None:
    target = tmp_path / "target"
    push(source, str(target))
    for path in (source / "config.json", source / "original/x"):
        path.write_bytes(b"{!}")

    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, source, target, str(at)], check=False, timeout=60
    )

    assert killed.returncode == 9
    if (target / MANIFEST_NAME).exists():
        _check(target)
    push(source, str(target))
    _check(target)
    assert _tree(target) == _tree(source)


def test_what_a_killed_push_left_is_cleared(source: Path, tmp_path: Path) -> None:
    left = tmp_path / "target/.damselfly-push"
    left.mkdir(parents=True)
    (left / "file").write_bytes(b"half")

    push(source, str(tmp_path / "target"))

    assert not left.exists()


def test_progress_comes_in_order_and_ends_at_everything(source: Path, tmp_path: Path) -> None:
    seen: list[PushProgress] = []

    report = push(source, str(tmp_path / "target"), seen.append)

    steps = list(dict.fromkeys(progress.doing for progress in seen))
    assert steps == ["hashing", "copying"]
    for step in steps:
        of_step = [progress for progress in seen if progress.doing == step]
        done = [progress.bytes_done for progress in of_step]
        assert done == sorted(done)
        assert done[-1] == report.manifest.bytes == of_step[-1].bytes_total


def test_a_source_that_changes_while_it_is_pushed_is_noticed(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    victim = source / "original/deep/größe.bin"

    def scribble(progress: PushProgress) -> None:
        if progress.path == "model-00001-of-00002.safetensors":
            data = bytearray(victim.read_bytes())
            data[0] ^= 1
            victim.write_bytes(data)
            os.utime(victim, ns=(1, 1))

    with pytest.raises(OriginChangedError, match="größe"):
        push(source, str(target), scribble)

    assert not (target / MANIFEST_NAME).exists()


def test_two_pushes_do_not_write_to_one_directory(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    descriptor = os.open(target, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(UsageError, match="another push"):
            push(source, str(target))
    finally:
        os.close(descriptor)

    assert _names(target) == set()


def test_a_full_disk_is_a_full_store(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) == 1 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    # A file system that clones writes nothing: take that away.
    monkeypatch.setattr(fcntl, "ioctl", _refused)

    with pytest.raises(StoreFullError, match="no room"):
        push(source, str(tmp_path / "target"))

    assert not (tmp_path / "target" / MANIFEST_NAME).exists()


def _refused(*_: object) -> int:
    raise OSError(errno.EOPNOTSUPP, "no clones here")


def _file(place: Path) -> Path:
    place.write_bytes(b"x")
    return place


BAD: dict[str, tuple[Callable[[Path], tuple[Path, str]], type[DamselflyError]]] = {
    "no source": (lambda at: (at / "none", str(at / "t")), OriginNotFoundError),
    "a file as the source": (lambda at: (_file(at / "f"), str(at / "t")), UsageError),
    "a file as the target": (lambda at: (at / "source", str(_file(at / "f"))), UsageError),
    "a target inside the source": (lambda at: (at / "source", f"{at}/source/t"), UsageError),
    "another scheme": (lambda at: (at / "source", "http://h/x/"), UsageError),
    "a bucket": (lambda at: (at / "source", "s3://b/x"), UsageError),
    "nothing to push": (lambda at: (_emptied(at), str(at / "t")), OriginNotFoundError),
    "a link that leaves": (lambda at: (_linked(at), str(at / "t")), ManifestError),
    "a malformed file": (lambda at: (_malformed(at), str(at / "t")), HeaderError),
    "a directory in a file's place": (lambda at: (at / "source", _blocked(at)), UsageError),
    "a file in a directory's place": (lambda at: (at / "source", _walled(at)), UsageError),
}


def _emptied(at: Path) -> Path:
    shutil.rmtree(at / "source")
    (at / "source").mkdir()
    return at / "source"


def _linked(at: Path) -> Path:
    (at / "source/link").symlink_to("/etc/hostname")
    return at / "source"


def _malformed(at: Path) -> Path:
    (at / "source/bad.safetensors").write_bytes(b"x" * 100)
    return at / "source"


def _blocked(at: Path) -> str:
    (at / "t/config.json").mkdir(parents=True)
    return str(at / "t")


def _walled(at: Path) -> str:
    (at / "t").mkdir()
    (at / "t/original").write_bytes(b"x")
    return str(at / "t")


@pytest.mark.parametrize("name", BAD)
def test_a_push_that_makes_no_sense_is_refused(source: Path, tmp_path: Path, name: str) -> None:
    make, kind = BAD[name]
    directory, target = make(tmp_path)

    with pytest.raises(kind) as caught:
        push(directory, target)

    assert type(caught.value) is kind
    assert not (tmp_path / "t" / MANIFEST_NAME).exists()
