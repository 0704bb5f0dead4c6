"""`damselfly csi`: flags, variables, and what is refused before anything is made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from damselfly import cli
from damselfly.csi.options import DRIVER_NAME, Options, check_driver_name, socket_path
from damselfly.errors import ConfigError

NEEDED = ("--endpoint", "unix:///run/x/csi.sock", "--node-id", "n1")


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """What the driver would be started with; no variable of the machine is seen."""
    for name in list(os.environ):
        if name.startswith(("DAMSELFLY_", "CSI_", "NODE_NAME", "KUBE")):
            monkeypatch.delenv(name)
    options: list[Options] = []

    def start(given: Options) -> int:
        options.append(given)
        return 0

    monkeypatch.setattr("damselfly.csi.driver.run", start)
    return options


def run(*args: str) -> int:
    return cli.main(["csi", *args])


def test_the_needed_flags_suffice(started: list[Options]) -> None:
    assert run(*NEEDED) == 0

    (options,) = started
    assert options.endpoint == Path("/run/x/csi.sock")
    assert options.driver_name == DRIVER_NAME
    assert options.state_folder == Path("/var/lib/kubelet/plugins/csi.damselfly.dev/volumes")
    assert options.limits.publish_wait_s == 100
    assert not options.is_self_registering
    assert not options.allows_file_refs


def test_every_flag_arrives(started: list[Options]) -> None:
    run(
        *NEEDED,
        *("--agent-socket", "/a.sock", "--kubelet-root", "/k", "--self-register"),
        *("--driver-name", "a.b", "--host-endpoint", "/h.sock", "--state", "/s"),
        *("--publish-wait", "5s", "--health", "--allow-file-refs", "--remove-taint", "t"),
        *("--admin", "0.0.0.0:7", "--store", "/store"),
    )

    (options,) = started
    assert options == Options(
        endpoint=Path("/run/x/csi.sock"),
        agent_socket="/a.sock",
        node_id="n1",
        kubelet_root=Path("/k"),
        driver_name="a.b",
        is_self_registering=True,
        host_endpoint=Path("/h.sock"),
        state=Path("/s"),
        store=Path("/store"),
        allows_file_refs=True,
        shows_health=True,
        taint="t",
        admin="0.0.0.0:7",
        limits=options.limits,
    )
    assert options.limits.publish_wait_s == 5


def test_the_environment_says_what_no_flag_does(
    started: list[Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "CSI_ENDPOINT": "unix:///env.sock",
        "NODE_NAME": "of-env",
        "DAMSELFLY_SOCKET": "/agent.sock",
        "DAMSELFLY_CSI_SELF_REGISTER": "1",
        "DAMSELFLY_CSI_HEALTH": "0",
        "DAMSELFLY_CSI_PUBLISH_WAIT": "7s",
    }.items():
        monkeypatch.setenv(name, value)

    assert run("--node-id", "of-flag") == 0

    (options,) = started
    assert (options.node_id, options.endpoint) == ("of-flag", Path("/env.sock"))
    assert options.agent_socket == "/agent.sock"
    assert options.is_self_registering
    assert not options.shows_health
    assert options.limits.publish_wait_s == 7


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((), "--endpoint is not set"),
        (NEEDED[:2], "--node-id is not set: give it, or DAMSELFLY_CSI_NODE_ID"),
        ((*NEEDED, "--endpoint", "tcp://1.2.3.4:5"), "no endpoint"),
        ((*NEEDED, "--endpoint", "unix:///" + "x" * 200), "107 bytes"),
        ((*NEEDED, "--driver-name", "x-"), "cannot name a driver"),
        ((*NEEDED, "--publish-wait", "soon"), "--publish-wait 'soon'"),
        ((*NEEDED, "--kubelet-root", "k"), "not an absolute path"),
        ((*NEEDED, "--remove-taint", "t"), "needs --self-register"),
        ((*NEEDED, "--prepare-store", "1:1"), "give that too"),
        ((*NEEDED, "--store", "/x", "--prepare-store", "me"), "UID:GID in numbers"),
        ((*NEEDED, "--prepare-only"), "--prepare-store"),
        ((*NEEDED, "--log-level", "loud"), "--log-level 'loud'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    args: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str], started: list[Options]
) -> None:
    assert run(*args) in {2, 3}

    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert started == []


def test_a_switch_in_the_environment_that_is_neither_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DAMSELFLY_CSI_HEALTH", "perhaps")

    assert run(*NEEDED) == 3
    assert "write 1 or 0" in capsys.readouterr().err


def test_the_store_is_prepared_and_nothing_else_is_needed_for_it(
    tmp_path: Path, started: list[Options]
) -> None:
    store = tmp_path / "a" / "store"
    owner = f"{os.geteuid()}:{os.getegid()}"

    for _ in range(2):
        assert run("--store", str(store), "--prepare-store", owner, "--prepare-only") == 0

    assert store.stat().st_mode & 0o777 == 0o755
    assert started == []


def test_a_store_that_is_a_link_is_not_prepared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    args = ("--store", str(tmp_path / "link"), "--prepare-store", "1:1", "--prepare-only")

    assert run(*args) == 3
    assert "preparing the store" in capsys.readouterr().err


def isolated(missing: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process that lacks some packages."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys\nfor name in {missing!r}: sys.modules[name] = None\n{code}",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_driver_needs_nothing_that_is_the_agents() -> None:
    ended = isolated(
        ("aiohttp", "hpack", "uvloop"),
        "import damselfly.csi.driver\nprint(*(name for name in sys.modules))",
    )

    loaded = set(ended.stdout.split())
    assert "damselfly.csi.volumes" in loaded, ended.stderr
    assert not {
        name
        for name in loaded
        if name.startswith(
            tuple(f"damselfly.{room}" for room in ("agent", "cache", "origin", "p2p"))
        )
    }


def test_without_its_extra_the_driver_says_what_to_install() -> None:
    ended = isolated(
        ("grpc",), f"from damselfly.cli import main\nsys.exit(main(['csi', *{NEEDED!r}]))"
    )

    assert ended.returncode == 2
    assert "pip install 'damselfly[csi]'" in ended.stderr


@pytest.mark.parametrize("name", ["a", "csi.damselfly.dev", "a" * 63, "a-b_c.d"])
def test_a_drivers_name_is_as_csi_has_it(name: str) -> None:
    assert check_driver_name(name) == name


@pytest.mark.parametrize("name", ["", "a" * 64, "1a", "a1", "a.", ".a", "a/b", "ä"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        check_driver_name(name)


@pytest.mark.parametrize("endpoint", ["unix:///a/b", "unix:/a/b", "/a/b"])
def test_an_endpoint_is_a_path(endpoint: str) -> None:
    assert socket_path(endpoint) == Path("/a/b")
