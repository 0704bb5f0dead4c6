"""What every push does, whatever it goes to: steps, credentials, errors, and who is closed."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from damselfly.errors import ConfigError, DamselflyError, OriginUnavailableError, UsageError
from damselfly.model.ref import Ref
from damselfly.origin import destinations
from damselfly.origin.access import OWN, Access
from damselfly.origin.destination import Parcel, PushProgress, Standing
from damselfly.origin.destinations import local_place, maker_for
from damselfly.origin.port import OriginLimits
from damselfly.origin.push import push
from damselfly.origin.s3_place import S3Place
from damselfly.origin.web import Web


@dataclass
class _Shelf:
    """A destination that lives as long as the test."""

    has: set[str] = field(default_factory=set[str])
    has_manifest: bool = False
    access: Access | None = None
    is_open: bool = False
    failure: Exception | None = None
    shown = "s3://bucket/model/"
    replaces_all = False

    async def small(self, path: str, bytes_max: int) -> bytes | None:
        del path, bytes_max
        return None

    async def standing(self, parcel: Parcel) -> Standing:
        kept = frozenset(
            number for number, file in enumerate(parcel.files) if file.path in self.has
        )
        missing = sum(file.size for number, file in enumerate(parcel.files) if number not in kept)
        return Standing(kept, missing, self.has_manifest and missing == 0)

    async def push(
        self, parcel: Parcel, standing: Standing, advance: Callable[[str, int], None]
    ) -> None:
        for number, file in enumerate(parcel.files):
            if number not in standing.kept:
                assert file.location.read_bytes() is not None
                advance(file.path, file.size)
                self.has.add(file.path)
                if self.failure is not None:
                    raise self.failure
        self.has_manifest = True

    async def close(self) -> None:
        self.is_open = False


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> _Shelf:
    shelf = _Shelf()

    def make(
        ref: Ref, web: Web, access: Access, limits: OriginLimits, place: S3Place | None
    ) -> _Shelf:
        del ref, web, limits, place
        shelf.access, shelf.is_open = access, True
        return shelf

    monkeypatch.setattr(sys.modules[__name__], "_made", make)
    monkeypatch.setitem(destinations._MAKERS, "s3", f"{__name__}:_made")
    return shelf


_made: object = None


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.bin").write_bytes(b"a" * 10)
    (tmp_path / "source/b.bin").write_bytes(b"b" * 20)
    return tmp_path / "source"


def test_what_is_missing_is_sent_and_counted(source: Path, shelf: _Shelf) -> None:
    shelf.has.add("a.bin")
    seen: list[PushProgress] = []

    report = push(source, "s3://bucket/model/", seen.append)

    assert (report.files_sent, report.files_kept, report.bytes_sent) == (1, 1, 20)
    assert report.destination == "s3://bucket/model/"
    assert (shelf.access, shelf.is_open) == (OWN, False)
    assert list(dict.fromkeys(step.doing for step in seen)) == ["looking", "hashing", "sending"]
    assert (seen[-1].bytes_done, seen[-1].bytes_total) == (20, 20)


def test_a_whole_one_is_left_alone(source: Path, shelf: _Shelf) -> None:
    push(source, "s3://bucket/model/")
    shelf.failure = AssertionError("nothing is to be sent")

    assert push(source, "s3://bucket/model/").is_whole


def test_a_dry_run_sends_nothing(source: Path, shelf: _Shelf) -> None:
    report = push(source, "s3://bucket/model/", is_dry=True)

    assert report.bytes_sent == 30
    assert (shelf.has, shelf.is_open) == (set(), False)


def test_one_that_fails_is_closed_and_goes_on_where_it_was(source: Path, shelf: _Shelf) -> None:
    shelf.failure = OriginUnavailableError("it broke")
    with pytest.raises(OriginUnavailableError):
        push(source, "s3://bucket/model/")
    assert (shelf.has, shelf.has_manifest, shelf.is_open) == ({"a.bin"}, False, False)

    shelf.failure = None
    assert push(source, "s3://bucket/model/").bytes_sent == 20


def test_credentials_go_to_who_asks_for_them(source: Path, shelf: _Shelf) -> None:
    access = Access.of(token="t0ken")

    push(source, "s3://bucket/model/", access=access)

    assert shelf.access == access


@pytest.mark.parametrize(
    ("destination", "said"),
    [
        ("hf://org/name@" + "0" * 40, "name a branch"),
        ("oci://127.0.0.1:1/org/m@sha256:" + "0" * 64, "to a tag"),
        ("s3://b/x/", "what a bucket can be called"),
        ("gs://b/x/", "what a bucket can be called"),
        ("az://container/x/", "--az-account"),
    ],
)
def test_a_destination_that_cannot_be_is_told_before_anything_is_hashed(
    source: Path, monkeypatch: pytest.MonkeyPatch, destination: str, said: str
) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    seen: list[PushProgress] = []

    with pytest.raises(DamselflyError, match=said) as caught:
        push(source, destination, seen.append)

    assert caught.value.exit_code == 2 or isinstance(caught.value, ConfigError)
    assert seen == []


def test_a_directory_takes_no_credentials(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes no credentials"):
        push(source, str(tmp_path / "target"), access=Access.of(token="t0ken"))

    assert not (tmp_path / "target").exists()


def test_a_scheme_that_nothing_is_pushed_to_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"no push goes to https://.*s3://"):
        maker_for(Ref.parse("https://host/x/?token=secret"))


def test_a_missing_extra_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(destinations._MAKERS, "s3", "no_such_package.of_it:X")

    with pytest.raises(UsageError, match=r"no_such_package: pip install 'damselfly\[s3\]'"):
        maker_for(Ref.parse("s3://bucket/x/"))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("/a/b/../c", Path("/a/c")),
        ("file:///a%20b/", Path("/a b")),
        ("s3://bucket/x", None),
    ],
)
def test_paths_and_file_refs_are_local(text: str, place: Path | None) -> None:
    assert local_place(text) == place


def test_a_pin_is_no_destination() -> None:
    with pytest.raises(UsageError, match="pin"):
        local_place("file:///a/#blake3:" + "0" * 64)
