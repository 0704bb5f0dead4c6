"""The code base, held to its own rules: links, words, tables, and what documentation quotes."""

import inspect
import re
import shlex
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from damselfly import cli
from damselfly.agent.settings import SETTINGS
from damselfly.errors import error_classes
from damselfly.metrics import DriverMetrics, Metrics

ROOT = Path(__file__).parents[2]
ROOMS = ("p2p", "cache", "csi")
CODE = ("src", "bench", "deploy", *ROOMS)  # the links in src are not followed
README = (ROOT / "README.md").read_text()

# STYLE's right-hand columns, as far as they mean nothing else here, and what is used instead.
FORBIDDEN = {
    r"infohash": "digest",
    r"metainfo": "manifest",
    r"torrents?": "artifact (BitTorrent is another program)",
    r"pre-?heat\w*": "warm",
    r"bann(?:ed|ing)|bans?": "quarantined",
    r"(?:black|white)list\w*": "say what it is",
    r"upload\w*": "serve",
    r"download(?:ed|er|ers|ing|s)": "fetch, or pull",
    r"seeders?|leech\w*": "holder",
    r"pieces?": "chunk, or part",
    r"max_retries": "units and qualifiers come last",
    r"TODO|FIXME|XXX": "do it, or write it into DESIGN.md",
}
# What an API of others is called, where it is quoted.
THEIR_WORDS = re.compile(
    r"""['"](?:NoSuchUpload|UploadId|uploadId|uploads|InitiateMultipartUploadResult"""
    r"""|CompleteMultipartUpload|uploadType|/upload)['"]"""
)
UNWANTED_MODULES = {"utils.py", "helpers.py", "common.py", "base.py", "types.py", "misc.py"}


def kept_files(*patterns: str) -> list[Path]:
    """The files that git keeps or would: not what builds and tests leave."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:  # an archive without .git
        found = (path for pattern in patterns for path in ROOT.rglob(pattern))
        return sorted(path for path in found if ".venv" not in path.parts)
    names = listed.stdout.decode().split("\0")
    paths = (ROOT / name for name in names if name)
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def code_files() -> list[Path]:
    return [
        path
        for path in kept_files("*.py", "*.sql")
        if path.relative_to(ROOT).parts[0] in CODE
        and "__pycache__" not in path.parts
        and not path.stem.endswith("_pb2")  # generated
    ]


def words_of(text: str) -> Iterator[tuple[int, str]]:
    """Every word with its line; `snake_case` and `CamelCase` are several, and each whole too."""
    for number, line in enumerate(text.splitlines(), start=1):
        for name in re.findall(r"[A-Za-z_]+", line):
            yield number, name
            for part in name.split("_"):
                yield number, part
                for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", part):
                    yield number, word


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_a_real_folder_with_a_link_in_the_package(room: str) -> None:
    link = ROOT / "src" / "damselfly" / room

    assert stat.S_ISDIR((ROOT / room).lstat().st_mode)
    assert link.is_symlink(), (
        f"src/damselfly/{room} is a link to ../../{room}; with git on a file system without links,"
        " or with core.symlinks=false, the rooms cannot be imported"
    )
    assert str(link.readlink()) == f"../../{room}"


def test_links_in_documents_lead_somewhere() -> None:
    documents = kept_files("*.md")
    assert documents
    broken: list[str] = []
    for document in documents:
        text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\[[^\]\n]*\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            place = document.parent / path if path else document
            if not place.exists():
                broken.append(f"{document.relative_to(ROOT)}: {target}")
            elif anchor and anchor not in anchors(place.read_text()):
                broken.append(f"{document.relative_to(ROOT)}: {target} (no such heading)")

    assert broken == []


def anchors(text: str) -> set[str]:
    """The anchors that headings get."""
    heads = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_words_are_those_of_the_glossary() -> None:
    forbidden = re.compile("|".join(f"({word})" for word in FORBIDDEN), re.IGNORECASE)
    advice = list(FORBIDDEN.values())
    found: set[str] = set()
    for path in code_files():
        for number, word in words_of(THEIR_WORDS.sub("", path.read_text())):
            if match := forbidden.fullmatch(word):
                assert match.lastindex is not None
                place = f"{path.relative_to(ROOT)}:{number}"
                found.add(f"{place}: {word} -> {advice[match.lastindex - 1]}")

    assert sorted(found) == []


def test_modules_have_names_of_their_own() -> None:
    assert [path for path in kept_files("*.py") if path.name in UNWANTED_MODULES] == []


def test_every_module_of_the_package_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in code_files()
        if path.suffix == ".py" and not re.match(r'(#!.*\n)?r?"""\S', path.read_text())
    ]

    assert silent == []


def rows_of(heading: str) -> list[tuple[str, ...]]:
    """The rows of README's table that begins with this heading cell."""
    lines = README.splitlines()
    start = next(
        (number for number, line in enumerate(lines) if line.startswith(f"| {heading} |")), None
    )
    assert start is not None, f"README has no table of {heading}"
    rows: list[tuple[str, ...]] = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        rows.append(tuple(cell.strip().replace("\\|", "|").strip("`") for cell in cells))
    return rows


def test_readme_has_the_metrics_that_there_are() -> None:
    assert rows_of("metric") == Metrics().table + DriverMetrics().table


def test_readme_has_the_settings_that_there_are() -> None:
    expected: list[tuple[str, ...]] = []
    for key, declared in SETTINGS.items():
        setting = declared.setting
        default = "derived" if setting.is_derived else "required"
        if not declared.is_required and not setting.is_derived:
            default = declared.show(declared.default) or "none"
        expected.append((key, f"{setting.flag} {setting.metavar}", default, setting.reason))

    assert rows_of("setting") == expected


def test_readme_has_the_exit_codes_that_there_are() -> None:
    classes = sorted(error_classes().values(), key=lambda cls: cls.exit_code)
    rows = rows_of("exit code")

    assert [(code, name) for code, name, _ in rows] == [
        (str(cls.exit_code), cls.__name__) for cls in classes
    ]
    for cls, (_, _, meaning) in zip(classes, rows, strict=True):
        first = (inspect.getdoc(cls) or "").splitlines()[0].rstrip(".").replace("`", "")
        assert meaning.startswith(first), cls


def quoted_commands() -> list[list[str]]:
    """Every `damselfly ...` of README: in code blocks, and in the table of commands."""
    joined = README.replace("\\\n", " ")
    found = re.findall(r"^ {4}damselfly (.*)$", joined, re.MULTILINE)
    found += re.findall(r"`damselfly ([^`]*)`", joined)
    return [shlex.split(line.split(" #")[0].rstrip("& ").replace("\\|", "|")) for line in found]


def test_readme_quotes_commands_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    commands = quoted_commands()
    verbs = {words[0] for words in commands}
    assert verbs >= set(cli.VERBS)
    for words in commands:
        if words[0] == "VERB":
            continue
        assert words[0] in cli.VERBS, words
        with pytest.raises(SystemExit):
            cli.main([words[0], "--help"])
        text = capsys.readouterr().out
        for flag in re.findall(r"--[a-z-]+", " ".join(words)):
            assert re.search(rf"{flag}\b", text), (words[0], flag)
