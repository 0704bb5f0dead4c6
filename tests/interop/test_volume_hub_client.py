"""The hub's own client reads a volume in the hub's layout: offline, and from a read-only mount."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from damselfly.cache.limits import Limits
from damselfly.cache.store import Store
from damselfly.model.hub import HubName
from damselfly.model.ref import Ref
from tests.conformance.store import HandClock, Sample, model, pull

SAMPLE = model()
NAME = HubName.of(Ref.parse("https://hub.example/acme/tiny/resolve/v1/"), SAMPLE.manifest.digest)
CAN_MOUNT = os.geteuid() == 0 and shutil.which("unshare") is not None

LOOK = """
import json, os, sys
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
from huggingface_hub import try_to_load_from_cache
repository, place = sys.argv[1:]
folder = snapshot_download(repository, local_files_only=True)
read = {}
for parent, _, names in os.walk(folder):
    for name in names:
        path = os.path.join(parent, name)
        with open(path, "rb") as file:
            read[os.path.relpath(path, folder)] = file.read().hex()
print(json.dumps({
    "read": read,
    "offline": snapshot_download(repository) == folder,
    "branch": snapshot_download(repository, revision="v1") == folder,
    "commit": snapshot_download(repository, revision=os.path.basename(folder)) == folder,
    "cached": try_to_load_from_cache(repository, "weights/a.safetensors"),
    "one": hf_hub_download(repository, "config.json"),
    "missing": str(try_to_load_from_cache(repository, "none.json")),
    "known": [repo.repo_id for repo in scan_cache_dir().repos],
    "writable": os.access(place, os.W_OK),
}))
"""


@pytest.fixture
def view(tmp_path: Path) -> Iterator[Path]:
    limits = Limits(keep_free_bytes=0, free_again_bytes=0)
    with Store.open(tmp_path / "store", limits, HandClock()) as store:
        yield store.view(pull(store, SAMPLE), hub=NAME)


def environ(place: Path, variable: str, home: Path) -> dict[str, str]:
    """What a pod would set, and nothing that this machine has."""
    kept = {key: text for key, text in os.environ.items() if not key.startswith("HF_")}
    own = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HOME": str(home)}
    return {**kept, **own, variable: str(place)}


def check(done: "subprocess.CompletedProcess[str]", sample: Sample, place: Path) -> None:
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    paths = [file.path for file in sample.plan.files]
    assert found["read"] == {path: sample.content(path).hex() for path in paths}
    assert found["offline"]
    assert found["branch"]
    assert found["commit"]
    assert found["cached"].startswith(str(place))
    assert found["one"].endswith("/config.json")
    assert found["missing"] == "None"
    assert found["known"] == ["acme/tiny"]


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME"])
def test_the_client_finds_everything_below_the_view(
    view: Path, variable: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK, NAME.repository, str(view)],
        env=environ(view, variable, tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )

    check(done, SAMPLE, view)


@pytest.mark.root
@pytest.mark.skipif(not CAN_MOUNT, reason="mounting needs root, and unshare")
@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME"])
def test_a_read_only_mount_at_another_path_is_enough(
    view: Path, variable: str, tmp_path: Path
) -> None:
    place = tmp_path / "mnt"
    place.mkdir()
    # In a mount namespace of its own, which ends with the process: nothing stays mounted.
    mount = 'mount --bind "$1" "$2" && mount -o remount,bind,ro "$2" && shift && exec "${@:2}"'
    look = (sys.executable, "-c", LOOK, NAME.repository, str(place))

    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", mount, "mount", str(view), str(place), *look],
        env=environ(place, variable, tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )

    check(done, SAMPLE, place)
    assert json.loads(done.stdout.splitlines()[-1])["writable"] is False
    assert list(place.iterdir()) == []
