"""Who reads which whole file, and whom a member believes: by hand."""

from dataclasses import replace

import pytest

from damselfly.errors import RemoteProtocolError
from damselfly.model.digest import Digest
from damselfly.model.plan import FILES_MAX
from damselfly.p2p.hashing import (
    FOUND_MAX,
    Found,
    Hash,
    HashDesk,
    HashDeskLimits,
    Hashing,
    HashingLimits,
    HashReply,
    HashReport,
    Refuse,
)
from damselfly.p2p.messages import AgentID, SwarmID

GOOD = "sha256:" + "a" * 64
BAD = "sha256:" + "b" * 64
CONTENT = Digest.of(b"content")
OTHER = Digest.of(b"another content")
SWARM = SwarmID("blake3:" + "0" * 64)
A, B, C = (AgentID(f"10.0.0.{n}:1") for n in (1, 2, 3))


def report(agent: AgentID, *, count: int = 4, **more: object) -> HashReport:
    bare = HashReport(agent, "boot", count, (1 << count) - 1)
    return replace(bare, **more)  # type: ignore[arg-type]


def hashing(count: int = 1, size: int = 100) -> Hashing:
    expected = dict.fromkeys(range(count), (GOOD,))
    return Hashing(expected, dict.fromkeys(expected, size), now=0.0)


def asked(one: Hashing, now: float) -> HashReport:
    return one.next_report(A, "boot", 4, {}, now)


# --- the desk ---


def test_files_are_shared_and_everyone_hears_of_the_same_shares() -> None:
    desk = HashDesk(SWARM, 64)
    for agent in (A, B, C):
        desk.reported(report(agent, count=64), 0.0)

    shares = [set(desk.reported(report(agent, count=64), 0.1).yours) for agent in (A, B, C)]

    assert {file for share in shares for file in share} == set(range(64))
    assert sum(map(len, shares)) == 64
    assert all(len(share) > 8 for share in shares)


def test_who_falls_silent_while_it_reads_is_replaced() -> None:
    desk = HashDesk(SWARM, 1)
    desk.reported(report(B, count=1), 0.0)
    desk.reported(report(A, count=1), 0.0)
    reader = A if desk.reported(report(A, count=1), 0.1).yours else B
    other = B if reader == A else A
    desk.reported(report(reader, count=1, reading=((0, 10),)), 0.2)

    meanwhile = desk.reported(report(other, count=1), 4.0)
    later = desk.reported(report(other, count=1), 6.0)

    assert meanwhile.yours == ()
    assert meanwhile.others == (0,)
    assert later.yours == (0,)


def test_a_reading_that_does_not_move_is_given_to_somebody_else() -> None:
    desk = HashDesk(SWARM, 1, limits=HashDeskLimits(patience_s=5.0))
    for now in (0.0, 2.0, 4.0, 6.0, 8.0):
        stuck = report(A, count=1, reading=((0, 10),))
        desk.reported(stuck, now)
        desk.reported(report(B, count=1), now)

    assert desk._reader_of(0, 8.0) is None  # pyright: ignore[reportPrivateUsage]


def test_what_is_found_is_told_to_those_who_want_the_file() -> None:
    desk = HashDesk(SWARM, 4)
    found = Found(2, CONTENT, GOOD)
    desk.reported(report(A, found=(found,)), 0.0)

    wants_it = desk.reported(report(B), 0.1)
    wants_others = desk.reported(report(C, wanted=0b11), 0.1)

    assert wants_it.found == (found,)
    assert 2 not in wants_it.yours
    assert wants_others.found == ()


def test_a_file_that_somebody_refused_is_still_given_out() -> None:
    desk = HashDesk(SWARM, 1)
    desk.reported(report(A, count=1, found=(Found(0, CONTENT, BAD),), refused=1), 0.0)

    answer = desk.reported(report(B, count=1), 10.0)

    assert answer.yours == (0,)


def test_an_agent_has_one_voice_about_a_file_and_liars_fill_no_memory() -> None:
    desk = HashDesk(SWARM, 1)
    for number in range(100):
        content = Digest.of(bytes([number]))
        desk.reported(report(A, count=1, found=(Found(0, content, BAD),)), 0.0)
        liar = AgentID(f"10.0.1.{number}:1")
        desk.reported(report(liar, count=1, found=(Found(0, content, BAD),)), 0.0)

    assert len(desk.reported(report(B, count=1), 0.1).found) <= 4


def test_another_number_of_files_is_refused() -> None:
    desk = HashDesk(SWARM, 4)

    with pytest.raises(RemoteProtocolError, match="counts 5 files"):
        desk.reported(report(A, count=5), 0.0)


# --- a member ---


def test_a_file_of_ours_is_read_once_a_part_of_it_is_here() -> None:
    one = hashing()
    asked(one, 0.0)
    one.heard(HashReply(yours=(0,)), 0.0)

    before = one.next_action(0.0)
    one.here(0, 0.3, None, 1.0)

    assert before is None
    assert one.next_action(1.0) == Hash(0)
    assert one.next_action(1.0) is None


def test_a_match_that_others_found_is_believed_of_this_content_only() -> None:
    one = hashing()
    one.told(Found(0, OTHER, GOOD))
    one.here(0, 1.0, CONTENT, 1.0)
    assert list(one.unsettled) == [0]

    one.told(Found(0, CONTENT, GOOD))

    assert not one.unsettled
    assert one.believed == {0: Found(0, CONTENT, GOOD)}


def test_a_mismatch_that_others_found_is_a_hint_and_we_read_it_ourselves() -> None:
    one = hashing()
    one.here(0, 1.0, CONTENT, 1.0)
    one.told(Found(0, CONTENT, BAD))

    assert list(one.unsettled) == [0]
    assert one.next_action(1.0) == Hash(0)
    one.hashed(Found(0, CONTENT, GOOD), 2.0)
    assert one.next_action(2.0) is None
    assert not one.unsettled


def test_who_is_contradicted_is_not_believed() -> None:
    one = hashing()
    one.here(0, 1.0, CONTENT, 1.0)
    one.told(Found(0, CONTENT, GOOD))
    assert not one.unsettled

    one.told(Found(0, CONTENT, BAD))

    assert list(one.unsettled) == [0]
    assert one.next_action(1.0) == Hash(0)


def test_what_we_found_outlives_whatever_is_said() -> None:
    one = hashing()
    one.here(0, 1.0, CONTENT, 1.0)
    one.hashed(Found(0, CONTENT, BAD), 1.0)
    one.told(Found(0, CONTENT, GOOD))

    assert one.next_action(1.0) == Refuse(0, GOOD, BAD)
    assert list(one.unsettled) == [0]
    assert asked(one, 1.0).refused == 1


def test_a_home_that_says_nothing_costs_time_and_never_the_check() -> None:
    one = hashing()
    one.here(0, 1.0, CONTENT, 0.0)
    asked(one, 0.0)
    one.unheard(0.0)

    assert one.next_action(1.0) is None
    assert one.next_action(3.1) == Hash(0)


def test_a_home_that_says_for_ever_that_others_are_at_it_is_not_believed_for_ever() -> None:
    one = hashing(size=int(100e6))
    one.here(0, 1.0, CONTENT, 0.0)
    now = 0.0
    while now < 5.0:
        one.heard(HashReply(others=(0,)), now)
        assert one.next_action(now) is None
        now += 0.5

    one.heard(HashReply(others=(0,)), 5.1)

    assert one.next_action(5.1) == Hash(0)


def test_no_more_files_are_read_at_once_than_there_are_threads() -> None:
    one = hashing(count=5)
    one.heard(HashReply(yours=tuple(range(5))), 0.0)
    for file in range(5):
        one.here(file, 1.0, CONTENT, 0.0)

    actions = [one.next_action(0.0) for _ in range(4)]

    assert actions == [Hash(0), Hash(1), None, None]


def test_a_file_that_lost_a_chunk_is_read_again_when_it_is_back() -> None:
    one = hashing()
    one.heard(HashReply(yours=(0,)), 0.0)
    one.here(0, 1.0, CONTENT, 0.0)
    assert one.next_action(0.0) == Hash(0)

    one.lost(0)

    assert one.next_action(0.0) is None
    one.here(0, 1.0, CONTENT, 1.0)
    assert one.next_action(1.0) == Hash(0)


def test_what_was_not_answered_is_told_again() -> None:
    one = hashing()
    found = Found(0, CONTENT, GOOD)
    one.here(0, 1.0, CONTENT, 0.0)
    one.hashed(found, 0.0)
    assert asked(one, 0.0).found == (found,)

    one.unheard(0.0)

    assert one.has_news
    assert asked(one, 1.0).found == (found,)
    one.heard(HashReply(), 1.0)
    assert not one.has_news


def test_two_digests_that_differ_cannot_both_be_right() -> None:
    one = Hashing({0: (GOOD, BAD)}, {0: 1}, limits=HashingLimits(), now=0.0)
    one.here(0, 1.0, CONTENT, 0.0)

    one.hashed(Found(0, CONTENT, GOOD), 0.0)

    assert one.next_action(0.0) == Refuse(0, BAD, GOOD)


# --- the wire ---


def test_messages_come_back_as_they_were() -> None:
    said = HashReport(A, "boot", 9, 0b101, ((0, 5),), (Found(2, CONTENT, GOOD),), refused=0b100)
    answer = HashReply((1, 2), (3,), (Found(2, CONTENT, BAD),))

    assert HashReport.parse(said.to_json()) == said
    assert HashReply.parse(answer.to_json(), 9) == answer


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"agent":"a:1","boot":"b","files":2,"reading":[[2,0]]}',
        b'{"agent":"a:1","boot":"b","files":2,"found":[[0,"zz","sha256:00"]]}',
        b'{"agent":"a:1","boot":"b","files":1e9}',
        b'{"agent":"a:1","boot":"b","files":2,"wanted":"AAAAAAAA"}',
    ],
)
def test_reports_that_break_a_rule_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        HashReport.parse(data)


def many_found(agent: str, files: range) -> HashReport:
    found = tuple(Found(n, Digest.of(b"content"), f"sha256:{n:064x}") for n in files)
    return HashReport(AgentID(f"{agent}:1"), "boot", FILES_MAX, 0, found=found)


def test_what_is_left_over_is_told_with_the_next_answer() -> None:
    desk = HashDesk(SWARM, FILES_MAX)
    for start in range(0, 3 * FOUND_MAX, FOUND_MAX):
        desk.reported(many_found("a", range(start, start + FOUND_MAX)), 0.0)
    everything = HashReport(AgentID("b:1"), "boot", FILES_MAX, (1 << FILES_MAX) - 1)

    told: list[int] = []
    for _ in range(16):
        told += [found.file for found in desk.reported(everything, 0.0).found]

    assert set(told) == set(range(3 * FOUND_MAX))


def test_a_desk_looks_at_so_many_files_for_one_answer_and_comes_to_all_of_them() -> None:
    limits = HashDeskLimits(scanned_max=100, window_files=10)
    desk = HashDesk(SWARM, 1000, limits=limits)
    everything = (1 << 1000) - 1
    found = tuple(Found(n, Digest.of(b"x"), "sha256:" + "0" * 64) for n in range(995))
    mine = HashReport(AgentID("a:1"), "boot", 1000, everything, found=found)

    replies = [desk.reported(mine, 0.0)]
    later = HashReport(AgentID("a:1"), "boot", 1000, everything)
    replies += [desk.reported(later, 0.0) for _ in range(10)]

    assert [reply.yours for reply in replies[:9]] == [()] * 9
    assert replies[9].yours == replies[10].yours == tuple(range(995, 1000))


def test_a_member_that_begins_anew_reads_nothing_yet() -> None:
    desk = HashDesk(SWARM, 1)
    desk.reported(HashReport(AgentID("a:1"), "boot", 1, 1, reading=((0, 5),)), 0.0)

    desk.reported(HashReport(AgentID("a:1"), "another", 1, 1), 0.1)
    reply = desk.reported(HashReport(AgentID("b:1"), "boot", 1, 1), 0.2)

    assert reply.yours + reply.others == (0,)
