"""Run the node's CSI driver in the foreground until SIGTERM; volumes that are mounted stay mounted.

It answers the kubelet on --endpoint, asks the node's agent on --agent-socket, and mounts what the
agent opens, always read-only. It needs to be root and to see the kubelet's directory, the agent's
store and the agent's socket under the same paths as they have on the node.

Every flag may also be given in the environment: --node-id as DAMSELFLY_CSI_NODE_ID, and so on;
--endpoint also as CSI_ENDPOINT, --node-id as NODE_NAME, --agent-socket as DAMSELFLY_SOCKET.
"""

import os
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from damselfly.cli.extras import extras_needed
from damselfly.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from damselfly.csi.options import Options

PREFIX = "DAMSELFLY_CSI_"
ALIASES = {
    "endpoint": ("CSI_ENDPOINT",),
    "node_id": ("NODE_NAME", "KUBE_NODE_NAME"),
    "agent_socket": ("DAMSELFLY_SOCKET",),
}
SWITCHES = ("self_register", "health", "allow_file_refs", "prepare_only")
_OWNER = re.compile(r"([0-9]{1,10}):([0-9]{1,10})", re.ASCII)


def configure(parser: ArgumentParser) -> None:
    """Add the flags."""
    add = parser.add_argument
    add("--endpoint", metavar="unix:///PATH", help="where the kubelet calls us (required)")
    add("--agent-socket", metavar="PATH", help="the agent's socket (default: where agents listen)")
    add("--node-id", metavar="NAME", help="the node's name in Kubernetes (required)")
    add("--kubelet-root", metavar="DIR", help="default: /var/lib/kubelet")
    add(
        "--self-register",
        action="store_true",
        default=None,
        help="register with the kubelet, without a node-driver-registrar beside us",
    )
    add("--driver-name", metavar="NAME", help="default: csi.damselfly.dev")
    add(
        "--host-endpoint",
        metavar="PATH",
        help="the path of --endpoint as the kubelet sees it (default: the same)",
    )
    add(
        "--state",
        metavar="DIR",
        help="where the driver remembers its volumes (default: plugins/<driver>/volumes in the"
        " kubelet's root)",
    )
    add(
        "--publish-wait",
        metavar="DURATION",
        help="how long a publish waits before it answers with how far the pull is (default: 100s,"
        " below the kubelet's 120 s)",
    )
    add(
        "--health",
        action="store_true",
        default=None,
        help="offer the health calls of CSI 1.13, which older callers refuse",
    )
    add(
        "--allow-file-refs",
        action="store_true",
        default=None,
        help="let pods name directories of the node (file://) in inline volumes",
    )
    add(
        "--remove-taint",
        metavar="KEY",
        help="take this taint from our node once the kubelet has registered us",
    )
    add("--admin", metavar="HOST:PORT", help="serve /metrics, /healthz and /readyz here")
    add(
        "--store",
        metavar="DIR",
        help="the agent's store: nothing outside of it is ever mounted (default: as the agent"
        " says)",
    )
    add(
        "--prepare-store",
        metavar="UID:GID",
        help="first make --store and give it to the agent's user",
    )
    add(
        "--prepare-only",
        action="store_true",
        default=None,
        help="exit after --prepare-store (for an init container)",
    )
    add("--log-level", metavar="LEVEL", help="debug, info, warning or error (default: info)")
    add("--log-format", metavar="FORMAT", help="json, pretty or auto (default: auto)")


def run(args: Namespace) -> int:
    """Prepare the store if asked to, and run the driver."""
    given = _settled(args, os.environ)
    from damselfly.log import configure as configure_log  # noqa: PLC0415 - not needed for --help

    configure_log(*_log_settings(given))
    if owner := given.get("prepare_store"):
        _prepare(given.get("store"), owner)
    if given.get("prepare_only"):
        if not owner:
            raise UsageError("--prepare-only says how --prepare-store ends: give that too")
        return 0
    with extras_needed("the CSI driver", extra="csi"):
        from damselfly.csi import driver  # noqa: PLC0415 - grpc comes with it
    return driver.run(_options(given))


def _settled(args: Namespace, environ: Mapping[str, str]) -> dict[str, str]:
    """Every setting that was given: by its flag, else by its variable. Switches are `1`."""
    found: dict[str, str] = {}
    for name, value in vars(args).items():
        if value is not None:
            found[name] = "1" if value is True else str(value)
            continue
        for variable in (f"{PREFIX}{name.upper()}", *ALIASES.get(name, ())):
            if said := environ.get(variable):
                if name in SWITCHES and said not in {"0", "1", "true", "false"}:
                    raise ConfigError(f"{variable} is {said!r}: write 1 or 0")
                if said not in {"0", "false"} or name not in SWITCHES:
                    found[name] = said
                break
    return found


def _log_settings(given: Mapping[str, str]) -> tuple[str, str]:
    level, fmt = given.get("log_level", "info"), given.get("log_format", "auto")
    if level not in {"debug", "info", "warning", "error"}:
        raise ConfigError(f"--log-level {level!r}: write debug, info, warning or error")
    if fmt not in {"json", "pretty", "auto"}:
        raise ConfigError(f"--log-format {fmt!r}: write json, pretty or auto")
    return level, fmt


def _required(given: Mapping[str, str], name: str) -> str:
    if value := given.get(name):
        return value
    flag = "--" + name.replace("_", "-")
    raise ConfigError(f"{flag} is not set: give it, or {PREFIX}{name.upper()}")


def _prepare(store: str | None, owner: str) -> None:
    if store is None:
        raise UsageError("--prepare-store makes the directory that --store names: give that too")
    if not (match := _OWNER.fullmatch(owner)):
        raise ConfigError(f"--prepare-store {owner!r}: write UID:GID in numbers")
    from damselfly.csi.prepare import prepare_store  # noqa: PLC0415 - rarely needed

    prepare_store(Path(store), int(match[1]), int(match[2]))


def _options(given: Mapping[str, str]) -> "Options":
    from damselfly.agent.quantities import parse_seconds  # noqa: PLC0415
    from damselfly.client.socket_path import find_socket  # noqa: PLC0415
    from damselfly.csi.options import (  # noqa: PLC0415
        DRIVER_NAME,
        Limits,
        Options,
        check_driver_name,
        socket_path,
    )

    def path(name: str) -> Path | None:
        return _absolute(name, given[name]) if name in given else None

    if "remove_taint" in given and "self_register" not in given:
        raise UsageError("--remove-taint waits for our registration: it needs --self-register")
    limits = Limits()
    if said := given.get("publish_wait"):
        try:
            limits = Limits(publish_wait_s=parse_seconds(said))
        except ValueError as exc:
            raise ConfigError(f"--publish-wait {said!r}") from exc
    return Options(
        endpoint=socket_path(_required(given, "endpoint")),
        agent_socket=given.get("agent_socket") or find_socket(os.environ, os.geteuid()),
        node_id=_required(given, "node_id"),
        kubelet_root=path("kubelet_root") or Path("/var/lib/kubelet"),
        driver_name=check_driver_name(given.get("driver_name", DRIVER_NAME)),
        is_self_registering="self_register" in given,
        host_endpoint=path("host_endpoint"),
        state=path("state"),
        store=path("store"),
        allows_file_refs="allow_file_refs" in given,
        shows_health="health" in given,
        taint=given.get("remove_taint"),
        admin=given.get("admin"),
        limits=limits,
    )


def _absolute(name: str, value: str) -> Path:
    path = Path(value)
    if not path.is_absolute():
        raise ConfigError(f"--{name.replace('_', '-')} {value!r} is not an absolute path")
    return path
