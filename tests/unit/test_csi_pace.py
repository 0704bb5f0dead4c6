"""How far a pull is, in the words of a pod's events."""

import pytest

from damselfly.client.answers import Progress
from damselfly.csi.pace import Pace

GIB = 1 << 30


def fetching(done: float, **more: object) -> Progress:
    return Progress(
        ref="https://h/m/", phase="fetching", bytes_done=int(done), bytes_total=15 * GIB
    ).but(**more)


def paced(*samples: tuple[float, Progress]) -> Pace:
    pace = Pace()
    for now, progress in samples:
        pace.progressed(progress, now)
    return pace


def test_share_size_peers_and_what_is_left() -> None:
    pace = paced((0.0, fetching(0, peers=3)), (10.0, fetching(6.16 * GIB, peers=3)))

    assert pace.text(10.0) == "41 % of 15.0 GiB, 3 peers, about 14 s left"


def test_one_peer_is_not_peers() -> None:
    assert paced((0.0, fetching(GIB, peers=1))).text(0.0) == "6 % of 15.0 GiB, 1 peer"


def test_before_anything_is_known() -> None:
    assert Pace().text(0.0) == "asking the agent"
    assert paced((0.0, Progress(ref="r"))).text(5.0) == "looking what it consists of"


def test_what_it_waits_for_stands_in_place_of_a_promise() -> None:
    pace = paced((0.0, fetching(0)), (10.0, fetching(GIB, waiting_for="the origin")))

    assert pace.text(10.0) == "6 % of 15.0 GiB, waiting for the origin"


def test_the_rate_is_that_of_the_last_seconds() -> None:
    samples = [(float(second), fetching(second * GIB)) for second in range(10)]
    stalled = [(float(second), fetching(9 * GIB)) for second in range(10, 60)]

    assert "about 6 s left" in paced(*samples).text(9.0)
    assert "left" not in paced(*samples, *stalled).text(59.0)


def test_long_ones_are_told_in_minutes_and_hours() -> None:
    slow = paced((0.0, fetching(0)), (10.0, fetching(GIB)), (20.0, fetching(2 * GIB)))
    slower = paced((0.0, fetching(0)), (10.0, fetching(GIB // 100)))

    assert "about 2 min left" in slow.text(20.0)
    assert "about 4 h left" in slower.text(10.0)


@pytest.mark.parametrize(
    ("phase", "told"),
    [("sealing", "verifying the last of it"), ("verifying", "verifying who signed it")],
)
def test_the_last_steps_are_named(phase: str, told: str) -> None:
    text = paced((0.0, fetching(15 * GIB, phase=phase))).text(0.0)

    assert text == f"100 % of 15.0 GiB, {told}"


def test_small_sizes_have_small_units() -> None:
    pace = paced((0.0, Progress(ref="r", phase="fetching", bytes_done=1, bytes_total=2048)))

    assert pace.text(0.0) == "0 % of 2.0 KiB"


def test_memory_is_bounded_however_often_it_is_told() -> None:
    pace = paced(*((number * 0.01, fetching(number)) for number in range(10_000)))

    assert len(pace._samples) < 50
