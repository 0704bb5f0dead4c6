"""A bug that one pull finds ends that pull, not the agent."""

import asyncio
from typing import NoReturn, cast

from damselfly.agent.holdings import Holdings
from damselfly.agent.possession import Possession
from damselfly.agent.preparation import Preparation, Wish
from damselfly.agent.prover import Prover
from damselfly.agent.pull import Pull, Workshop
from damselfly.agent.resolver import Target
from damselfly.client.answers import PullRequest
from damselfly.clock import SystemClock
from damselfly.errors import LocalProtocolError
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS

REF = Ref.parse("http://127.0.0.1:9/model/")


class BrokenWorkshop:
    """What a pull works with, and whose every tool breaks."""

    clock = SystemClock()
    policy = "auto"

    def __getattr__(self, name: str) -> NoReturn:
        raise AssertionError(f"a {name} that nobody expected")


WORKSHOP = cast("Workshop", BrokenWorkshop())


async def test_a_pull_that_finds_a_bug_fails_by_name() -> None:
    pull = Pull(PullRequest(ref=str(REF)), REF, WORKSHOP)

    await asyncio.create_task(pull.run())

    assert pull.ended.is_set()
    assert isinstance(pull.failure, LocalProtocolError)
    assert isinstance(pull.failure.__cause__, AssertionError)


async def test_a_preparation_that_finds_a_bug_fails_by_name() -> None:
    wish = Wish(REF, (), (), ANONYMOUS)
    nobody = cast("Prover", None)

    def begin(_: Wish, __: Target) -> Pull:
        raise AssertionError("never asked")

    preparation = Preparation(
        wish, WORKSHOP, cast("Holdings", None), nobody, cast("Possession", None), begin
    )

    await asyncio.create_task(preparation.run())

    assert preparation.ended.is_set()
    assert isinstance(preparation.failure, LocalProtocolError)
