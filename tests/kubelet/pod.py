"""Pods and their volumes, and what of them becomes a publish: pure."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ACCESS_MODES = {
    "ReadWriteOnce": "SINGLE_NODE_WRITER",
    "ReadOnlyMany": "MULTI_NODE_READER_ONLY",
    "ReadWriteMany": "MULTI_NODE_MULTI_WRITER",
}
VOLUMES = "volumes/kubernetes.io~csi"


@dataclass(frozen=True, kw_only=True)
class Inline:
    """A volume that stands in the pod itself."""

    name: str
    attributes: Mapping[str, str]
    secrets: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    read_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A persistent volume that the pod has through a claim; `name` is the volume's.

    `read_only` is the pod's `persistentVolumeClaim.readOnly`: the volume's own never arrives.
    """

    name: str
    handle: str
    attributes: Mapping[str, str]
    secrets: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    access_mode: str = "ReadOnlyMany"
    read_only: bool = False


PodVolume = Inline | Claimed


@dataclass(frozen=True, kw_only=True)
class Pod:
    """A pod that is meant for this node."""

    uid: str
    volumes: tuple[PodVolume, ...]
    name: str = "server"
    namespace: str = "models"
    service_account: str = "default"


@dataclass(frozen=True, kw_only=True)
class PublishFields:
    """What a NodePublishVolume says."""

    volume_id: str
    target: Path
    access_mode: str
    readonly: bool
    context: Mapping[str, str]
    secrets: Mapping[str, str] = field(repr=False)


def volume_id_of(pod: Pod, volume: PodVolume) -> str:
    """The handle of a persistent volume; of an inline one a digest of pod and name."""
    if isinstance(volume, Claimed):
        return volume.handle
    return "csi-" + hashlib.sha256(f"{pod.uid}{volume.name}".encode()).hexdigest()


def folder_of(root: Path, pod_uid: str, volume_name: str) -> Path:
    """The volume's folder: the kubelet's own, with `mount` in it, which is the driver's."""
    return root / "pods" / pod_uid / VOLUMES / volume_name


def publish_fields(root: Path, pod: Pod, volume: PodVolume) -> PublishFields:
    """What the driver is told; pod info (`podInfoOnMount`) beats what the user wrote."""
    info = {
        "csi.storage.k8s.io/pod.name": pod.name,
        "csi.storage.k8s.io/pod.namespace": pod.namespace,
        "csi.storage.k8s.io/pod.uid": pod.uid,
        "csi.storage.k8s.io/serviceAccount.name": pod.service_account,
        "csi.storage.k8s.io/ephemeral": str(isinstance(volume, Inline)).lower(),
    }
    return PublishFields(
        volume_id=volume_id_of(pod, volume),
        target=folder_of(root, pod.uid, volume.name) / "mount",
        access_mode=ACCESS_MODES[
            "ReadWriteOnce" if isinstance(volume, Inline) else volume.access_mode
        ],
        readonly=volume.read_only,
        context={**volume.attributes, **info},
        secrets=volume.secrets,
    )


def volume_data(pod: Pod, volume: PodVolume, driver: str, node: str) -> bytes:
    """The content of `vol_data.json`."""
    handle = volume_id_of(pod, volume)
    attachment = hashlib.sha256(f"{handle}{driver}{node}".encode()).hexdigest()
    lifecycle = "Ephemeral" if isinstance(volume, Inline) else "Persistent"
    fields = {
        "attachmentID": f"csi-{attachment}",
        "driverName": driver,
        "nodeName": node,
        "specVolID": volume.name,
        "volumeHandle": handle,
        "volumeLifecycleMode": lifecycle,
    }
    return json.dumps(fields).encode()
