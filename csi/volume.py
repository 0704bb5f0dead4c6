"""What a volume is asked to show: attributes read and checked. Pure.

Whoever may create a pod writes the attributes of an inline volume, so everything here is foreign
input. What only an administrator may ask for (a directory of the node) is refused to inline volumes
unless he allowed it. Attributes of a PersistentVolume and parameters of a StorageClass are his own.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from damselfly.client.answers import Credentials
from damselfly.errors import UsageError
from damselfly.model.ref import Ref

MODES = ("eager",)
LAYOUTS = ("plain", "hf-cache")
KEYS = ("model", "include", "exclude", "layout", "mode")
FOREIGN_PREFIXES = ("csi.storage.k8s.io/", "storage.kubernetes.io/")
"""Keys that Kubernetes adds: who the pod is, who provisioned the volume."""
EPHEMERAL = "csi.storage.k8s.io/ephemeral"

REF_CHARS_MAX = 2048
GLOBS_MAX = 64
GLOB_CHARS_MAX = 256
VOLUME_ID_BYTES_MAX = 512
"""CSI allows 128; a handle that somebody wrote by hand may be longer, and does no harm."""
SECRET_CHARS_MAX = 16 * 1024

_LEASE_REST = re.compile(r"[0-9a-f]{40}", re.ASCII)
_INLINE_ID = re.compile(r"csi-[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a volume shows: the files of a ref that filters let through, in a layout."""

    ref: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    layout: str = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A volume that somebody wants at a target. Two wishes are the same call if they are equal."""

    volume_id: str
    target: str
    source: Source


def is_inline(volume_id: str, context: Mapping[str, str]) -> bool:
    """A pod's own volume, as far as can be told; when in doubt it is one.

    Kubernetes says so in the context if the CSIDriver object asks for it (podInfoOnMount), and
    else a user could say anything there. The id is the kubelet's own in any case.
    """
    return bool(_INLINE_ID.fullmatch(volume_id)) or context.get(EPHEMERAL) != "false"


def parse_source(attributes: Mapping[str, str], *, allows_files: bool) -> Source:
    """Read a volume's attributes, or a StorageClass' parameters.

    Raises:
        UsageError: One is unknown, missing, or cannot be; it is named.
    """
    for key in attributes:
        if key not in KEYS and not key.startswith(FOREIGN_PREFIXES):
            near = get_close_matches(key.lower(), KEYS, n=1)
            advice = f"did you mean {near[0]!r}?" if near else "known are " + ", ".join(KEYS)
            raise UsageError(f"no volume attribute {key[:80]!r}: {advice}")
    mode = attributes.get("mode", "eager")
    if mode not in MODES:
        raise UsageError(f"mode {mode[:40]!r} is not built yet: this version knows eager alone")
    layout = attributes.get("layout", "plain")
    if layout not in LAYOUTS:
        raise UsageError(f"layout {layout[:40]!r}: write {' or '.join(LAYOUTS)}")
    return Source(
        ref=_ref(attributes.get("model", ""), allows_files=allows_files),
        include=_globs("include", attributes.get("include", "")),
        exclude=_globs("exclude", attributes.get("exclude", "")),
        layout=layout,
    )


def _ref(text: str, *, allows_files: bool) -> str:
    text = text.strip()
    if not text:
        raise UsageError("the volume attribute 'model' is missing: it says where the model lives")
    if len(text) > REF_CHARS_MAX:
        raise UsageError(f"the volume attribute 'model' is longer than {REF_CHARS_MAX} characters")
    try:
        ref = Ref.parse(text)
    except UsageError as exc:
        raise UsageError("the volume attribute 'model'") from exc
    if ref.scheme == "file" and not allows_files:
        raise UsageError(
            "a pod may not name a directory of the node (file://) in a volume of its own: use a"
            " PersistentVolume, or have the administrator run the driver with --allow-file-refs"
        )
    return text


def recorded(text: str) -> str:
    """A ref as it may be written down: two are equal if their records are.

    The query of a presigned one is a secret, and a digest of the whole stands for it.
    """
    ref = Ref.parse(text)
    return ref.safe if ref.safe == str(ref) else f"{ref.safe} sha256:{_digest(str(ref))}"


def _globs(key: str, text: str) -> tuple[str, ...]:
    globs = tuple(glob for part in text.split(",") if (glob := part.strip()))
    if len(globs) > GLOBS_MAX:
        raise UsageError(f"the volume attribute {key!r} has more than {GLOBS_MAX} patterns")
    for glob in globs:
        if len(glob) > GLOB_CHARS_MAX or not glob.isprintable():
            raise UsageError(f"the volume attribute {key!r} has a pattern that no path can match")
        if glob.startswith("/") or ".." in glob.split("/"):
            raise UsageError(
                f"the volume attribute {key!r} has {glob!r}: patterns match paths inside the model"
            )
    return globs


def check_volume_id(volume_id: str) -> str:
    """Give a volume's id back if it can be one.

    Raises:
        UsageError: It is empty, too long, or would garble a log.
    """
    if not volume_id:
        raise UsageError("volume_id is missing")
    if len(volume_id.encode()) > VOLUME_ID_BYTES_MAX or not volume_id.isprintable():
        raise UsageError(f"volume_id {volume_id[:80]!r}... cannot name a volume")
    return volume_id


def parse_credentials(secrets: Mapping[str, str]) -> Credentials | None:
    """Read what proves who asks: `token` (or `HF_TOKEN`), or `username` and `password`.

    Other keys beside them are none of ours: a Secret may serve others too. One with nothing of ours
    is a mistake, which would look like a model that denies access. Space around a value is cut off;
    it is mostly the newline that an editor left.

    Raises:
        UsageError: A value cannot be one, or no key is known. No value is repeated.
    """
    if not secrets:
        return None
    found: dict[str, str] = {}
    for name, keys in (
        ("token", ("token", "HF_TOKEN")),
        ("username", ("username",)),
        ("password", ("password",)),
    ):
        for key in keys:
            if value := secrets.get(key, "").strip():
                if len(value) > SECRET_CHARS_MAX or not value.isprintable():
                    raise UsageError(f"the secret's key {key!r} holds something unusable")
                found[name] = value
                break
    if "password" in found and "username" not in found:
        raise UsageError("the secret has a password and no username")
    if not found:
        raise UsageError(
            "the secret has nothing that is used: its keys are 'token' or 'HF_TOKEN', or 'username'"
            " with 'password', and what they hold must not be empty"
        )
    return Credentials(**found)


def lease_id(driver_name: str, volume_id: str, target: str) -> str:
    """What the lease of a volume at a target is called: the same name at every try."""
    return f"{lease_prefix(driver_name)}{_digest(volume_id, target)}"


def lease_prefix(driver_name: str) -> str:
    """How every lease of this driver begins; so may those of another, see `is_lease_of`."""
    return f"{driver_name}-"


def is_lease_of(driver_name: str, lease: str) -> bool:
    """This driver gives leases such names. One whose name begins with ours gives others."""
    return bool(_LEASE_REST.fullmatch(lease.removeprefix(lease_prefix(driver_name))))


def file_name(name: str) -> str:
    """What a file about `name` is called, and a volume that is created under it: always the same.

    The name itself, where it is plain enough for logs and file names; Kubernetes' are.
    """
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}", name, re.ASCII) and not name.startswith(
        "sha256-"
    ):
        return name
    return f"sha256-{_digest(name)}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]
