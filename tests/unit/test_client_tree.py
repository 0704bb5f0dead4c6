"""Trees made from views: whole files or none, nothing followed, nothing different replaced."""

import errno
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from damselfly.client import tree
from damselfly.client.tree import make_tree
from damselfly.errors import CapacityError, DeniedError, IntegrityError, NotFoundError, UsageError

FILES = {
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": bytes(range(256)) * 8192,
    "tokenizer/vocab.txt": b"a\nb\n",
    "tokenizer/deep/er/empty": b"",
}


def written(root: Path, files: Mapping[str, bytes]) -> Path:
    for path, data in files.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        place.chmod(0o444)
    root.mkdir(exist_ok=True)
    return root


def files_below(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if not path.is_dir()
    }


@pytest.fixture
def view(tmp_path: Path) -> Path:
    return written(tmp_path / "view", FILES)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "to"


@pytest.fixture(params=["unnamed", "named"])
def drafts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """File systems with O_TMPFILE, and those without."""
    if request.param == "named":
        opened = os.open

        def open_without(path: str, flags: int, *args: int, dir_fd: int | None = None) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            return opened(path, flags, *args, dir_fd=dir_fd)

        monkeypatch.setattr(os, "open", open_without)
    return str(request.param)


@pytest.mark.usefixtures("drafts")
class TestMaking:
    def test_a_tree_has_the_files_of_the_view(self, view: Path, target: Path) -> None:
        made = make_tree(str(view), str(target))

        assert files_below(target) == FILES
        assert made.files == made.reflinked + made.copied == len(FILES)
        assert made.bytes == sum(map(len, FILES.values()))

    def test_its_files_are_ones_own(self, view: Path, target: Path) -> None:
        make_tree(str(view), str(target))

        for path in FILES:
            status = (target / path).stat()
            assert stat.S_IMODE(status.st_mode) == 0o644
            assert status.st_nlink == 1
            assert status.st_ino != (view / path).stat().st_ino

    def test_making_it_twice_is_making_it_once(self, view: Path, target: Path) -> None:
        make_tree(str(view), str(target))
        before = {path: (target / path).stat() for path in FILES}

        again = make_tree(str(view), str(target))

        assert again.kept == again.files == len(FILES)
        assert {path: (target / path).stat() for path in FILES} == before

    def test_other_files_are_left_alone(self, view: Path, target: Path) -> None:
        written(target, {"notes.txt": b"mine", "tokenizer/mine.txt": b"mine too"})

        make_tree(str(view), str(target))

        assert files_below(target) == FILES | {
            "notes.txt": b"mine",
            "tokenizer/mine.txt": b"mine too",
        }

    def test_one_that_differs_is_not_replaced_and_nothing_is_written(
        self, view: Path, target: Path
    ) -> None:
        mine = {"tokenizer/vocab.txt": b"mine"}
        written(target, mine)

        with pytest.raises(UsageError, match=r"tokenizer/vocab.txt.*--force"):
            make_tree(str(view), str(target))

        assert files_below(target) == mine

    def test_force_replaces_it(self, view: Path, target: Path) -> None:
        written(target, {"config.json": b"mine", "tokenizer/vocab.txt": b"A\nb\n"})

        made = make_tree(str(view), str(target), force=True)

        assert files_below(target) == FILES
        assert made.kept == 0

    def test_progress_ends_at_the_whole(self, view: Path, target: Path) -> None:
        told: list[tuple[int, int]] = []

        make_tree(str(view), str(target), on_progress=lambda done, all_: told.append((done, all_)))

        total = sum(map(len, FILES.values()))
        assert {all_ for _, all_ in told} == {total}
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        assert told[-1] == (total, total)

    def test_an_interrupt_leaves_whole_files_only(self, view: Path, target: Path) -> None:
        for stop_at in range(1, 6):
            there = target / str(stop_at)
            calls = 0

            def interrupt(_: int, __: int, stop_at: int = stop_at) -> None:
                nonlocal calls
                calls += 1
                if calls == stop_at:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                make_tree(str(view), str(there), on_progress=interrupt)

            assert files_below(there).items() <= FILES.items()
            make_tree(str(view), str(there))
            assert files_below(there) == FILES


class TestLinking:
    def test_links_are_the_views_own_files(self, view: Path, target: Path) -> None:
        made = make_tree(str(view), str(target), link=True)

        assert made.linked == len(FILES)
        for path in FILES:
            assert (target / path).samefile(view / path)

    def test_links_replace_what_differs_by_force_alone(self, view: Path, target: Path) -> None:
        written(target, {"config.json": b"mine"})

        with pytest.raises(UsageError):
            make_tree(str(view), str(target), link=True)
        make_tree(str(view), str(target), link=True, force=True)

        assert files_below(target) == FILES

    @pytest.mark.skipif(
        not Path("/dev/shm").is_dir()
        or Path("/dev/shm").stat().st_dev == Path("/tmp").stat().st_dev,
        reason="needs a second file system in /dev/shm",
    )
    def test_links_do_not_cross_file_systems(self, target: Path) -> None:
        view = Path("/dev/shm") / f"damselfly-view-{os.getpid()}"
        written(view, {"config.json": b"{}"})
        try:
            with pytest.raises(UsageError, match="another file system"):
                make_tree(str(view), str(target), link=True)
            assert files_below(target) == {}

            make_tree(str(view), str(target))
            assert files_below(target) == {"config.json": b"{}"}
        finally:
            (view / "config.json").unlink()
            view.rmdir()


class TestTraps:
    """DIR may be anybody's."""

    @pytest.mark.parametrize("force", [False, True])
    def test_a_link_in_place_of_a_directory_is_not_followed(
        self, view: Path, target: Path, tmp_path: Path, *, force: bool
    ) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        target.mkdir()
        (target / "tokenizer").symlink_to(elsewhere)

        with pytest.raises(UsageError, match="in the way"):
            make_tree(str(view), str(target), force=force)

        assert list(elsewhere.iterdir()) == []

    def test_a_link_in_place_of_a_file_is_not_written_through(
        self, view: Path, target: Path, tmp_path: Path
    ) -> None:
        precious = tmp_path / "precious"
        precious.write_bytes(b"mine")
        target.mkdir()
        (target / "config.json").symlink_to(precious)

        with pytest.raises(UsageError, match=r"config.json is there"):
            make_tree(str(view), str(target))
        make_tree(str(view), str(target), force=True)

        assert precious.read_bytes() == b"mine"
        assert files_below(target) == FILES
        assert not (target / "config.json").is_symlink()

    def test_a_link_to_the_same_bytes_is_not_the_file(self, view: Path, target: Path) -> None:
        target.mkdir()
        (target / "config.json").symlink_to(view / "config.json")

        with pytest.raises(UsageError):
            make_tree(str(view), str(target))

    @pytest.mark.parametrize("force", [False, True])
    def test_a_directory_in_place_of_a_file_stays(
        self, view: Path, target: Path, *, force: bool
    ) -> None:
        (target / "config.json" / "mine").mkdir(parents=True)

        with pytest.raises(UsageError, match="is a directory"):
            make_tree(str(view), str(target), force=force)

        assert (target / "config.json" / "mine").is_dir()

    def test_a_pipe_in_place_of_a_file_does_not_block(self, view: Path, target: Path) -> None:
        target.mkdir()
        os.mkfifo(target / "config.json")

        with pytest.raises(UsageError):
            make_tree(str(view), str(target))

    def test_a_directory_that_is_named_by_a_link_is_the_users_choice(
        self, view: Path, target: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "real").mkdir()
        target.symlink_to(tmp_path / "real")

        make_tree(str(view), str(target))

        assert files_below(tmp_path / "real") == FILES

    def test_a_link_planted_meanwhile_is_not_followed(
        self, view: Path, target: Path, tmp_path: Path
    ) -> None:
        precious = tmp_path / "precious"
        precious.write_bytes(b"mine")

        def plant(_: int, __: int) -> None:
            if not (target / "tokenizer").is_symlink():
                (target / "tokenizer").symlink_to(tmp_path)

        with pytest.raises(UsageError):
            make_tree(str(view), str(target), on_progress=plant)

        assert precious.read_bytes() == b"mine"
        assert {path.name for path in tmp_path.iterdir()} == {"view", "to", "precious"}


class TestErrors:
    def test_a_view_that_is_gone_is_said(self, target: Path, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match="evicted"):
            make_tree(str(tmp_path / "gone"), str(target))

    def test_a_view_holds_files_and_directories(self, view: Path, target: Path) -> None:
        (view / "link").symlink_to("/etc/passwd")

        with pytest.raises(IntegrityError, match="link"):
            make_tree(str(view), str(target))

        assert not target.exists()

    def test_a_file_in_place_of_the_tree_is_said(self, view: Path, target: Path) -> None:
        target.write_text("mine")

        with pytest.raises(UsageError):
            make_tree(str(view), str(target))

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            (errno.ENOSPC, CapacityError),
            (errno.EDQUOT, CapacityError),
            (errno.EROFS, DeniedError),
            (errno.EACCES, DeniedError),
        ],
    )
    def test_what_the_system_says_has_a_name(
        self,
        view: Path,
        target: Path,
        monkeypatch: pytest.MonkeyPatch,
        code: int,
        error: type[Exception],
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fchmod", fail)

        with pytest.raises(error, match=str(target)):
            make_tree(str(view), str(target))

        assert files_below(target) == {}


def quietly_nothing(*_: object) -> int:
    return 0


def cannot(_: int, __: int) -> bool:
    return False


def unsupported(*_: object) -> int:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


@pytest.mark.parametrize("broken", [quietly_nothing, unsupported])
def test_without_help_from_the_kernel_bytes_are_copied_by_hand(
    view: Path, target: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[..., int]
) -> None:
    monkeypatch.setattr(os, "copy_file_range", broken)
    monkeypatch.setattr(tree, "_reflink", cannot)

    made = make_tree(str(view), str(target))

    assert files_below(target) == FILES
    assert made.copied == len(FILES)


names = st.sampled_from(["a", "b", "c.json"])
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
trees = st.dictionaries(paths, st.sampled_from([b"", b"x", b"y"]), max_size=6).filter(
    lambda files: (
        not any(f"{one}/" in f"{other}/" and one != other for one in files for other in files)
    )
)


@settings(max_examples=60, deadline=None)
@given(ours=trees, theirs=trees)
def test_either_all_is_in_place_or_nothing_changed(
    tmp_path_factory: pytest.TempPathFactory, ours: dict[str, bytes], theirs: dict[str, bytes]
) -> None:
    root = tmp_path_factory.mktemp("trees")
    view, target = written(root / "view", ours), written(root / "to", theirs)

    try:
        make_tree(str(view), str(target))
    except UsageError:
        assert files_below(target) == theirs
    else:
        assert files_below(target) == theirs | ours
