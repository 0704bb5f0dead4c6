"""The kubelet's plugin watcher: who puts a socket into `plugins_registry` is asked who it is.

    socket appears ──> GetInfo (1 s) ──> NodeGetInfo on the endpoint it named (120 s)
                   ──> NotifyRegistrationStatus(true) (5 s): calls may come

What goes wrong is told with NotifyRegistrationStatus(false) and tried again like everything else.
A socket that disappears ends the registration at once; one that is made anew at the same path is a
new registration. A second live socket with the same driver name is refused.

The real one hears of files from the kernel; this one looks every few milliseconds.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from damselfly.csi.proto import csi_pb2, registration_pb2
from tests.kubelet.dial import Attempt, call, code_of, details_of
from tests.kubelet.retry import Retry
from tests.kubelet.timing import (
    CALL_DEADLINE_S,
    GET_INFO_DEADLINE_S,
    NOTIFY_DEADLINE_S,
    Timing,
)

logger = logging.getLogger(__name__)

_LOOK_S = 0.005
_SERVICE = "/pluginregistration.Registration"


@dataclass(frozen=True, kw_only=True)
class Driver:
    """A driver that is registered: where it listens, and what it said of this node."""

    name: str
    endpoint: Path
    node_id: str
    topology: Mapping[str, str]


@dataclass
class _Seen:
    """One socket file: which one it was when it was asked."""

    identity: tuple[int, int]
    driver: Driver | None = None
    was_told: bool = False
    retry: Retry = field(default_factory=Retry)


class _RefusedError(Exception):
    """What the kubelet has against a plugin; told to it."""


class Plugins:
    """Watches a folder on a thread of its own; `drivers` is what is registered now."""

    def __init__(self, folder: Path, timing: Timing) -> None:
        self._folder = folder
        self._timing = timing
        self._seen: dict[Path, _Seen] = {}
        self._changed = threading.Condition()
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="plugins", daemon=True)
        self.refusals: list[str] = []
        """What was told to plugins that were not registered."""
        self.registrations = 0
        """How many times a plugin was registered."""
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End it; plugins hear nothing of that, as from a kubelet that ends."""
        self._is_ending.set()
        self._thread.join()

    def find(self, name: str) -> Driver | None:
        """The driver of that name, if it is registered now."""
        with self._changed:
            return next(
                (
                    seen.driver
                    for seen in self._seen.values()
                    if seen.driver is not None and seen.driver.name == name
                ),
                None,
            )

    def wait_for(self, name: str, *, registered: bool = True, patience_s: float = 20.0) -> None:
        """Wait until a driver is registered and was told so, or is not registered any more."""

        def is_so() -> bool:
            ours = [
                seen for seen in self._seen.values() if seen.driver and seen.driver.name == name
            ]
            return any(seen.was_told for seen in ours) if registered else not ours

        with self._changed:
            found = self._changed.wait_for(is_so, patience_s)
        assert found, f"{name} is {'not' if registered else 'still'} registered; {self.refusals}"

    def _watch(self) -> None:
        while not self._is_ending.wait(_LOOK_S):
            found = dict(self._sockets())
            self._forget_others_than(found)
            for path, identity in found.items():
                if path not in self._seen:
                    self._seen[path] = _Seen(identity)
                seen = self._seen[path]
                due = seen.retry.may_at("register") <= self._timing.now()
                if seen.driver is None and due:
                    self._register(path, seen)

    def _sockets(self) -> Iterator[tuple[Path, tuple[int, int]]]:
        for path in sorted(self._folder.rglob("*")):
            with contextlib.suppress(OSError):
                if path.is_socket() and not path.name.startswith("."):
                    status = path.stat()
                    yield path, (status.st_ino, status.st_ctime_ns)

    def _forget_others_than(self, found: Mapping[Path, tuple[int, int]]) -> None:
        with self._changed:
            for path, seen in list(self._seen.items()):
                if found.get(path) != seen.identity:
                    del self._seen[path]
                    self._changed.notify_all()

    def _register(self, path: Path, seen: _Seen) -> None:
        try:
            driver = self._ask(path)
        except grpc.RpcError as exc:
            self._refuse(path, seen, f"{code_of(exc).name}: {details_of(exc)}")
            return
        except _RefusedError as exc:
            self._refuse(path, seen, str(exc))
            return
        seen.retry.succeeded()
        with self._changed:
            seen.driver = driver
            self._changed.notify_all()
        self._notify(path, registered=True, error="")
        with self._changed:
            seen.was_told = True
            self.registrations += 1
            self._changed.notify_all()

    def _ask(self, path: Path) -> Driver:
        info = call(
            path,
            f"{_SERVICE}/GetInfo",
            registration_pb2.InfoRequest(),
            registration_pb2.PluginInfo,
            GET_INFO_DEADLINE_S,
        )
        if info.type != "CSIPlugin":
            raise _RefusedError(f"no handler for plugin type {info.type!r}")
        if not Path(info.endpoint).is_absolute():
            raise _RefusedError(f"endpoint {info.endpoint!r} is not an absolute path")
        versions = [tuple(map(int, each.split("."))) for each in info.supported_versions]
        if not versions or max(versions)[0] != 1:
            raise _RefusedError(f"versions {list(info.supported_versions)} have no 1.x at the top")
        other = self.find(info.name)
        if other is not None:
            raise _RefusedError(
                "Another driver with the same name is already registered with a higher supported"
                f" version: {info.name}"
            )
        node = Attempt(Path(info.endpoint), self._timing.ours(CALL_DEADLINE_S)).node(
            "NodeGetInfo", csi_pb2.NodeGetInfoRequest(), csi_pb2.NodeGetInfoResponse
        )
        if not node.node_id:
            raise _RefusedError("NodeGetInfo has no node_id")
        return Driver(
            name=info.name,
            endpoint=Path(info.endpoint),
            node_id=node.node_id,
            topology=dict(node.accessible_topology.segments),
        )

    def _refuse(self, path: Path, seen: _Seen, error: str) -> None:
        self.refusals.append(f"{path.name}: {error}")
        seen.retry.failed("register", self._timing.now())
        self._notify(path, registered=False, error=error)

    def _notify(self, path: Path, *, registered: bool, error: str) -> None:
        try:
            call(
                path,
                f"{_SERVICE}/NotifyRegistrationStatus",
                registration_pb2.RegistrationStatus(plugin_registered=registered, error=error),
                registration_pb2.RegistrationStatusResponse,
                NOTIFY_DEADLINE_S,
            )
        except grpc.RpcError as exc:
            logger.warning("plugin.silent", extra={"socket": str(path), "error": str(exc)})
