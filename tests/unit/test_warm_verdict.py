"""The verdict on a warm-up: one exit code that tells what a script must know."""

import pytest

from damselfly.cli.warm_verdict import judge, judge_cancellation, judge_order, judge_wait
from damselfly.client.answers import WarmNode
from damselfly.errors import (
    DamselflyError,
    DeniedError,
    JobNotFoundError,
    OriginDeniedError,
    PartialError,
    PeerUnavailableError,
    StillRunningError,
    UnavailableError,
)


def nodes(*states: str, error: str | None = None) -> list[WarmNode]:
    return [
        WarmNode(
            agent=f"10.0.0.{number}:7460",
            state=state,
            error=None if state in {"done", "pulling"} else error,
            message=None if state in {"done", "pulling"} else "why",
        )
        for number, state in enumerate(states)
    ]


def broken(*errors: str) -> list[WarmNode]:
    return [
        WarmNode(agent=str(number), state="failed", error=error, message="why")
        for number, error in enumerate(errors)
    ]


def test_all_done_is_well() -> None:
    assert judge(nodes("done", "done")) is None


@pytest.mark.parametrize("state", ["failed", "unreachable", "cancelled"])
def test_some_done_is_partial(state: str) -> None:
    error = judge(nodes("done", state, "done"))

    assert type(error) is PartialError
    assert str(error) == "2 of 3 nodes hold it"
    assert error.exit_code == 80


@pytest.mark.parametrize(
    ("errors", "cls"),
    [
        (["DeniedError", "DeniedError"], DeniedError),
        (["PeerUnavailableError"] * 3, PeerUnavailableError),
        (["PeerUnavailableError", "OriginUnavailableError"], UnavailableError),
        (["DeniedError", "OriginDeniedError"], DeniedError),
        (["OriginDeniedError", "StoreFullError"], DamselflyError),
        (["OriginDeniedError", "SomethingNewer"], DamselflyError),
    ],
)
def test_none_done_is_what_all_of_them_met(errors: list[str], cls: type[DamselflyError]) -> None:
    error = judge(broken(*errors))

    assert type(error) is cls
    assert str(error) == f"none of {len(errors)} nodes hold it"


def test_one_node_speaks_for_itself() -> None:
    error = judge(broken("OriginDeniedError"))

    assert type(error) is OriginDeniedError
    assert str(error) == "why"


def test_a_wait_that_ended_says_what_is_done_and_what_is_not() -> None:
    error = judge_wait(nodes("done", "pulling", "trying", "failed"), "30 s")

    assert type(error) is StillRunningError
    assert error.exit_code == 81
    assert "30 s, 1 of 4 done, 1 pulling, 1 trying, 1 failed" in str(error)


def test_without_a_wait_it_is_enough_to_have_begun() -> None:
    assert judge_order(nodes("done", "pulling")) is None
    assert type(judge_order(nodes("pulling", "trying"))) is PartialError
    assert type(judge_order(nodes("trying", "trying", error="PeerUnavailableError"))) is (
        PeerUnavailableError
    )


def test_a_cancellation_is_well_where_something_ran_and_nobody_refused() -> None:
    assert judge_cancellation(nodes("cancelled", "idle")) is None
    assert type(judge_cancellation(nodes("idle", "idle"))) is JobNotFoundError
    assert type(judge_cancellation(nodes("cancelled", "unreachable"))) is PartialError
