"""README's tables are what the code says: settings, metrics, exit codes, verbs."""

import re
import subprocess
import sys
from pathlib import Path

from damselfly.agent.settings import SETTINGS
from damselfly.errors import error_classes
from damselfly.metrics import Metrics

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def settings_table() -> list[str]:
    rows = ["| setting | flag | default | |", "|---|---|---|---|"]
    for key, declared in SETTINGS.items():
        setting = declared.setting
        if declared.is_required:
            default = "required"
        elif setting.is_derived:
            default = "derived"
        else:
            default = declared.show(declared.default) or "none"
        reason = cell(setting.reason)
        rows.append(f"| `{key}` | `{setting.flag} {setting.metavar}` | {default} | {reason} |")
    return rows


def metrics_table() -> list[str]:
    rows = ["| metric | kind | labels |", "|---|---|---|"]
    rows += [f"| `{name}` | {kind} | {cell(labels)} |" for name, kind, labels in Metrics().table]
    return rows


def errors_table() -> list[str]:
    classes = sorted(error_classes().values(), key=lambda cls: (cls.exit_code, cls.__name__))
    rows = ["| exit code | error | means |", "|---|---|---|"]
    for cls in classes:
        meaning = (cls.__doc__ or "").splitlines()[0].rstrip(".").replace("`", "")
        again = "; worth a retry" if cls.retryable else ""
        rows.append(f"| {cls.exit_code} | {cls.__name__} | {meaning}{again} |")
    return rows


def test_every_setting_is_listed_with_its_default_and_reason() -> None:
    assert "\n".join(settings_table()) in README


def test_every_metric_is_listed() -> None:
    assert "\n".join(metrics_table()) in README


def test_every_exit_code_is_listed() -> None:
    assert "\n".join(errors_table()) in README


def test_every_verb_is_listed_and_every_listed_verb_exists() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "damselfly", "--help"], capture_output=True, text=True, check=True
    ).stdout
    verbs = set(re.findall(r"^  (\w+) +\S", told.partition("verbs:")[2], re.MULTILINE))

    listed = set(re.findall(r"`damselfly (\w+)[ `]", README.partition("## Commands")[2]))

    assert listed - {"VERB"} == verbs


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)

    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()

    named = set(re.findall(r"(?:^    |`)make ([a-z][\w-]*)", README, re.MULTILINE))

    assert {target for target in named if f"\n{target}:" not in makefile} == set()
