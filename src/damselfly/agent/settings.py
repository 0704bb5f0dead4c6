"""What may be set, each with its default, the reason for it, and the flag that sets it."""

import os
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, cast, get_type_hints

from damselfly.agent.accept import EVERYTHING, NOTHING, Accept
from damselfly.agent.quantities import (
    parse_bytes,
    parse_count,
    parse_mode,
    parse_number,
    parse_seconds,
    parse_share,
    show_bytes,
)
from damselfly.client.socket_path import PATH_BYTES_MAX, SOCKET_VARIABLE
from damselfly.origin.clouds import check_scheme
from damselfly.origin.s3_place import check_endpoint, check_region
from damselfly.p2p.address import check_address, split_address
from damselfly.p2p.kubernetes.names import ServiceName, check_node_name

MIB = 1 << 20
GIB = 1 << 30
PREFIX = "DAMSELFLY_"
KUBERNETES = "k8s:"


# --- values -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PeerList:
    """Peers by address, once and for all."""

    addresses: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return ",".join(sorted(self.addresses)) or "none"


@dataclass(frozen=True, slots=True)
class PeerFile:
    """Peers by address, a line each, in a file that is read again when it changes."""

    path: Path

    def __str__(self) -> str:
        return f"file:{self.path}"


@dataclass(frozen=True, slots=True)
class PeerName:
    """Peers by a DNS name that resolves to all of them."""

    name: str
    port: int

    def __str__(self) -> str:
        return f"dns:{self.name}:{self.port}"


@dataclass(frozen=True, slots=True)
class PeerService:
    """Peers by a Service of Kubernetes: whatever its EndpointSlices list."""

    service: ServiceName

    def __str__(self) -> str:
        return f"{KUBERNETES}{self.service}"


Peers = PeerList | PeerFile | PeerName | PeerService


@dataclass(frozen=True, slots=True)
class ZoneOfNode:
    """The zone that Kubernetes says the node is in."""

    node: str

    def __str__(self) -> str:
        return f"{KUBERNETES}{self.node}"


def is_wildcard(address: str) -> bool:
    """Tell whether an address means every interface of its machine."""
    return split_address(address)[0] in {"0.0.0.0", "::", "*"}  # noqa: S104 - compared, not bound


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not text")  # noqa: TRY004 - one class for everything a parser refuses
    return value


def _path(value: object) -> Path:
    text = _text(value)
    if not text or "\0" in text:
        raise ValueError("not a path")
    return Path(os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111 - these never fail


def _address(value: object) -> str:
    return check_address(_text(value))


def _advertised(value: object) -> str:
    address = _address(value)
    if is_wildcard(address):
        raise ValueError("peers cannot connect to a wildcard address: name this machine")
    return address


def _socket_path(value: object) -> Path:
    path = _path(value)
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise ValueError(f"longer than {PATH_BYTES_MAX} bytes, which no unix socket's path may be")
    return path


def _socket_mode(value: object) -> int:
    mode = parse_mode(value)
    if mode & 0o007:
        raise ValueError("everybody on the machine could command the agent: give others nothing")
    return mode


def _peers(value: object) -> Peers:
    if isinstance(value, list):
        return PeerList(frozenset(_address(item) for item in cast("list[object]", value)))
    text = _text(value).strip()
    if text.startswith("file:"):
        return PeerFile(_path(text.removeprefix("file:")))
    if text.startswith("dns:"):
        name, port = split_address(text.removeprefix("dns:"))
        return PeerName(name, port)
    if text.startswith(KUBERNETES):
        return PeerService(ServiceName.parse(text.removeprefix(KUBERNETES)))
    items = [item.strip() for item in text.split(",")]
    return PeerList(frozenset(check_address(item) for item in items if item))


def _zone(value: object) -> str | ZoneOfNode:
    text = _text(value)
    if text.startswith(KUBERNETES):
        return ZoneOfNode(check_node_name(text.removeprefix(KUBERNETES)))
    if not re.fullmatch(r"[A-Za-z0-9._/-]{0,63}", text):
        raise ValueError("not a zone: at most 63 letters, digits and any of . _ / -")
    return text


def _accept(value: object) -> Accept:
    if isinstance(value, list):
        return Accept.of(_text(item) for item in cast("list[object]", value))
    return Accept.of(_text(value).split(","))


def _patterns(value: object) -> tuple[str, ...]:
    items = cast("list[object]", value) if isinstance(value, list) else _text(value).split(",")
    patterns = tuple(_text(item).strip() for item in items)
    if not all(re.fullmatch(r"[!-~]{1,253}", pattern) for pattern in patterns):
        raise ValueError("not a list of names or patterns")
    return patterns


def _endpoint(value: object) -> str:
    return check_endpoint(_text(value))


def _region(value: object) -> str:
    return check_region(_text(value))


def _az_account(value: object) -> str:
    if not re.fullmatch(r"[a-z0-9]{3,24}", text := _text(value)):
        raise ValueError("not an account: 3 to 24 lower-case letters and digits")
    return text


def _fsspec(value: object) -> tuple[str, ...]:
    items = cast("list[object]", value) if isinstance(value, list) else _text(value).split(",")
    return tuple(check_scheme(_text(item).strip().lower()) for item in items if item)


def _one_of(*words: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if (text := _text(value).lower()) not in words:
            raise ValueError("not one of " + ", ".join(words))
        return text

    return parse


# --- settings ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """How a setting is read and shown, why it is as it is, and who may set it."""

    flag: str
    metavar: str
    parse: Callable[[object], object]
    reason: str
    show: Callable[[Any], str] = str
    variable: str = ""
    absent: str = "automatic"
    """What None means."""
    is_derived: bool = False
    """Without a value it follows from other settings; `load_config` knows how."""


@dataclass(frozen=True, kw_only=True)
class AgentSettings:
    """The process itself: where it listens and how it stops."""

    listen: Annotated[
        str,
        Setting(
            "--listen",
            "HOST:PORT",
            _address,
            "where peers connect; no default, because who may reach it is a decision",
        ),
    ]
    advertise: Annotated[
        str,
        Setting(
            "--advertise",
            "HOST:PORT",
            _advertised,
            "the address that peers are told: --listen, or this machine's own on a wildcard",
            is_derived=True,
        ),
    ]
    socket: Annotated[
        Path,
        Setting(
            "--socket",
            "PATH",
            _socket_path,
            "the agent's own API: /run/damselfly/agent.sock for root, else in $XDG_RUNTIME_DIR",
            variable=SOCKET_VARIABLE,
            is_derived=True,
        ),
    ]
    socket_mode: Annotated[
        int,
        Setting(
            "--socket-mode",
            "MODE",
            _socket_mode,
            "who may open the socket may command the agent: its user and group",
            show="{:04o}".format,
        ),
    ] = 0o660
    admin: Annotated[
        str | None,
        Setting(
            "--admin",
            "HOST:PORT",
            _address,
            "/metrics, /healthz and /readyz; off unless asked for",
            absent="off",
        ),
    ] = None
    tls_cert: Annotated[
        Path | None,
        Setting(
            "--tls-cert",
            "FILE",
            _path,
            "this agent's certificate and its chain (PEM): with it peers speak TLS 1.3, with"
            " certificates on both sides, and never plainly",
            absent="none: peers speak plainly",
        ),
    ] = None
    tls_key: Annotated[
        Path | None,
        Setting("--tls-key", "FILE", _path, "the certificate's key (PEM)", absent="none"),
    ] = None
    tls_ca: Annotated[
        Path | None,
        Setting(
            "--tls-ca",
            "FILE",
            _path,
            "the authority that signs the agents' certificates (PEM); whom it signed may be a peer"
            " and read every artifact here, so have one for the agents alone",
            absent="none",
        ),
    ] = None
    tls_names: Annotated[
        tuple[str, ...],
        Setting(
            "--tls-names",
            "PATTERNS",
            _patterns,
            "PATTERN,... (* and ? as in a shell) of the DNS names and URIs that the certificates of"
            " peers have; without it, those of --tls-cert",
            show=",".join,
        ),
    ] = ()
    drain_s: Annotated[
        float,
        Setting(
            "--drain",
            "DURATION",
            parse_seconds,
            "how long a stop waits for chunks being served; below Kubernetes' grace of 30 s",
            show="{:g}s".format,
        ),
    ] = 20.0


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """The node's disk."""

    path: Annotated[
        Path,
        Setting(
            "--store",
            "DIR",
            _path,
            "the store's directory, on the node's fastest disk; one agent each",
        ),
    ]
    capacity_bytes: Annotated[
        int | None,
        Setting(
            "--store-capacity",
            "SIZE",
            parse_bytes,
            "our own bytes at most; without it, what the file system gives",
            show=show_bytes,
        ),
    ] = None
    keep_free_bytes: Annotated[
        int,
        Setting(
            "--store-keep-free",
            "SIZE",
            parse_bytes,
            "never leave the file system with less: other programs need some",
            show=show_bytes,
        ),
    ] = 1 * GIB
    high: Annotated[
        float,
        Setting(
            "--store-high",
            "SHARE",
            parse_share,
            "eviction begins above this share of the capacity",
        ),
    ] = 0.95
    low: Annotated[
        float,
        Setting(
            "--store-low",
            "SHARE",
            parse_share,
            "eviction ends at this share: not every pull pays for one",
        ),
    ] = 0.85


@dataclass(frozen=True, kw_only=True)
class SwarmSettings:
    """The other agents, and what is exchanged with them."""

    peers: Annotated[
        Peers,
        Setting(
            "--peers",
            "PEERS",
            _peers,
            "HOST:PORT,... or file:PATH (re-read when it changes) or dns:NAME:PORT or"
            " k8s:NAMESPACE/SERVICE (watched); this agent may be among them",
        ),
    ] = PeerList()
    zone: Annotated[
        str | ZoneOfNode,
        Setting(
            "--zone",
            "ZONE",
            _zone,
            "peers in the same zone are preferred; agents without one are in one;"
            " k8s:NODE_NAME reads it from the node's label",
        ),
    ] = ""
    fetch_limit: Annotated[
        int | None,
        Setting(
            "--fetch-limit",
            "N",
            parse_count,
            "chunks fetched from peers at a time; without it 8, in swarms above 32 agents 16",
        ),
    ] = None
    serve_limit: Annotated[
        int | None,
        Setting(
            "--serve-limit",
            "N",
            parse_count,
            "chunks served at a time; without it 8, in swarms above 32 agents 16",
        ),
    ] = None
    buffer_bytes: Annotated[
        int,
        Setting(
            "--buffers",
            "SIZE",
            parse_bytes,
            "chunks in memory, on their way to the disk: 24 of the largest",
            show=show_bytes,
        ),
    ] = 120 * MIB


@dataclass(frozen=True, kw_only=True)
class OriginSettings:
    """Where models come from first."""

    connections: Annotated[
        int,
        Setting(
            "--origin-connections",
            "N",
            parse_count,
            "connections to one origin host at a time; hubs slow down who opens more",
        ),
    ] = 16
    insecure: Annotated[
        tuple[str, ...],
        Setting(
            "--origin-insecure",
            "HOSTS",
            _patterns,
            "HOST[:PORT],... of registries (oci://) that are asked in plain HTTP, as those on this"
            " machine's loopback always are; who listens on the way reads and changes all of it",
            show=",".join,
        ),
    ] = ()
    s3_endpoint: Annotated[
        str | None,
        Setting(
            "--s3-endpoint",
            "URL",
            _endpoint,
            "where s3:// buckets are, asked by path; without it AWS_ENDPOINT_URL_S3 or"
            " AWS_ENDPOINT_URL, else Amazon",
            absent="Amazon's",
        ),
    ] = None
    s3_region: Annotated[
        str | None,
        Setting(
            "--s3-region",
            "REGION",
            _region,
            "the region to ask first; without it AWS_REGION or AWS_DEFAULT_REGION, else us-east-1;"
            " a bucket elsewhere says where it is",
        ),
    ] = None
    gs_endpoint: Annotated[
        str | None,
        Setting(
            "--gs-endpoint",
            "URL",
            _endpoint,
            "where gs:// is; without it, $STORAGE_EMULATOR_HOST or Google",
        ),
    ] = None
    az_account: Annotated[
        str | None,
        Setting(
            "--az-account",
            "NAME",
            _az_account,
            "the account whose containers az:// means; without it, what $AZURE_STORAGE_ACCOUNT or"
            " $AZURE_STORAGE_CONNECTION_STRING says",
        ),
    ] = None
    az_endpoint: Annotated[
        str | None,
        Setting(
            "--az-endpoint",
            "URL",
            _endpoint,
            "where that account's blobs are; without it, what the environment or Azure says",
        ),
    ] = None
    fsspec: Annotated[
        tuple[str, ...],
        Setting(
            "--origin-fsspec",
            "SCHEMES",
            _fsspec,
            "SCHEME,... of other filesystems to read through fsspec, as in sftp,smb: only for who"
            " commands the agent, with its own credentials, and outside of every budget",
            show=",".join,
        ),
    ] = ()
    fresh_s: Annotated[
        float,
        Setting(
            "--origin-fresh",
            "DURATION",
            parse_seconds,
            "how long what a ref was found to be is believed, by all agents: a branch, a tag or a"
            " directory may be another tomorrow, a commit or a digest is asked for once",
            show="{:g}s".format,
        ),
    ] = 60.0
    credentials: Annotated[
        Path | None,
        Setting(
            "--credentials",
            "FILE",
            _path,
            "a TOML file of what the agent shows to origins when it asks for itself, by prefix of"
            " the ref; read again when it changes, and never for pods",
            absent="none",
        ),
    ] = None
    policy: Annotated[
        str,
        Setting(
            "--origin",
            "POLICY",
            _one_of("auto", "never", "always"),
            "auto: the origin is asked for what no other agent has; never; or always, for"
            " everything and without waiting for the swarm. A pull may say otherwise",
        ),
    ] = "auto"
    requests_max: Annotated[
        int,
        Setting(
            "--origin-requests",
            "N",
            parse_number,
            "requests a second to one origin host, all agents together; 0 is as many as there are",
        ),
    ] = 0
    bytes_max: Annotated[
        int,
        Setting(
            "--origin-bytes",
            "SIZE",
            parse_bytes,
            "bytes a second from one origin host, all agents together; 0 is as many as come",
            show=show_bytes,
        ),
    ] = 0


@dataclass(frozen=True, kw_only=True)
class WarmSettings:
    """Making nodes hold an artifact before it is needed: what we take from peers, what we give."""

    accept: Annotated[
        Accept,
        Setting(
            "--warm-accept",
            "PREFIXES",
            _accept,
            "none, all, or PREFIX,... of the refs that peers may order this node to pull"
            " (`damselfly warm`); nobody may make it read origins unless you say so",
        ),
    ] = NOTHING
    patience_s: Annotated[
        float,
        Setting(
            "--warm-patience",
            "DURATION",
            parse_seconds,
            "how long a warm-up goes on asking a node that does not answer; a restart takes less",
            show="{:g}s".format,
        ),
    ] = 60.0


@dataclass(frozen=True, kw_only=True)
class VolumeSettings:
    """What pods may mount."""

    accept: Annotated[
        Accept,
        Setting(
            "--volume-accept",
            "PREFIXES",
            _accept,
            "none, all, or PREFIX,... of the refs that volumes may name; whoever makes pods makes"
            " the agent read them, so narrow it where they are not trusted",
        ),
    ] = EVERYTHING
    proof_ttl_s: Annotated[
        float,
        Setting(
            "--proof-ttl",
            "DURATION",
            parse_seconds,
            "how long who has proved to an origin that they may read is believed; an origin that"
            " is down for longer keeps its models from new pods",
            show="{:g}s".format,
        ),
    ] = 3600.0


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """What is told on stderr."""

    level: Annotated[
        str,
        Setting(
            "--log-level",
            "LEVEL",
            _one_of("debug", "info", "warning", "error"),
            "debug, info, warning or error; debug tells of every chunk",
        ),
    ] = "info"
    format: Annotated[
        str,
        Setting(
            "--log-format",
            "FORMAT",
            _one_of("auto", "json", "pretty"),
            "json, pretty or auto, which is pretty on a terminal and JSON lines elsewhere",
        ),
    ] = "auto"


@dataclass(frozen=True, slots=True)
class Declared:
    """A setting with what its field adds: its default, and how the world names it."""

    key: str
    setting: Setting
    default: object

    @property
    def is_required(self) -> bool:
        """Somebody must say: there is no default and nothing to derive it from."""
        return self.default is MISSING and not self.setting.is_derived

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return self.setting.variable or PREFIX + self.key.replace(".", "_").upper()

    def show(self, value: object) -> str:
        """A value for people."""
        return self.setting.absent if value is None else self.setting.show(value)


ROOMS: dict[str, type[Any]] = {
    "agent": AgentSettings,
    "store": StoreSettings,
    "swarm": SwarmSettings,
    "origin": OriginSettings,
    "warm": WarmSettings,
    "volumes": VolumeSettings,
    "log": LogSettings,
}


def _declared() -> dict[str, Declared]:
    found: dict[str, Declared] = {}
    for room, settings in ROOMS.items():
        hints = get_type_hints(settings, include_extras=True)
        for field in fields(settings):
            key = f"{room}.{field.name}"
            found[key] = Declared(key, hints[field.name].__metadata__[0], field.default)
    return found


SETTINGS = _declared()
