"""When a host may be asked: rests, what others say of them, and how carefully one begins again."""

from damselfly.origin.gate import told_rest_s
from damselfly.origin.host_clock import HostClock, RestLimits


def clock() -> HostClock:
    return HostClock(RestLimits())


def test_a_host_that_asks_for_rest_is_left_alone_for_so_long() -> None:
    host = clock()
    host.begun()

    host.asked_for_rest(5.0, 0.0, 100.0)

    assert not host.may_begin(104.9)
    assert host.may_begin(105.0)


def test_after_a_rest_one_request_goes_first_and_more_with_each_answer() -> None:
    host = clock()
    host.begun()
    host.asked_for_rest(1.0, 0.0, 0.0)
    widths: list[int] = []
    for _ in range(3):
        under_way = 0
        while host.may_begin(2.0):
            host.begun()
            under_way += 1
        widths.append(under_way)
        for _ in range(under_way):
            host.answered(2.0)

    assert widths == [1, 2, 8]  # Each of the two doubles what may be under way.


def test_a_rest_without_a_length_grows_and_ends() -> None:
    host = clock()
    now = 0.0
    rests: list[float] = []
    for _ in range(10):
        host.begun()
        rests.append(host.asked_for_rest(None, 0.0, now))
        now = host.rests_until_s

    assert rests[:4] == [1.0, 2.0, 4.0, 8.0]
    assert rests[-1] == 60.0


def test_requests_that_were_under_way_together_make_one_rest() -> None:
    host = clock()
    for _ in range(8):
        host.begun()

    rests = [host.asked_for_rest(None, 0.0, 0.01 * number) for number in range(8)]

    assert rests[0] == 1.0
    assert max(rests[1:]) == 2.0


def test_what_others_say_counts_and_is_capped() -> None:
    host = clock()

    assert host.told(99_999.0, 0.0)

    assert host.rests_until_s == RestLimits().told_s_max
    assert not host.told(1.0, 0.0)


def test_the_whole_of_a_rest_that_others_tell_of_is_known_while_their_word_counts() -> None:
    host = clock()
    host.told(4000.0, 0.0)

    assert host.left_s(100.0) == 3900.0
    assert host.left_s(RestLimits().told_s_max) == 0.0
    assert host.may_begin(RestLimits().told_s_max)


def seconds_stopped(host: HostClock, *, rest_s: float, every_s: float, total_s: int) -> float:
    """How long a liar holds up somebody who would ask all the time and is always answered."""
    stopped = 0
    for tick in range(total_s * 20):
        now = tick / 20
        if tick % round(every_s * 20) == 0:
            host.told(rest_s, now)
        if host.may_begin(now):
            host.begun()
            host.answered(now)
        else:
            stopped += 1
    return stopped / 20


def test_a_liar_stops_us_for_two_minutes_and_then_hardly_at_all() -> None:
    six_hours = 6 * 3600

    assert seconds_stopped(clock(), rest_s=120.0, every_s=0.05, total_s=six_hours) < 130.0
    # One whose rests end just before anybody asks is never proved wrong, and has no more of it.
    assert seconds_stopped(clock(), rest_s=1.0, every_s=1.05, total_s=six_hours) < 120 + 217.0


def test_a_host_that_asks_for_rest_proves_others_right() -> None:
    host = clock()
    seconds_stopped(host, rest_s=120.0, every_s=0.05, total_s=600)
    assert not host.told(60.0, 600.0)

    host.begun()
    host.asked_for_rest(1.0, 0.0, 601.0)

    assert host.told(60.0, 603.0)
    assert host.rests_until_s == 663.0


def test_answers_to_what_was_asked_before_prove_nobody_wrong() -> None:
    host = clock()
    for _ in range(8):
        host.begun()
    host.told(60.0, 0.0)
    for _ in range(8):
        host.answered(0.1)

    assert host.told(100.0, 1.0)
    assert host.rests_until_s == 101.0


def test_who_was_idle_believes_others_anew() -> None:
    host = clock()
    host.told(120.0, 0.0)

    assert host.told(30.0, 7200.0)

    assert not host.may_begin(7220.0)


def test_retry_after_is_seconds_or_a_date() -> None:
    assert told_rest_s("17", 0.0) == 17.0
    assert told_rest_s(" 0.5 ", 0.0) == 0.5
    assert told_rest_s("Thu, 01 Jan 1970 00:01:40 GMT", 90.0) == 11.0
    assert told_rest_s("Thu, 01 Jan 1970 00:00:00 GMT", 90.0) == 1.0
    for nonsense in (None, "", "soon", "-5", "1e9", "NaN", "9" * 40, "x" * 5000):
        assert told_rest_s(nonsense, 0.0) is None
