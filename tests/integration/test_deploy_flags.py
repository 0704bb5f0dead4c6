"""What containers say to `damselfly`, parsed by `damselfly`."""

import importlib
import os
from argparse import Namespace

import pytest

from damselfly import cli
from damselfly.agent.config import AgentConfig, load_config
from damselfly.agent.settings import SETTINGS
from tests.integration.deploy_chart import (
    DEPLOY,
    VARIANTS,
    Document,
    containers_of,
    documents,
    expanded,
    only,
    pod_of,
    rendered,
)


def parse(arguments: list[str]) -> Namespace:
    """Parse as the command line does; a flag that is not there ends the test."""
    verb, *rest = arguments
    assert verb in cli.VERBS, f"there is no `damselfly {verb}`"
    module = importlib.import_module(f"damselfly.cli.{verb}_cmd")
    try:
        return cli._parser(verb, module).parse_args(rest)
    except SystemExit as exit_:
        raise AssertionError(f"damselfly {' '.join(arguments)}") from exit_


def ours(objects: list[Document]) -> list[list[str]]:
    """The arguments of every container that runs our image's entry point."""
    return [
        expanded(container)
        for one in objects
        if (pod := pod_of(one)) is not None
        for container in containers_of(pod)
        if container["image"].startswith("damselfly") and "command" not in container
    ]


def config_of(container: list[str]) -> AgentConfig:
    args = parse(container)
    given = {key: value for key in SETTINGS if (value := getattr(args, key)) is not None}
    return load_config(given, {}, None, uid=65532)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_flag_exists(variant: str) -> None:
    found = ours(rendered(VARIANTS[variant]))

    assert [arguments[0] for arguments in found] == ["csi", "agent", "csi"]
    for arguments in found:
        parse(arguments)


@pytest.mark.parametrize("example", ["warm-job.yaml", "warm-cronjob.yaml"])
def test_every_flag_of_an_example_exists(example: str) -> None:
    (arguments,) = ours(documents((DEPLOY / "examples" / example).read_text()))

    assert arguments[0] == "warm"
    parse(arguments)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_agent_takes_its_configuration(variant: str) -> None:
    (arguments,) = [one for one in ours(rendered(VARIANTS[variant])) if one[0] == "agent"]

    config = config_of(arguments)

    assert config.agent.advertise.startswith("10.0.0.7:")
    assert str(config.swarm.peers).startswith("dns:" if variant == "least" else "k8s:")
    assert os.fspath(config.agent.socket).endswith("/agent.sock")


def test_a_flag_that_is_not_there_is_found() -> None:
    daemon_set = only(rendered({}), "DaemonSet")
    (arguments,) = [one for one in ours([daemon_set]) if one[0] == "agent"]

    with pytest.raises(AssertionError, match="--peer-list"):
        parse([*arguments, "--peer-list", "x"])
