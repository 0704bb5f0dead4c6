"""What a driver is told when it starts, and the limits that nobody has to tell it."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from damselfly.errors import ConfigError

DRIVER_NAME = "csi.damselfly.dev"
SOCKET_PATH_BYTES_MAX = 107  # sockaddr_un.sun_path, less its closing zero
# As CSI has it. A name is also a folder, a label's prefix and the beginning of a lease's id.
_DRIVER_NAME = re.compile(r"[a-zA-Z](?:[-a-zA-Z0-9_.]{0,61}[a-zA-Z])?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of the driver, each with its reason."""

    publish_wait_s: float = 100.0
    """The kubelet hangs up after 120 s, and says less in the pod's event than we can."""
    agent_patience_s: float = 10.0
    """An agent that is being upgraded is back by then, and a pod does not wait for a backoff."""
    agent_retry_s: float = 0.5
    """Between two looks for an agent that is away."""
    forgotten_s: float = 600.0
    """A volume that was opened and never asked for again; the kubelet comes back within 122 s."""
    sweep_interval_s: float = 60.0
    """Between two looks for what was forgotten, and for leases that nobody holds."""
    openings_max: int = 512
    """Volumes being opened at a time, a thread each. A node has 110 pods, 250 at most."""
    records_max: int = 10_000
    """Volumes that are mounted. Of those that were created here as many are remembered."""
    registration_interval_s: float = 2.0
    """Between two looks whether the registration socket is still there."""

    @property
    def absence_max_s(self) -> float:
        """How long the agent may be away before a publish says so, instead of how far it is."""
        return min(self.agent_patience_s, 0.8 * self.publish_wait_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a driver was asked to run."""

    endpoint: Path
    """The CSI socket."""
    agent_socket: str
    node_id: str
    kubelet_root: Path = Path("/var/lib/kubelet")
    driver_name: str = DRIVER_NAME
    is_self_registering: bool = False
    host_endpoint: Path | None = None
    """The CSI socket as the kubelet sees it; None: where we see it."""
    state: Path | None = None
    """Where records are kept; None: below the kubelet's root, which outlives every container."""
    store: Path | None = None
    """The agent's store. When it is told, nothing outside of it is ever mounted."""
    allows_file_refs: bool = False
    """Pods may name directories of the node in volumes of their own."""
    shows_health: bool = False
    """Announce the health calls of CSI 1.13; older callers do not know the capability."""
    taint: str | None = None
    """The key of the startup taint to take from our node once we are registered."""
    admin: str | None = None
    """HOST:PORT of /metrics, /healthz and /readyz."""
    limits: Limits = field(default_factory=Limits)

    @property
    def state_folder(self) -> Path:
        """Where records are kept."""
        return self.state or self.kubelet_root / "plugins" / self.driver_name / "volumes"

    @property
    def staging_folder(self) -> Path:
        """Where an old kernel seals mounts: beside the records, where nothing is shared."""
        return self.state_folder / "staging"

    @property
    def registration_socket(self) -> Path:
        """Where the kubelet looks for us."""
        return self.kubelet_root / "plugins_registry" / f"{self.driver_name}-reg.sock"


def check_driver_name(name: str) -> str:
    """Give a driver's name back if CSI allows it.

    Raises:
        ConfigError: It does not.
    """
    if not _DRIVER_NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name a driver: at most 63 letters, digits, '-', '_' and '.', the"
            " first and the last a letter"
        )
    return name


def socket_path(endpoint: str) -> Path:
    """The path that a CSI endpoint means: `unix:///run/csi.sock`, `unix:/...`, or a plain path.

    Raises:
        ConfigError: It is no absolute path of a unix socket.
    """
    path = Path(endpoint.removeprefix("unix:").removeprefix("//"))
    if not path.is_absolute():
        raise ConfigError(f"{endpoint!r} is no endpoint: write unix:///PATH/csi.sock")
    return check_socket_path(path)


def check_socket_path(path: Path) -> Path:
    """Give a socket's path back if it is short enough.

    Raises:
        ConfigError: It is not.
    """
    if len(bytes(path)) > SOCKET_PATH_BYTES_MAX:
        raise ConfigError(f"{path} is longer than the path of a socket may be (107 bytes)")
    return path
