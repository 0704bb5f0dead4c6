"""One volume of one pod: a thread that does what `Mounting` says, by real calls."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import grpc

from damselfly.csi.proto import csi_pb2
from tests.kubelet import folder
from tests.kubelet.dial import Attempt, code_of, details_of
from tests.kubelet.mounting import Mounting, Publish, State, Unpublish, Wait
from tests.kubelet.plugins import Driver
from tests.kubelet.pod import Claimed, Pod, PodVolume, folder_of, publish_fields, volume_data
from tests.kubelet.timing import CALL_DEADLINE_S, Timing

_STAGE_UNSTAGE = 1
_CAPABILITY_QUESTIONS = {"inline": 2, "claimed": 4}


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a user reads in the pod's events: a FailedMount, with the driver's words in it."""

    pod_uid: str
    volume: str
    code: grpc.StatusCode | None
    message: str
    at: float


@dataclass(frozen=True, kw_only=True)
class Node:
    """What all volumes of the node share."""

    root: Path
    driver_name: str
    node_id: str
    timing: Timing
    find_driver: Callable[[], Driver | None]
    handle_lock: Callable[[str], AbstractContextManager[object]]
    tell: Callable[[Event], None]


class Worker:
    """See the module. `mounting` may be looked at by anybody who holds `changed`."""

    def __init__(
        self, node: Node, pod: Pod, volume: PodVolume, *, reconstructed: bool = False
    ) -> None:
        self.pod = pod
        self.volume = volume
        self.mounting = Mounting(reconstructed=reconstructed)
        self.changed = threading.Condition()
        self.hindrances: list[str] = []
        """Why a folder could not be removed."""
        self.publishes: list[float] = []
        """When NodePublishVolume was said, in the kubelet's time."""
        self.connections = 0
        self._node = node
        self._fields = publish_fields(node.root, pod, volume)
        self._folder = folder_of(node.root, pod.uid, volume.name)
        self._attempt: Attempt | None = None
        self._is_ending = False
        self._thread = threading.Thread(target=self._run, name=f"{pod.uid}/{volume.name}")
        self._thread.daemon = True

    @property
    def target(self) -> Path:
        """Where the volume is for the pod."""
        return self._fields.target

    @property
    def volume_id(self) -> str:
        """What the driver calls it."""
        return self._fields.volume_id

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def unwant(self) -> None:
        """The pod is to go."""
        with self.changed:
            self.mounting.is_wanted = False
            self.changed.notify_all()

    def stop(self) -> None:
        """End as with the kubelet's process: a call under way is cut off, nothing is tidied."""
        with self.changed:
            self._is_ending = True
            self.changed.notify_all()
            attempt = self._attempt
        if attempt is not None:
            attempt.hang_up()
        self._thread.join()

    def wait_for(self, state: State, patience_s: float) -> None:
        """Wait until the kubelet believes that of the volume."""
        with self.changed:
            found = self.changed.wait_for(lambda: self.mounting.state is state, patience_s)
        assert found, f"{self.pod.uid}/{self.volume.name} stays {self.mounting!r}"

    def _run(self) -> None:
        timing = self._node.timing
        while True:
            with self.changed:
                if self._is_ending:
                    return
                now = timing.now()
                action = self.mounting.next_action(now)
                if isinstance(action, Wait):
                    if self.mounting.state is State.GONE:
                        self.changed.notify_all()
                        return
                    until = action.until
                    self.changed.wait(None if until is None else timing.ours(until - now))
                    continue
            match action:
                case Publish():
                    self._publish()
                case Unpublish():
                    self._unpublish()

    def _begin(self) -> Attempt | None:
        driver = self._node.find_driver()
        if driver is None:
            return None
        attempt = Attempt(driver.endpoint, self._node.timing.ours(CALL_DEADLINE_S))
        with self.changed:
            self._attempt = attempt
        return attempt

    def _end(self, attempt: Attempt) -> None:
        with self.changed:
            self._attempt = None
            self.connections += attempt.connections

    def _publish(self) -> None:
        is_claimed = isinstance(self.volume, Claimed)
        lock = self._node.handle_lock(self.volume_id) if is_claimed else nullcontext()
        with lock:
            attempt = self._begin()
            if attempt is None:
                name = self._node.driver_name
                self._tell(
                    None, f"driver name {name} not found in the list of registered CSI drivers"
                )
                with self.changed:
                    self.mounting.publish_not_possible(self._node.timing.now())
                    self.changed.notify_all()
                return
            node = self._node
            folder.make(
                self._folder, volume_data(self.pod, self.volume, node.driver_name, node.node_id)
            )
            code = self._call_publish(attempt)
            self._end(attempt)
        with self.changed:
            if self._is_ending:
                return
            has_to_go = self.mounting.publish_ended(code, node.timing.now())
        if has_to_go:
            self._remove_folder()
        with self.changed:
            self.changed.notify_all()

    def _call_publish(self, attempt: Attempt) -> grpc.StatusCode:
        kind = "claimed" if isinstance(self.volume, Claimed) else "inline"
        fields = self._fields
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id=fields.volume_id,
            target_path=str(fields.target),
            readonly=fields.readonly,
            volume_context=fields.context,
            secrets=fields.secrets,
            volume_capability=csi_pb2.VolumeCapability(
                mount=csi_pb2.VolumeCapability.MountVolume(),
                access_mode=csi_pb2.VolumeCapability.AccessMode(
                    mode=csi_pb2.VolumeCapability.AccessMode.Mode.Value(fields.access_mode)
                ),
            ),
        )
        try:
            for _ in range(_CAPABILITY_QUESTIONS[kind]):
                assert _STAGE_UNSTAGE not in attempt.capabilities(), "staging is not modelled"
            with self.changed:
                self.publishes.append(self._node.timing.now())
            attempt.node("NodePublishVolume", request, csi_pb2.NodePublishVolumeResponse)
        except grpc.RpcError as exc:
            code = code_of(exc)
            self._tell(code, f"rpc error: code = {code.name} desc = {details_of(exc)}")
            return code
        return grpc.StatusCode.OK

    def _unpublish(self) -> None:
        attempt = self._begin()
        code = grpc.StatusCode.UNAVAILABLE
        if attempt is not None:
            request = csi_pb2.NodeUnpublishVolumeRequest(
                volume_id=self.volume_id, target_path=str(self.target)
            )
            try:
                attempt.node("NodeUnpublishVolume", request, csi_pb2.NodeUnpublishVolumeResponse)
                code = grpc.StatusCode.OK
            except grpc.RpcError as exc:
                code = code_of(exc)
                self.hindrances.append(f"NodeUnpublishVolume: {code.name}: {details_of(exc)}")
            self._end(attempt)
        if code is grpc.StatusCode.OK:
            self._remove_folder()
        with self.changed:
            self.mounting.unpublish_ended(code, self._node.timing.now())
            self.changed.notify_all()

    def _remove_folder(self) -> None:
        if hindrance := folder.remove(self._folder):
            self.hindrances.append(hindrance)

    def _tell(self, code: grpc.StatusCode | None, what: str) -> None:
        message = f'MountVolume.SetUp failed for volume "{self.volume.name}" : {what}'
        self._node.tell(
            Event(
                pod_uid=self.pod.uid,
                volume=self.volume.name,
                code=code,
                message=message,
                at=self._node.timing.now(),
            )
        )
