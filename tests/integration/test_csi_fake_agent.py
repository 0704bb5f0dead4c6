"""The agent of the driver's tests, held to what the real one does with volumes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from damselfly.client.answers import CapacityRequest
from damselfly.errors import OriginNotFoundError
from tests.conformance.agent_api import TOKEN, AgentAPIConformance, Served, ask
from tests.fakes.volume_agent import VolumeAgent, model

REF = "https://models.test/llama/"
PRIVATE = "https://models.test/private/"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with VolumeAgent(tmp_path) as agent:
        files = model()
        agent.models = {REF: files, PRIVATE: model(5)}
        agent.tokens = {PRIVATE: TOKEN}
        yield Served(
            socket=agent.socket,
            ref=REF,
            files=files,
            missing_ref="https://models.test/none/",
            private_ref=PRIVATE,
            hold=agent.may_go_on.clear,
            release=agent.may_go_on.set,
        )


class TestVolumeAgent:
    """Those of the suite's questions that a driver asks."""

    again = AgentAPIConformance.test_the_same_volume_is_opened_again_under_its_lease
    test_the_same_volume_is_opened_again_under_its_lease = again
    filters = AgentAPIConformance.test_filters_choose_the_files_of_a_volume
    test_filters_choose_the_files_of_a_volume = filters
    nothing = AgentAPIConformance.test_a_volume_that_cannot_be_leaves_no_lease
    test_a_volume_that_cannot_be_leaves_no_lease = nothing


async def test_room_is_told_for_anything_and_for_a_model(served: Served) -> None:
    anything = await ask(served.client.capacity, CapacityRequest())
    of_it = await ask(served.client.capacity, CapacityRequest(ref=REF))

    assert anything.available_bytes == of_it.available_bytes > 0
    assert of_it.ref_bytes == sum(map(len, served.files.values()))
    with pytest.raises(OriginNotFoundError):
        await ask(served.client.capacity, CapacityRequest(ref=served.missing_ref))
