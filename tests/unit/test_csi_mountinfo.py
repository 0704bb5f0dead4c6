"""The kernel's list of mounts, as it is written."""

import pytest

from damselfly.csi.mountinfo import escape, mounts_at, parse, paths_of, unescape

TABLE = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 27 254:1 / /data rw,relatime shared:2 - xfs /dev/vdb rw
50 27 254:1 /store/views/aa/all /k/my\\040pod/mount ro,nosuid,nodev shared:3 - xfs /dev/vdb rw
51 50 254:1 /store/views/bb/all /k/my\\040pod/mount rw,relatime - xfs /dev/vdb rw
52 27 254:1 /gone//deleted /k/dead ro - xfs /dev/vdb rw
torn li
"""


def test_a_mount_is_found_by_its_path_with_the_uppermost_last() -> None:
    lower, upper = mounts_at(TABLE, "/k/my pod/mount")

    assert (lower.root, lower.is_sealed) == ("/store/views/aa/all", True)
    assert (upper.root, upper.is_sealed) == ("/store/views/bb/all", False)
    assert mounts_at(TABLE, "/k/my") == []


@pytest.mark.parametrize(
    ("options", "is_sealed"),
    [("ro,nosuid,nodev", True), ("ro,nosuid,nodev,relatime", True), ("ro,relatime", False)],
)
def test_a_mount_is_sealed_that_is_read_only_without_devices_and_set_user_id_bits(
    options: str, *, is_sealed: bool
) -> None:
    (found,) = mounts_at(f"50 27 254:1 /s /k {options} shared:3 - xfs /dev/vdb rw\n", "/k")

    assert found.is_sealed is is_sealed


def test_a_mount_of_a_removed_directory_is_gone() -> None:
    (dead,) = mounts_at(TABLE, "/k/dead")

    assert dead.is_gone
    assert not mounts_at(TABLE, "/data")[0].is_gone


def test_lines_that_are_none_are_left_out() -> None:
    assert len(list(parse(TABLE))) == 6
    assert list(parse("")) == []


def test_the_same_directory_is_found_by_way_of_its_file_system() -> None:
    shown = mounts_at(TABLE, "/k/my pod/mount")[0]

    assert list(paths_of(TABLE, shown)) == ["/data/store/views/aa/all"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("/plain", "/plain"),
        ("/a\\040b", "/a b"),
        ("/a\\011b\\012c", "/a\tb\nc"),
        ("/a\\134b", "/a\\b"),
        ("/a\\134040b", "/a\\040b"),
    ],
)
def test_escapes_are_undone_once(written: str, meant: str) -> None:
    assert unescape(written) == meant
    assert escape(meant) == written


def test_a_path_may_have_characters_that_end_lines_elsewhere() -> None:
    odd = "/k/a\x0bb\u2028c\rd"

    (found,) = mounts_at(f"50 27 254:1 /s {odd} ro - xfs /dev/vdb rw\n", odd)

    assert found.point == odd
