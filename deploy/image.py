"""Builds the image without an engine: the Dockerfile's steps, run one by one in a chroot.

The base is not the Python image, which no package registry has, but what that is made of: Debian 12
by debootstrap, with Debian's own Python 3.11 under the names that the Python image uses.
"""

import os
import posixpath
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from deploy.contained import Confinement
from deploy.dockerfile import Stage, Step, UnknownStepError, context_files, environment, parse

ROOT = Path(__file__).parents[1]
BASE = "python:3.11-slim-bookworm"
PACKAGES = "ca-certificates,python3,python3-venv"
MIRROR = "http://deb.debian.org/debian"
# What the host's pip is told about its network, pip in a build may know too; and a build argument.
PASSED_ON = ("EXTRAS", "PIP_INDEX_URL", "PIP_CERT", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@dataclass
class Image:
    """A root file system, and how its processes start."""

    root: Path
    environ: dict[str, str] = field(
        default_factory=lambda: {
            "PATH": "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        }
    )
    arguments: dict[str, str] = field(default_factory=dict[str, str])
    """Of the build: its steps know them, what runs later does not."""
    user: str = "0:0"
    folder: str = "/"
    entrypoint: list[str] = field(default_factory=list[str])


def make_base(folder: Path) -> None:
    """Make the base's root file system.

    Raises:
        subprocess.CalledProcessError: debootstrap failed, or there is none.
    """
    if shutil.which("debootstrap") is None:
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "debootstrap"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", folder, MIRROR],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    for name in ("python", "python3", "python3.11"):
        (folder / "usr/local/bin" / name).symlink_to("/usr/bin/python3.11")


def build(base: Path, work: Path) -> Image:
    """Run the Dockerfile's steps; returns its last stage.

    Raises:
        UnknownStepError: It says something that is not understood here.
        subprocess.CalledProcessError: A step failed.
    """
    built: dict[str, Image] = {}
    image: Image | None = None
    for number, stage in enumerate(parse((ROOT / "deploy" / "Dockerfile").read_text())):
        image = _build_stage(stage, base, work / f"stage-{number}", built)
        built[stage.name or str(number)] = image
    assert image is not None
    return image


def _build_stage(stage: Stage, base: Path, root: Path, built: dict[str, Image]) -> Image:
    if stage.base != BASE:
        raise UnknownStepError(f"FROM {stage.base}: what stands for it here is {BASE}")
    subprocess.run(["cp", "--archive", "--reflink=auto", base, root], check=True)
    image = Image(root, arguments=stage.arguments())
    for step in stage.steps:
        print(f"  {step.keyword} {step.value[:90]}", flush=True)
        _take(step, image, built)
    return image


def _take(step: Step, image: Image, built: dict[str, Image]) -> None:
    match step.keyword:
        case "ARG" | "LABEL" | "CMD":
            pass  # ARG: known before; CMD: every container of ours says its own.
        case "ENV":
            image.environ |= environment(step.value, image.environ)
        case "USER":
            image.user = step.value
        case "WORKDIR":
            image.folder = posixpath.join(image.folder, step.value)
            _inside(image, image.folder).mkdir(parents=True, exist_ok=True)
        case "ENTRYPOINT":
            image.entrypoint = [word.strip('"') for word in step.value.strip("[]").split(", ")]
        case "COPY":
            _copy(step.value, image, built)
        case "RUN":
            _run(step.value, image)
        case _:
            raise UnknownStepError(step.keyword)


def _inside(image: Image, path: str) -> Path:
    return image.root / posixpath.normpath(posixpath.join(image.folder, path)).lstrip("/")


def _run(command: str, image: Image) -> None:
    passed = {name: value for name in PASSED_ON if (value := os.environ.get(name))}
    confinement = Confinement(
        root=image.root,
        environ={**image.environ, **image.arguments, **passed, "HOME": "/root"},
        has_network=True,
        capabilities=None,
    )
    shell = f"cd {shlex.quote(image.folder)} && {command}"
    print(confinement.run(["/bin/sh", "-c", shell]), end="", flush=True)


def _copy(value: str, image: Image, built: dict[str, Image]) -> None:
    *sources, target = value.split()
    place = _inside(image, target)
    if sources[0].startswith("--from="):
        _, source = sources
        tree = built[sources[0].removeprefix("--from=")].root / source.lstrip("/")
        subprocess.run(["cp", "--archive", tree, place], check=True)
        return
    files = context_files(ROOT, (ROOT / ".dockerignore").read_text())
    for source in sources:
        if source.startswith("--"):
            raise UnknownStepError(f"COPY {source}")
        found = [path for path in files if path.is_relative_to(source)]
        if not found:
            raise UnknownStepError(f"COPY {source}: the context has no such file")
        for path in found:
            into = place if target.endswith("/") else place.joinpath()
            copied = into / (path if target.endswith("/") else path.relative_to(source))
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, copied, follow_symlinks=False)
