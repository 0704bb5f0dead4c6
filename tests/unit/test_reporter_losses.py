"""What a home hears of chunks that were lost and came back: it takes what was lost last."""

import pytest

from damselfly.model.digest import Digest
from damselfly.p2p.actions import ReportFailure, SendReport
from damselfly.p2p.messages import AgentID, Reply, State, SwarmID
from damselfly.p2p.reporter import Reporter, Standing

STANDING = Standing((), 0, (), None, None, None, is_idle=False)
DIGEST = Digest.of(b"chunk")


def said(reporter: Reporter) -> SendReport:
    return reporter.next_report(STANDING, lambda: State(have=0, wanted=0xFF), 1.0)


@pytest.fixture
def reporter() -> Reporter:
    """One that has told its whole state to the home it has: itself."""
    reporter = Reporter(SwarmID(str(DIGEST)), AgentID("a:1"), "boot", chunk_count=8, now=0.0)
    reporter.tell_everything()
    first = said(reporter)
    assert reporter.replied(first.report.serial, Reply(boot="home"), 1.0)
    return reporter


def test_a_chunk_that_came_back_from_a_peer_is_not_told_as_lost(reporter: Reporter) -> None:
    reporter.chunk_lost(3)
    reporter.chunk_lost(4)
    reporter.chunk_got(3)

    report = said(reporter).report

    assert (report.got, report.lost) == ((3,), (4,))


def test_a_chunk_that_came_back_from_the_origin_is_not_told_as_lost(reporter: Reporter) -> None:
    reporter.chunk_lost(3)
    reporter.chunk_done(3, DIGEST)

    report = said(reporter).report

    assert (report.done, report.lost) == (((3, DIGEST),), ())


@pytest.mark.parametrize("is_from_origin", [False, True])
def test_a_chunk_that_came_back_while_nobody_answered_is_not_told_as_lost(
    reporter: Reporter, is_from_origin: bool
) -> None:
    reporter.chunk_lost(3)
    reporter.chunk_lost(4)
    unanswered = said(reporter).report
    assert unanswered.lost == (3, 4)
    if is_from_origin:
        reporter.chunk_done(3, DIGEST)
    else:
        reporter.chunk_got(3)
    reporter.failed(unanswered.serial, ReportFailure.UNREACHABLE, 2.0)

    report = said(reporter).report

    assert report.lost == (4,)
    assert 3 in report.got or report.done == ((3, DIGEST),)


def test_a_chunk_that_was_lost_while_nobody_answered_is_not_told_as_done(
    reporter: Reporter,
) -> None:
    reporter.chunk_done(3, DIGEST)
    unanswered = said(reporter).report
    reporter.chunk_lost(3)
    reporter.failed(unanswered.serial, ReportFailure.UNREACHABLE, 2.0)

    report = said(reporter).report

    assert (report.done, report.lost) == ((), (3,))
