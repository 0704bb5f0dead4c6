"""The agent's configuration, put together from flags, the environment, a file and defaults.

A setting is `room.field`. It is taken from a flag, else from the environment
(`DAMSELFLY_<ROOM>_<FIELD>`, and `DAMSELFLY_SOCKET` for the socket), else from the TOML file (a
table per room), else from the default. What is unknown is refused by name; nothing is guessed.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from damselfly.agent.advertise import derive_advertise
from damselfly.agent.settings import (
    MIB,
    PREFIX,
    ROOMS,
    SETTINGS,
    AgentSettings,
    LogSettings,
    OriginSettings,
    PeerFile,
    PeerList,
    PeerName,
    PeerService,
    StoreSettings,
    SwarmSettings,
    VolumeSettings,
    WarmSettings,
    ZoneOfNode,
)
from damselfly.client.socket_path import own_socket
from damselfly.errors import ConfigError
from damselfly.log import redact
from damselfly.model.prefix import check_spoken
from damselfly.p2p.address import join_address, split_address

__all__ = [
    "AgentConfig",
    "PeerFile",
    "PeerList",
    "PeerName",
    "PeerService",
    "ZoneOfNode",
    "load_config",
]

CONFIG_VARIABLE = "DAMSELFLY_CONFIG"
FILE_BYTES_MAX = MIB
TABLES = ("signatures",)
"""What the file has besides settings, read by whom it concerns (`signature_rules.py`)."""
BUFFER_BYTES_MIN = 16 * MIB


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Everything, by room. `sources` tells who set what; what is not in it is a default."""

    agent: AgentSettings
    store: StoreSettings
    swarm: SwarmSettings = field(default_factory=SwarmSettings)
    origin: OriginSettings = field(default_factory=OriginSettings)
    warm: WarmSettings = field(default_factory=WarmSettings)
    volumes: VolumeSettings = field(default_factory=VolumeSettings)
    log: LogSettings = field(default_factory=LogSettings)
    file: Path | None = None
    """Where it was read from: some of its tables are read again when it changes."""
    sources: Mapping[str, str] = field(default_factory=dict[str, str])

    def advertised(self, port: int) -> str:
        """The agent's id once it listens on `port`: an advertised port 0 stands for that one."""
        host, said = split_address(self.agent.advertise)
        return join_address(host, said or port)

    def effective(self) -> list[tuple[str, str, str]]:
        """Every setting as (key, value, source), for people. No setting is a secret."""
        rows: list[tuple[str, str, str]] = []
        for key, declared in SETTINGS.items():
            room, name = key.split(".")
            value = getattr(getattr(self, room), name)
            rows.append((key, declared.show(value), self.sources.get(key, "default")))
        return rows


def load_config(
    flags: Mapping[str, str],
    environ: Mapping[str, str],
    file: Path | None = None,
    *,
    uid: int | None = None,
) -> AgentConfig:
    """Put the configuration together.

    `flags` holds the text of flags by setting (`{"store.path": "/models"}`); `file` is what
    `--config` says, and without it $DAMSELFLY_CONFIG counts; `uid` is who runs the agent.

    Raises:
        ConfigError: It names the setting, who set it, and what is wrong with it.
    """
    if file is None and (said := environ.get(CONFIG_VARIABLE)):
        file = Path(said)
    given = _from_file(file) if file is not None else {}
    given |= _from_environ(environ)
    given |= {key: (text, f"flag {SETTINGS[key].setting.flag}") for key, text in flags.items()}

    values: dict[str, dict[str, Any]] = {room: {} for room in ROOMS}
    for key, (raw, source) in given.items():
        room, name = key.split(".")
        try:
            values[room][name] = SETTINGS[key].setting.parse(raw)
        except (ValueError, ConfigError) as exc:
            raise ConfigError(f"{key} ({source}) cannot be {redact(repr(raw))}") from exc
    sources = {key: source for key, (_, source) in given.items()}
    _require(given)
    _derive(values, sources, environ, os.geteuid() if uid is None else uid)

    config = AgentConfig(
        agent=AgentSettings(**values["agent"]),
        store=StoreSettings(**values["store"]),
        swarm=SwarmSettings(**values["swarm"]),
        origin=OriginSettings(**values["origin"]),
        warm=WarmSettings(**values["warm"]),
        volumes=VolumeSettings(**values["volumes"]),
        log=LogSettings(**values["log"]),
        file=file,
        sources=sources,
    )
    _check_together(config)
    return config


# --- who sets what ----------------------------------------------------------------------------


def _from_file(file: Path) -> dict[str, tuple[object, str]]:
    tables = _read_toml(file)
    given: dict[str, tuple[object, str]] = {}
    for room, table in tables.items():
        if room in TABLES:
            continue
        if room not in ROOMS:
            raise ConfigError(f"{file} has an unknown key {room!r}{_nearest(room, ROOMS)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{file}: {room!r} is a table: write [{room}]")
        for name, raw in cast("dict[str, object]", table).items():
            key = f"{room}.{name}"
            if key not in SETTINGS:
                raise ConfigError(f"{file} has an unknown key {key!r}{_nearest(key, SETTINGS)}")
            given[key] = (raw, f"file {file}")
    return given


def _read_toml(file: Path) -> dict[str, object]:
    try:
        with file.open("rb") as stream:
            text = stream.read(FILE_BYTES_MAX + 1)
        if len(text) > FILE_BYTES_MAX:
            raise ConfigError(f"{file} is longer than {FILE_BYTES_MAX} bytes: no configuration is")
        return tomllib.loads(text.decode())
    except OSError as exc:
        raise ConfigError(f"reading the configuration {file}") from exc
    except ValueError as exc:  # not TOML, or not UTF-8
        raise ConfigError(f"parsing the configuration {file}") from exc


# Kubernetes sets variables for every Service of a namespace. One that is called `damselfly` or
# `damselfly-agent` must not keep the agent from starting.
_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT|PORT_[0-9]+_(TCP|UDP|SCTP).*)$")


def _from_environ(environ: Mapping[str, str]) -> dict[str, tuple[object, str]]:
    variables = {declared.variable: key for key, declared in SETTINGS.items()}
    rooms = tuple(f"{PREFIX}{room.upper()}_" for room in ROOMS)
    given: dict[str, tuple[object, str]] = {}
    for variable, text in environ.items():
        if key := variables.get(variable):
            if text:
                given[key] = (text, f"variable {variable}")
        elif variable.startswith(rooms) and not _SERVICE_LINK.search(variable):
            raise ConfigError(
                f"the environment has an unknown variable {variable}{_nearest(variable, variables)}"
            )
    return given


def _nearest(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, known := list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else "; known are " + ", ".join(known)


def _require(given: Mapping[str, object]) -> None:
    for key, declared in SETTINGS.items():
        if declared.is_required and key not in given:
            room, name = key.split(".")
            raise ConfigError(
                f"{key} is not set: give {declared.setting.flag} {declared.setting.metavar},"
                f" ${declared.variable}, or {name} in [{room}] of a --config file"
            )


def _derive(
    values: dict[str, dict[str, Any]], sources: dict[str, str], environ: Mapping[str, str], uid: int
) -> None:
    agent = values["agent"]
    if "socket" not in agent:
        found = own_socket(environ, uid)
        if found is None:
            raise ConfigError(
                "agent.socket is not set, and without $XDG_RUNTIME_DIR there is no private place"
                " for it: give --socket PATH"
            )
        agent["socket"] = SETTINGS["agent.socket"].setting.parse(found)
    if "advertise" not in agent:
        peers = values["swarm"].get("peers", PeerList())
        agent["advertise"], sources["agent.advertise"] = derive_advertise(agent["listen"], peers)


def _check_together(config: AgentConfig) -> None:
    """Refuse what is fine by itself and wrong together."""
    if config.store.low > config.store.high:
        raise ConfigError(
            f"store.low ({config.store.low:g}) is above store.high ({config.store.high:g}):"
            " eviction would end before it begins"
        )
    for key, accept in (("warm", config.warm.accept), ("volumes", config.volumes.accept)):
        for prefix in accept.prefixes:
            try:
                check_spoken(prefix, config.origin.fsspec)
            except ValueError as exc:
                raise ConfigError(f"{key}.accept has the prefix {prefix}") from exc
    parts = ("cert", "key", "ca")
    tls = {f"agent.tls_{part}": getattr(config.agent, f"tls_{part}") for part in parts}
    if any(tls.values()) and (missing := [key for key, value in tls.items() if value is None]):
        raise ConfigError(f"TLS needs all of {', '.join(tls)}: {', '.join(missing)} is not set")
    if config.agent.tls_names and config.agent.tls_cert is None:
        raise ConfigError("agent.tls_names is set and agent.tls_cert is not: there is no TLS")
    if config.agent.admin == config.agent.listen and split_address(config.agent.listen)[1]:
        raise ConfigError(f"agent.admin and agent.listen are both {config.agent.listen}")
    if config.swarm.buffer_bytes < BUFFER_BYTES_MIN:
        raise ConfigError(
            f"swarm.buffer_bytes is {config.swarm.buffer_bytes}, less than {BUFFER_BYTES_MIN}:"
            " not even three of the largest chunks fit"
        )
