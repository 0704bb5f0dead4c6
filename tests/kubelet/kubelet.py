"""A kubelet of the tests: it registers drivers, mounts pods' volumes, and tries again for ever.

What it does is what kubelet 1.36 was measured to do; the decisions are in `mounting`, `retry` and
`codes`, which are pure, the calls in `worker` and `plugins`. Restarting it forgets everything that
is not on the disk or in the API (the pods that it was given).
"""

import json
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from damselfly.csi.proto import csi_pb2
from tests.kubelet.dial import Attempt, code_of, details_of
from tests.kubelet.mounting import State
from tests.kubelet.plugins import Plugins
from tests.kubelet.pod import VOLUMES, Claimed, Inline, Pod, PodVolume
from tests.kubelet.timing import CALL_DEADLINE_S, Timing
from tests.kubelet.worker import Event, Node, Worker

PATIENCE_S = 30.0
_GET_VOLUME_STATS = 2


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What NodeGetVolumeStats said in bytes."""

    total: int
    used: int
    available: int


class Kubelet:
    """See the module. A context: it has stopped, and its threads have ended, when that is left.

    Leaving it deletes no pods: what is mounted stays, as on a node. `restart` and `stop` may not be
    called by two threads at once; everything else may.
    """

    def __init__(
        self,
        root: Path,
        *,
        driver_name: str = "csi.damselfly.dev",
        node_id: str = "node-1",
        timing: Timing | None = None,
    ) -> None:
        self.root = root
        self.driver_name = driver_name
        self.timing = timing or Timing()
        self.events: list[Event] = []
        self._told = threading.Condition()
        self._node_id = node_id
        self._handle_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._pods: dict[str, Pod] = {}
        self._workers: dict[tuple[str, str], Worker] = {}
        (root / "pods").mkdir(parents=True, exist_ok=True)
        (root / "plugins" / driver_name).mkdir(parents=True, exist_ok=True)
        self.plugins = Plugins(root / "plugins_registry", self.timing)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # --- its life ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin: look for plugins, and take up what is on the disk."""
        self.plugins.start()
        on_disk = self._on_disk()
        for pod_uid, volume in on_disk:
            pod = self._pods.get(pod_uid)
            if pod is None:
                pod = Pod(uid=pod_uid, volumes=(volume,))
            worker = self._worker(pod, volume, reconstructed=True)
            if pod_uid not in self._pods:
                worker.unwant()  # Its pod was deleted while no kubelet ran.
            worker.start()
        for pod in self._pods.values():
            for volume in pod.volumes:
                if (pod.uid, volume.name) not in self._workers:
                    self._worker(pod, volume).start()

    def stop(self) -> None:
        """End as a process does: calls are cut off, mounts stay."""
        self.plugins.stop()
        for worker in self._workers.values():
            worker.stop()
        self._workers.clear()

    def restart(self) -> None:
        """End, and begin anew with what the disk and the API say."""
        self.stop()
        self.plugins = Plugins(self.root / "plugins_registry", self.timing)
        self.start()

    # --- pods ----------------------------------------------------------------------------------

    def add_pod(self, pod: Pod) -> None:
        """A pod was scheduled to this node."""
        self._pods[pod.uid] = pod
        for volume in pod.volumes:
            self._worker(pod, volume).start()

    def delete_pod(self, uid: str) -> None:
        """A pod is to go; `wait_until_gone` says when it has."""
        pod = self._pods.pop(uid)
        for volume in pod.volumes:
            self._workers[uid, volume.name].unwant()

    def forget_pod(self, uid: str) -> None:
        """A pod is deleted in the API; a kubelet that does not run hears of it when it starts."""
        del self._pods[uid]

    def pods(self) -> list[Pod]:
        """The pods that are meant for this node."""
        return list(self._pods.values())

    def worker(self, uid: str, volume: str | None = None) -> Worker:
        """What is done about a pod's volume: its only one, if none is named."""
        if volume is not None:
            return self._workers[uid, volume]
        (found,) = (each for (owner, _), each in self._workers.items() if owner == uid)
        return found

    def target(self, uid: str, volume: str | None = None) -> Path:
        """Where a pod has its volume."""
        return self.worker(uid, volume).target

    def wait_until_running(self, uid: str, patience_s: float = PATIENCE_S) -> None:
        """Wait until every volume of the pod is mounted."""
        for (owner, _), worker in list(self._workers.items()):
            if owner == uid:
                worker.wait_for(State.MOUNTED, patience_s)

    def wait_until_gone(self, uid: str, patience_s: float = PATIENCE_S) -> list[str]:
        """Wait until nothing of a deleted pod is left; tell what hindered it meanwhile."""
        hindrances: list[str] = []
        for key, worker in list(self._workers.items()):
            if key[0] == uid:
                worker.wait_for(State.GONE, patience_s)
                hindrances += worker.hindrances
                del self._workers[key]
        return hindrances

    def wait_for_events(
        self, uid: str, count: int = 1, patience_s: float = PATIENCE_S
    ) -> list[Event]:
        """Wait until a pod has that many FailedMount events, and return them all."""
        with self._told:
            found = self._told.wait_for(lambda: len(self.events_of(uid)) >= count, patience_s)
        assert found, f"pod {uid} has only {self.events_of(uid)}"
        return self.events_of(uid)

    def events_of(self, uid: str) -> list[Event]:
        """The FailedMount events of a pod so far."""
        return [event for event in list(self.events) if event.pod_uid == uid]

    # --- statistics ----------------------------------------------------------------------------

    def poll_stats(self) -> dict[tuple[str, str], Usage | str]:
        """Ask for the usage of every mounted volume, as every minute; an error is told in words."""
        found: dict[tuple[str, str], Usage | str] = {}
        for key, worker in list(self._workers.items()):
            if worker.mounting.state is State.MOUNTED:
                found[key] = self._stats_of(worker)
        return found

    def _stats_of(self, worker: Worker) -> Usage | str:
        driver = self.plugins.find(self.driver_name)
        if driver is None:
            return f"driver name {self.driver_name} not found in the list of registered CSI drivers"
        attempt = Attempt(driver.endpoint, self.timing.ours(CALL_DEADLINE_S))
        request = csi_pb2.NodeGetVolumeStatsRequest(
            volume_id=worker.volume_id, volume_path=str(worker.target)
        )
        try:
            if _GET_VOLUME_STATS not in attempt.capabilities():
                return "the driver has no statistics"
            answer = attempt.node("NodeGetVolumeStats", request, csi_pb2.NodeGetVolumeStatsResponse)
        except grpc.RpcError as exc:
            return f"{code_of(exc).name}: {details_of(exc)}"
        for usage in answer.usage:
            if usage.unit == csi_pb2.VolumeUsage.BYTES:
                return Usage(total=usage.total, used=usage.used, available=usage.available)
        return "no usage in bytes"

    # --- parts ---------------------------------------------------------------------------------

    def _worker(self, pod: Pod, volume: PodVolume, *, reconstructed: bool = False) -> Worker:
        node = Node(
            root=self.root,
            driver_name=self.driver_name,
            node_id=self._node_id,
            timing=self.timing,
            find_driver=lambda: self.plugins.find(self.driver_name),
            handle_lock=lambda handle: self._handle_locks[handle],
            tell=self._tell,
        )
        worker = Worker(node, pod, volume, reconstructed=reconstructed)
        self._workers[pod.uid, volume.name] = worker
        return worker

    def _tell(self, event: Event) -> None:
        with self._told:
            self.events.append(event)
            self._told.notify_all()

    def _on_disk(self) -> list[tuple[str, PodVolume]]:
        """The volumes of ours that `vol_data.json` files tell of."""
        found: list[tuple[str, PodVolume]] = []
        for path in sorted(self.root.glob(f"pods/*/{VOLUMES}/*/vol_data.json")):
            pod_uid = path.relative_to(self.root).parts[1]
            data = json.loads(path.read_bytes())
            if data["driverName"] != self.driver_name:
                continue
            name = data["specVolID"]
            pod = self._pods.get(pod_uid)
            known = () if pod is None else pod.volumes
            volume: PodVolume | None = next((each for each in known if each.name == name), None)
            if volume is None and data["volumeLifecycleMode"] == "Ephemeral":
                volume = Inline(name=name, attributes={})
            elif volume is None:
                volume = Claimed(name=name, handle=data["volumeHandle"], attributes={})
            found.append((pod_uid, volume))
        return found
