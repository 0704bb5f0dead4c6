"""What a volume may be wanted for."""

import pytest

from damselfly.csi.capability import check_capability
from damselfly.csi.proto import csi_pb2
from damselfly.errors import UsageError


def capability(*flags: str) -> csi_pb2.VolumeCapability:
    kind = csi_pb2.VolumeCapability
    return kind(
        mount=kind.MountVolume(mount_flags=flags),
        access_mode=kind.AccessMode(mode=kind.AccessMode.SINGLE_NODE_WRITER),
    )


def test_options_that_every_volume_has_may_be_asked_for() -> None:
    check_capability(capability("ro", "nodev"))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("rw",), "not supported: rw;"),
        (("noatime", "rw", "ro"), "not supported: noatime, rw;"),
        (("rw", "password=hidden"), "not supported: rw, 1 more;"),
        (("password=hidden", "hidden"), "not supported: 2 that are not told here;"),
    ],
)
def test_an_option_is_refused_by_name_unless_it_may_be_a_secret(
    flags: tuple[str, ...], told: str
) -> None:
    with pytest.raises(UsageError) as caught:
        check_capability(capability(*flags))

    assert told in str(caught.value)
    assert "hidden" not in str(caught.value)
