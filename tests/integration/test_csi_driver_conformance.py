"""The driver alone, with an agent of the tests behind it: what every CSI driver of ours does."""

import itertools
from collections.abc import Iterator

import pytest

from tests.conformance.csi import CSIConformance, Driven
from tests.integration.csi_driver_node import REF, Node, needs_root, running

pytestmark = needs_root


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running(tmp_path_factory.mktemp("node")) as node:
        yield node


@pytest.fixture(scope="module")
def driven(node: Node) -> Driven:
    numbers = itertools.count()
    return Driven(
        node.driver,
        {"model": REF},
        node.agent.models[REF],
        lambda: node.target(f"pod-{next(numbers)}"),
    )


class TestDriverAlone(CSIConformance):
    """With a fake agent, which `conformance/volume_api.py` verifies."""
