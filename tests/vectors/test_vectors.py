"""Is the format still the format? Pinned vectors, our code, and a verifier that is not our code."""

import json
import subprocess
import sys
from pathlib import Path

from damselfly.model.manifest import Manifest
from damselfly.model.plan import Plan
from tests.vectors import generate

HERE = Path(__file__).parent


def _pinned(name: str) -> dict[str, object]:
    return json.loads((HERE / name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _as_json(value: object) -> object:
    return json.loads(json.dumps(value))


def test_files_are_cut_where_they_always_were() -> None:
    assert _as_json(generate.chunker_vectors()) == _pinned("chunker.json")


def test_an_artifact_has_the_name_it_always_had() -> None:
    assert _as_json(generate.manifest_vectors()) == _pinned("manifest.json")


def test_the_pinned_manifest_and_plan_are_read_back_as_written() -> None:
    pinned = _pinned("manifest.json")
    data = str(pinned["manifest"]).encode()

    manifest = Manifest.parse(data)
    plan = Plan.parse(str(pinned["plan"]).encode())

    assert manifest.canonical() == data
    assert str(manifest.digest) == pinned["artifact"]
    assert str(plan.id) == pinned["plan_id"]
    assert plan.lengths == manifest.plan(plan.ref).lengths


def test_a_verifier_that_shares_no_code_agrees() -> None:
    verifier = HERE / "verify.py"

    verified = subprocess.run(
        [sys.executable, "-I", str(verifier)], capture_output=True, text=True, check=False
    )

    assert verified.returncode == 0, verified.stderr
    assert verified.stdout.strip() == "25 cuts and 7 files of a manifest agree"
    assert "damselfly." not in verifier.read_text(encoding="utf-8")


def test_the_verifier_notices_a_vector_that_moved(tmp_path: Path) -> None:
    for name in ("verify.py", "manifest.json"):
        (tmp_path / name).write_bytes((HERE / name).read_bytes())
    cuts = json.loads((HERE / "chunker.json").read_text(encoding="utf-8"))
    cuts["safetensors"][-1]["lengths"][1] += 1
    (tmp_path / "chunker.json").write_text(json.dumps(cuts), encoding="utf-8")

    verified = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "verify.py")], capture_output=True, check=False
    )

    assert verified.returncode == 1
