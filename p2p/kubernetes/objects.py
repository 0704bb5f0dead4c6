"""What every JSON object of Kubernetes has, read from a server that may not be one. Pure.

Every function raises RemoteProtocolError where the object is not what it should be.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from damselfly.errors import RemoteProtocolError
from damselfly.p2p.kubernetes.names import NAME_LENGTH_MAX


def object_of(value: object) -> Mapping[str, Any]:
    """The value itself, if it is an object."""
    if not isinstance(value, Mapping):
        raise RemoteProtocolError("the API server sent something else than an object")
    return cast("Mapping[str, Any]", value)


def items_of(value: object) -> Sequence[object]:
    """The value itself, if it is a list; Kubernetes writes an empty one as null, or not at all."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RemoteProtocolError("the API server sent something else than a list")
    return cast("list[object]", value)


def name_of(value: object) -> str:
    """The object's name."""
    name = object_of(object_of(value).get("metadata")).get("name")
    if not isinstance(name, str) or not 0 < len(name) <= NAME_LENGTH_MAX:
        raise RemoteProtocolError("an object of the API server has no name")
    return name


def version_of(value: object) -> str:
    """The `resourceVersion` of an object or a list: opaque, to be handed back as it is."""
    version = object_of(object_of(value).get("metadata")).get("resourceVersion")
    if not isinstance(version, str) or not 0 < len(version) <= NAME_LENGTH_MAX:
        raise RemoteProtocolError("an object of the API server has no resourceVersion")
    return version


def label_of(value: object, label: str) -> str:
    """What the object is labelled with; empty without that label."""
    labels = object_of(object_of(value).get("metadata")).get("labels")
    text = object_of(labels).get(label) if labels is not None else None
    return text if isinstance(text, str) else ""
