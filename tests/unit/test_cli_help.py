"""The command line's shape: verbs, flags, help, and what a command imports."""

import subprocess
import sys

import pytest

from damselfly import __version__, cli
from damselfly.agent.settings import SETTINGS

FLAGS = {
    "agent": [declared.setting.flag for declared in SETTINGS.values()] + ["--config"],
    "csi": ["--endpoint", "--agent-socket", "--node-id", "--kubelet-root", "--self-register"],
    "pull": ["REF", "--to", "--include", "--exclude", "--link", "--force", "--origin"],
    "warm": [
        *("REF", "--agents", "--selector", "--all", "--include", "--exclude", "--pin", "--ttl"),
        *("--wait", "--no-wait", "--timeout", "--cancel", "--quiet"),
    ],
    "cancel": ["ARTIFACT|REF"],
    "explain": ["ARTIFACT|REF"],
    "push": [
        "DIR",
        "DEST",
        "--dry-run",
        "--sign-key",
        "--token-file",
        "--username",
        "--password-file",
    ],
    "ls": [],
    "status": [],
    "verify": ["ARTIFACT", "--repair"],
    "rm": ["ARTIFACT"],
    "pin": ["ARTIFACT"],
    "unpin": ["ARTIFACT"],
    "gc": [],
    "doctor": [],
}
# What only the agent needs: 100 ms and more of imports, and not installed with the client.
HEAVY = {
    "aiohttp",
    "asyncio",
    "blake3",
    "google",
    "grpc",
    "hpack",
    "logging",
    "prometheus_client",
    "ssl",
    "uvloop",
}


def helped(*args: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main([*args, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_every_verb_is_listed_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    text = helped(capsys=capsys)

    assert set(cli.VERBS) == set(FLAGS)
    for verb, meaning in cli.VERBS.items():
        assert verb in text
        assert meaning in text


@pytest.mark.parametrize("verb", FLAGS)
def test_every_verb_has_help_that_names_its_flags(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = helped(verb, capsys=capsys)

    for flag in FLAGS[verb]:
        assert flag in text
    if verb not in {"agent", "csi"}:
        assert "--json" in text
    if verb not in {"csi", "push"}:
        assert "--socket" in text


@pytest.mark.parametrize("verb", FLAGS)
def test_help_fits_the_terminal(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    assert max(map(len, helped(verb, capsys=capsys).splitlines())) <= 80


def test_the_flags_of_the_issue_are_spelt_as_there() -> None:
    flags = {declared.setting.flag: key for key, declared in SETTINGS.items()}

    for flag in ("--store", "--listen", "--socket", "--advertise", "--peers", "--admin", "--zone"):
        assert flag in flags


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out == f"damselfly {__version__}\n"


@pytest.mark.parametrize(
    ("args", "advice"),
    [
        (["pul"], "did you mean 'pull'?"),
        (["--loud"], "--loud"),
        (["pull"], "REF"),
        (["pull", "file:///x/", "--tp", "x"], "--tp"),
        (["ls", "extra"], "extra"),
        (["verify", "--rep"], "--rep"),
    ],
)
def test_what_was_mistyped_is_said_in_one_line(
    args: list[str], advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(args)

    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert advice in err
    assert len(err.splitlines()) == 1


def test_without_a_verb_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "damselfly [-h]" in capsys.readouterr().err


def test_the_agent_says_what_is_missing_before_it_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAMSELFLY_CONFIG", raising=False)
    monkeypatch.delenv("DAMSELFLY_STORE_PATH", raising=False)

    assert cli.main(["agent", "--listen", "127.0.0.1:0"]) == 3
    assert "store.path is not set: give --store DIR" in capsys.readouterr().err


def isolated(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "args",
    [
        ["--version"],
        ["pull", "--help"],
        ["ls", "--socket", "/nonexistent/s", "--help"],
        ["doctor", "-h"],
    ],
)
def test_a_client_verb_imports_only_what_it_needs(args: list[str]) -> None:
    ended = isolated(
        "import sys\n"
        "from damselfly.cli import main\n"
        f"try: main({args!r})\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )

    loaded = set(ended.stderr.split())
    assert "damselfly.cli" in loaded
    assert not loaded & HEAVY
    assert "damselfly.agent" not in loaded


@pytest.mark.parametrize("verb", ["agent", "csi"])
def test_the_help_of_a_daemon_imports_nothing_that_takes_long(verb: str) -> None:
    ended = isolated(
        "import sys\n"
        "from damselfly.cli import main\n"
        f"try: main([{verb!r}, '--help'])\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )

    assert not set(ended.stderr.split()) & HEAVY


def test_asking_an_agent_imports_no_more_than_the_standard_library_has_in_store() -> None:
    ended = isolated(
        "import sys\n"
        "from damselfly.client.agent import AgentClient\n"
        "from damselfly.errors import AgentUnavailableError\n"
        "try: AgentClient('/nonexistent/s').artifacts()\n"
        "except AgentUnavailableError: print(*sys.modules)"
    )

    loaded = set(ended.stdout.split())
    assert "damselfly.client.exchange" in loaded
    assert not loaded & (HEAVY | {"dataclasses", "email", "http.client", "inspect", "urllib"})


@pytest.mark.parametrize(
    ("args", "who"),
    [
        (["agent", "--listen", "127.0.0.1:0", "--store", "/nonexistent"], "the agent"),
        (["push", "/nonexistent", "/nonexistent2"], "damselfly push"),
    ],
)
def test_without_the_extra_the_client_says_what_to_install(args: list[str], who: str) -> None:
    ended = isolated(
        "import sys\n"
        "for name in ('aiohttp', 'blake3', 'hpack', 'prometheus_client', 'uvloop'):\n"
        "    sys.modules[name] = None\n"
        "from damselfly.cli import main\n"
        f"sys.exit(main({args!r}))"
    )

    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert who in line
    assert "pip install 'damselfly[agent]'" in line
