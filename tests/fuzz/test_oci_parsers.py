"""Whatever a registry says is read, or refused by name; never anything else."""

import json

from hypothesis import given, strategies as st

from damselfly.errors import DamselflyError
from damselfly.model.paths import check_tree
from damselfly.origin.challenge import parse_challenges
from damselfly.origin.oci_manifest import OCIIndex, parse_oci_manifest

_KEYS = st.sampled_from(
    [
        "layers",
        "manifests",
        "digest",
        "size",
        "mediaType",
        "annotations",
        "org.cncf.model.filepath",
        "org.opencontainers.image.title",
    ]
)
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["sha256:" + "a" * 64, "../x", "a/b", "application/vnd.cncf.model.x.raw"]),
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=6),
    max_leaves=30,
)
_LAYERS = st.lists(
    st.fixed_dictionaries(
        {
            "digest": st.just("sha256:" + "a" * 64) | _LEAVES,
            "size": st.integers(0, 1 << 62) | _LEAVES,
            "mediaType": st.just("application/vnd.cncf.model.weight.v1.raw") | _LEAVES,
            "annotations": st.dictionaries(_KEYS, st.text(max_size=20), max_size=3) | _LEAVES,
        }
    ),
    max_size=4,
)


@given(st.binary() | _VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_manifest_or_a_named_error(data: bytes) -> None:
    _read(data)


@given(_LAYERS)
def test_layers_of_any_kind_are_a_tree_of_files_or_a_named_error(layers: object) -> None:
    _read(json.dumps({"layers": layers}).encode())


@given(st.text())
def test_any_challenge_is_read(header: str) -> None:
    for challenge in parse_challenges(header):
        assert challenge.scheme == challenge.scheme.lower() != ""


def _read(data: bytes) -> None:
    try:
        found = parse_oci_manifest(data, "a place")
    except DamselflyError:
        return
    if not isinstance(found, OCIIndex):
        check_tree(layer.path for layer in found.layers)
        assert all(layer.blob.size >= 0 for layer in found.layers)
