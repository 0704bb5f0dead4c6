"""How many bytes of a body have to be there before we are woken."""

import socket

import pytest

from damselfly.origin import low_water
from damselfly.origin.low_water import LowWater

MIB = 1 << 20


class Recorder:
    """A socket that keeps the levels it is given, and fails as it is told."""

    def __init__(self) -> None:
        self.levels: list[int] = []
        self.failure: Exception | None = None

    def setsockopt(self, level: int, name: int, value: int, /) -> None:
        assert (level, name) == (socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        if self.failure is not None:
            raise self.failure
        self.levels.append(value)


def amid_a_fast_body(sock: Recorder) -> LowWater:
    water = LowWater(sock)
    water.expect(0, 8 * MIB)
    water.expect(4 * MIB, 4 * MIB)
    return water


def test_a_fast_body_wakes_us_seldom_and_its_end_for_every_byte() -> None:
    sock = Recorder()
    water = amid_a_fast_body(sock)

    water.end()

    assert sock.levels == [low_water.WAKE_BYTES, 1]


def test_no_more_is_waited_for_than_is_to_come() -> None:
    sock = Recorder()
    water = amid_a_fast_body(sock)

    water.expect(8 * MIB - 20_000, 20_000)

    assert sock.levels[-1] <= 20_000


@pytest.mark.parametrize(
    "failure", [OSError("no TCP"), ValueError("negative file descriptor")], ids=["os", "uvloop"]
)
def test_a_socket_that_is_closed_meanwhile_is_left_alone(failure: Exception) -> None:
    sock = Recorder()
    water = amid_a_fast_body(sock)
    sock.failure = failure

    water.end()
    sock.failure = None
    water.expect(5 * MIB, 3 * MIB)

    assert sock.levels == [low_water.WAKE_BYTES]
