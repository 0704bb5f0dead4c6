"""Proves the image without an engine: builds it in a chroot, and runs the pod's containers there.

Each container of deploy/kubernetes/daemonset.yaml is run with its own arguments, user, capabilities
and read-only root file system, on directories that stand for the host's. It needs root, Debian's
mirror and a package index, and takes two or three minutes. $EXTRAS is the build's argument.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from damselfly import __version__
from damselfly.errors import SignatureError
from deploy.contained import Confinement
from deploy.dockerfile import parse
from deploy.image import ROOT, Image, build, make_base

MANIFEST = ROOT / "deploy" / "kubernetes" / "daemonset.yaml"
START_S = 60.0
STOP_S = 30.0
IMAGE_BYTES_MAX = 300 << 20
"""More than this on top of the base is a mistake: tests, caches, compilers."""

# What each extra brings, as our code imports it.
IMPORTS = {
    "agent": "aiohttp, blake3, hpack, prometheus_client, uvloop",
    "az": "azure.core.exceptions, azure.identity",
    "csi": "grpc, google.protobuf",
    "fsspec": "fsspec",
    "gs": "google.auth.exceptions, google.auth.transport.requests",
    "hf": "huggingface_hub",
    "kubernetes": "kubernetes_asyncio",
    "s3": "botocore.session",
    "sign": "model_signing, OpenSSL",
}

# Without a cluster there is neither an API to ask for peers nor a node to ask for its zone.
ALONE = {"--peers": "127.0.0.1:7460", "--zone": "here"}

# What agent.configMap holds, where the chart mounts it.
CONFIG_FOLDER = "/etc/damselfly/config"
RULES = """
[[signatures]]
prefix = "file:///models/"
require = "required"
key = "owner.pub"
"""
MAKE_KEYS = f"""
from pathlib import Path
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec
key = ec.generate_private_key(ec.SECP256R1())
pem, plain = form.Encoding.PEM, form.NoEncryption()
Path("/models/owner.pem").write_bytes(key.private_bytes(pem, form.PrivateFormat.PKCS8, plain))
public = key.public_key().public_bytes(pem, form.PublicFormat.SubjectPublicKeyInfo)
Path("{CONFIG_FOLDER}/owner.pub").write_bytes(public)
"""

# Asked of whoever is process 1: the port, and the path that says that it is up.
ASK = """
import json, sys, urllib.request
def get(path):
    with urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}{path}", timeout=5) as answer:
        return answer.read().decode()
get(sys.argv[2])
status = dict(line.split(":", 1) for line in open("/proc/1/status") if ":" in line)
try:
    open("/etc/written", "w")
    written = "yes"
except OSError as error:
    written = type(error).__name__ + " " + str(error.errno)
print(json.dumps({"metrics": len(get("/metrics")), "written": written, "uid": status["Uid"].split(),
    "capabilities": status["CapEff"].strip(), "new": status["NoNewPrivs"].strip()}))
"""


def main() -> int:
    """Build, run, ask."""
    if os.geteuid() != 0:
        print("image-check needs root: it makes file systems and namespaces", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="damselfly-image-") as folder:
        work = Path(folder)
        print("making the base", flush=True)
        make_base(work / "base")
        print("building", flush=True)
        image = build(work / "base", work)
        _check_what_is_in_it(image)
        host = {name: work / name for name in ("store", "socket", "plugin", "pods", "registration")}
        for path in host.values():
            path.mkdir(mode=0o755)
        containers = _containers()
        for name in ("prepare", "prepare-socket") * 2:  # the second time as after a restart
            _confine(image, containers[name], host).run(_command(image, containers[name]))
            print(f"{name}: done", flush=True)
        _check_the_agent(image, containers["agent"], host)
        if "sign" in _installed():
            _check_signatures(image, containers["agent"], host, work)
        _check_the_driver(image, containers["csi"], host)
    print("the image is as it should be")
    return 0


def extras() -> list[str]:
    """What the Dockerfile installs unless it is told otherwise."""
    first, *_ = parse((ROOT / "deploy" / "Dockerfile").read_text())
    return first.arguments()["EXTRAS"].split(",")


def _installed() -> list[str]:
    said = os.environ.get("EXTRAS")
    return said.split(",") if said else extras()


def _containers() -> dict[str, dict[str, Any]]:
    pod = yaml.safe_load(MANIFEST.read_text())["spec"]["template"]["spec"]
    return {one["name"]: one for one in [*pod["initContainers"], *pod["containers"]]}


def _check_what_is_in_it(image: Image) -> None:
    confinement = Confinement(root=image.root, user=image.user, environ=image.environ)
    said = confinement.run([*image.entrypoint, "--version"]).strip()
    assert said == f"damselfly {__version__}", said
    assert image.user == "65532:65532", image.user
    for verb in ("agent", "csi", "warm", "pull"):
        confinement.run([*image.entrypoint, verb, "--help"])
    # What the extras bring is there, and what only a build needs is not.
    sealed = Confinement(
        root=image.root, user=image.user, environ=image.environ, is_read_only=True, capabilities=()
    )
    for extra in _installed():
        sealed.run(["python", "-c", f"import {IMPORTS[extra]}"])
    confinement.run(["python", "-c", "import damselfly.p2p.planner, damselfly.cache.store"])
    listed = confinement.run(["ls", "/opt/damselfly/lib/python3.11/site-packages"])
    assert "pip" not in listed.split(), listed
    size = sum(path.lstat().st_size for path in (image.root / "opt/damselfly").rglob("*"))
    assert size <= IMAGE_BYTES_MAX, size
    print(f"{said}, {size / (1 << 20):.0f} MiB on top of the base", flush=True)


def _confine(image: Image, container: Mapping[str, Any], host: Mapping[str, Path]) -> Confinement:
    """A container's confinement, as its securityContext has it."""
    context = container["securityContext"]
    capabilities = None
    if not context.get("privileged"):
        assert context["capabilities"]["drop"] == ["ALL"]
        assert context["allowPrivilegeEscalation"] is False
        capabilities = context["capabilities"].get("add", ())
    binds: dict[str, tuple[Path, str]] = {}
    for mount in container["volumeMounts"]:
        if mount["name"] in host:
            target = image.root / mount["mountPath"].lstrip("/")
            target.mkdir(parents=True, exist_ok=True)  # as a container runtime does
            mode = "ro" if mount.get("readOnly") else "rw"
            binds[mount["mountPath"]] = (host[mount["name"]], mode)
    return Confinement(
        root=image.root,
        user=f"{context['runAsUser']}:{context['runAsGroup']}",
        environ=image.environ,
        is_read_only=context["readOnlyRootFilesystem"],
        capabilities=capabilities,
        binds=binds,
    )


def _command(image: Image, container: Mapping[str, Any]) -> list[str]:
    arguments: list[str] = list(container.get("args", []))
    for flag, value in ALONE.items():
        if flag in arguments:
            arguments[arguments.index(flag) + 1] = value
    variables = {"$(POD_IP)": "127.0.0.1", "$(NODE_NAME)": "node-1"}
    for name, value in variables.items():
        arguments = [argument.replace(name, value) for argument in arguments]
    return [*container.get("command", image.entrypoint), *arguments]


@contextmanager
def _running(command: list[str]) -> Generator[tuple[subprocess.Popen[bytes], int]]:
    """A contained process, and the process that is 1 in its namespace, until the block is left."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        first = _child(process.pid)
        try:
            yield process, first
        finally:
            # Not left to --kill-child: changing the user takes back the kernel's promise of it.
            os.kill(first, signal.SIGTERM)
            assert process.wait(STOP_S) == 0, "it does not stop as it should"
    finally:
        process.kill()
        process.wait()


def _check_the_agent(image: Image, container: Mapping[str, Any], host: Mapping[str, Path]) -> None:
    confinement = _confine(image, container, host)
    with _running(confinement.command(_command(image, container))) as (process, first):
        answer = json.loads(_ask(process, first, "9464", "/readyz"))
        assert answer["uid"] == ["65532"] * 4, answer
        assert int(answer["capabilities"], 16) == 0, answer
        assert answer["new"] == "1", answer
        assert answer["written"] == "OSError 30", answer  # EROFS
        assert answer["metrics"] > 0, answer
        socket = host["socket"] / "agent.sock"
        assert socket.stat().st_uid == 65532
        print(f"agent: {answer}", flush=True)
        _check_a_client(image, host["socket"])


def _check_a_client(image: Image, folder: Path) -> None:
    """Ask the agent by its socket as the warm Job does, and as a stranger."""

    def status(user: str) -> str:
        seen = {"/run/damselfly": (folder, "ro")}
        client = Confinement(
            root=image.root, user=user, environ=image.environ, is_read_only=True, binds=seen
        )
        return client.run([*image.entrypoint, "status", "--socket", "/run/damselfly/agent.sock"])

    print(status("65532:65532"), end="", flush=True)
    try:
        status("65533:65533")
    except subprocess.CalledProcessError:
        print("strangers: refused", flush=True)
        return
    raise AssertionError("a stranger has commanded the agent")


def _check_signatures(
    image: Image, container: Mapping[str, Any], host: Mapping[str, Path], work: Path
) -> None:
    """An agent with a configuration file takes what its rule's key signed, and nothing else."""
    folders = {CONFIG_FOLDER: work / "config", "/models": work / "models"}
    for target, folder in folders.items():
        folder.mkdir()
        (image.root / target.lstrip("/")).mkdir(parents=True, exist_ok=True)
    (work / "config" / "config.toml").write_text(RULES)
    for name in ("signed", "unsigned"):
        (work / "models" / name).mkdir()
        (work / "models" / name / "weights.bin").write_bytes(name.encode() * 1000)
    publisher = Confinement(
        root=image.root,
        environ=image.environ,
        binds={target: (folder, "rw") for target, folder in folders.items()},
    )
    publisher.run(["python", "-c", MAKE_KEYS])
    signing = ["--sign-key", "/models/owner.pem", "--quiet"]
    publisher.run([*image.entrypoint, "push", "/models/signed", "/models/signed", *signing])

    plain = _confine(image, container, host)
    seen = {target: (folder, "ro") for target, folder in folders.items()}
    agent = replace(
        plain,
        environ={**plain.environ, "DAMSELFLY_CONFIG": f"{CONFIG_FOLDER}/config.toml"},
        binds={**plain.binds, **seen},
    )
    with _running(agent.command(_command(image, container))) as (process, first):
        _ask(process, first, "9464", "/readyz")
        client = replace(plain, binds={"/run/damselfly": (host["socket"], "ro")})
        pull = [*image.entrypoint, "pull", "--socket", "/run/damselfly/agent.sock", "--quiet"]
        client.run([*pull, "file:///models/signed/"])
        refused = subprocess.run(client.command([*pull, "file:///models/unsigned/"]), check=False)
        assert refused.returncode == SignatureError.exit_code, refused
        print("signatures: required, and verified", flush=True)


def _check_the_driver(image: Image, container: Mapping[str, Any], host: Mapping[str, Path]) -> None:
    """It listens for the kubelet, and waits to be registered; there is no kubelet here."""
    confinement = _confine(image, container, host)
    with _running(confinement.command(_command(image, container))) as (process, first):
        answer = json.loads(_ask(process, first, "9465", "/healthz"))
        assert answer["written"] == "OSError 30", answer  # EROFS, root or not
        assert answer["metrics"] > 0, answer
        sockets = [
            host["plugin"] / "csi.sock",
            host["registration"] / "csi.damselfly.dev-reg.sock",
        ]
        assert all(stat.S_ISSOCK(path.stat().st_mode) for path in sockets)
        print(f"csi: {answer}", flush=True)


def _ask(process: subprocess.Popen[bytes], first: int, port: str, path: str) -> str:
    """Ask from within a container's namespaces, until it answers."""
    deadline = time.monotonic() + START_S
    enter = ["nsenter", f"--target={first}", "--mount", "--net", "--pid", "--root", "--wd"]
    while True:
        asked = subprocess.run(
            [*enter, "/opt/damselfly/bin/python", "-c", ASK, port, path],
            capture_output=True,
            text=True,
            check=False,
            timeout=START_S,
        )
        if asked.returncode == 0:
            return asked.stdout
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"it does not get ready: {asked.stderr}")
        time.sleep(0.2)


def _child(pid: int) -> int:
    deadline = time.monotonic() + START_S
    path = Path(f"/proc/{pid}/task/{pid}/children")
    while not (children := path.read_text().split()):
        assert time.monotonic() < deadline, "the namespace does not start"
        time.sleep(0.05)
    return int(children[0])


if __name__ == "__main__":
    raise SystemExit(main())
