"""The Dockerfile, as far as it can be looked at without an engine; `make image-check` runs it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from deploy.dockerfile import (
    Step,
    UnknownStepError,
    context_files,
    environment,
    parse,
)
from deploy.image_check import IMPORTS, extras
from tests.integration.deploy_chart import DEPLOY, ROOT, containers_of, documents, pod_of

EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
HADOLINT = Path(sys.executable).parent / "hadolint"
TEXT = (DEPLOY / "Dockerfile").read_text()
IGNORE = (ROOT / ".dockerignore").read_text()


def lint(text: str) -> tuple[int, str]:
    linted = subprocess.run(
        [HADOLINT, "--no-color", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return linted.returncode, linted.stdout


def test_the_linter_finds_nothing() -> None:
    assert lint(TEXT) == (0, "")


def test_the_linter_bites() -> None:
    code, said = lint(TEXT.replace("USER 65532:65532\nWORKDIR /", "WORKDIR src"))

    assert code == 1
    assert "DL3000" in said


def steps(keyword: str, stage: int) -> list[str]:
    return [step.value for step in parse(TEXT)[stage].steps if step.keyword == keyword]


def test_what_runs_is_not_root_and_is_the_user_of_the_manifests() -> None:
    (daemon_set,) = documents((DEPLOY / "kubernetes" / "daemonset.yaml").read_text())
    pod = pod_of(daemon_set)
    assert pod is not None
    (agent,) = [one for one in containers_of(pod) if one["name"] == "agent"]
    context = agent["securityContext"]

    assert steps("USER", -1) == [f"{context['runAsUser']}:{context['runAsGroup']}"]
    assert steps("ENTRYPOINT", -1) == ['["damselfly"]']


def test_the_last_stage_has_only_what_was_installed() -> None:
    assert steps("COPY", -1) == ["--from=build /opt/damselfly /opt/damselfly"]
    assert steps("RUN", -1) == []


def copied_from_the_context() -> set[str]:
    return {source for value in steps("COPY", 0) for source in value.split()[:-1]}


def test_every_room_comes_with_its_link() -> None:
    copied = copied_from_the_context()
    links = {path.name for path in (ROOT / "src" / "damselfly").iterdir() if path.is_symlink()}

    assert copied == {"README.md", "pyproject.toml", "src"} | links


def test_the_context_is_what_is_copied_and_nothing_else() -> None:
    files = context_files(ROOT, IGNORE)

    assert {path.parts[0] for path in files} == copied_from_the_context()
    assert Path("src/damselfly/p2p") in files  # the link itself
    assert Path("p2p/planner.py") in files
    assert not any("__pycache__" in path.parts for path in files)


def test_the_image_has_what_a_node_needs_by_extras_that_there_are() -> None:
    installed = extras()

    assert set(installed) <= EXTRAS.keys()
    assert {"agent", "csi", "kubernetes", "s3", "gs", "az", "sign"} == set(installed)


def test_every_extra_that_an_image_may_have_is_looked_for_in_it() -> None:
    assert IMPORTS.keys() == EXTRAS.keys() - {"test", "check"}


def test_the_extras_are_an_argument_of_the_build() -> None:
    installs = [value for value in steps("RUN", 0) if "pip install" in value]

    assert len(installs) == 1
    assert "'.[$EXTRAS]'" not in installs[0]  # a shell leaves it as it is between such quotes
    assert '".[$EXTRAS]"' in installs[0]


def test_arguments_are_known_by_their_defaults() -> None:
    (stage,) = parse("FROM a\nARG INDEX\nARG EXTRAS=one,two\nRUN b\n")

    assert stage.arguments() == {"EXTRAS": "one,two"}


def test_stages_and_their_steps_are_read() -> None:
    first = "# a comment\nARG BASE=debian:12\nFROM ${BASE} AS one\nRUN a && \\\n    b\n"
    text = f"{first}FROM scratch\nUSER 1:1\n"

    stages = parse(text)

    assert [(stage.base, stage.name) for stage in stages] == [("debian:12", "one"), ("scratch", "")]
    assert stages[0].steps == [Step("RUN", "a &&     b")]
    assert stages[1].steps == [Step("USER", "1:1")]


@pytest.mark.parametrize("text", ["FROM a\nADD x y\n", "RUN x\n", "", "# nothing\n"])
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(UnknownStepError):
        parse(text)


@pytest.mark.parametrize("ignore", ["src\n", "*\n!src/*.py\n", "*\ntests/**/x\n"])
def test_patterns_that_are_not_understood_are_refused(ignore: str) -> None:
    with pytest.raises(UnknownStepError):
        context_files(ROOT, ignore)


def test_variables_are_put_together_from_those_before() -> None:
    assert environment("PATH=/a:$PATH B=1", {"PATH": "/b"}) == {"PATH": "/a:/b", "B": "1"}
