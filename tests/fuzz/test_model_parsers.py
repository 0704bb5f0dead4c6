"""Garbage: every parser of the model either reads it or raises its own error, never another."""

import json
from collections.abc import Callable
from typing import TypeVar

from hypothesis import example, given, settings, strategies as st

from damselfly.errors import (
    DamselflyError,
    HeaderError,
    ManifestError,
    RemoteProtocolError,
    UnsupportedFormatError,
    UsageError,
    explain,
)
from damselfly.model import safetensors
from damselfly.model.bitmap import Bitmap
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.paths import check_path
from damselfly.model.plan import Plan, PlannedFile
from damselfly.model.ref import Ref
from tests.vectors.library import deserialize

_T = TypeVar("_T")
_PLAN = Plan.of(
    "http://h/x/",
    [PlannedFile("a", (5, 5, 2), "v"), PlannedFile("b/ü", (), "", ("sha256:" + "0" * 64,))],
)
_MANIFEST = Manifest.seal(_PLAN, [Digest.of(bytes([i])) for i in range(3)]).canonical()
_HEADER = json.dumps(
    {
        "__metadata__": {"k": "v"},
        "t": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "u": {"dtype": "U8", "shape": [], "data_offsets": [16, 17]},
    }
).encode()
_SAFETENSORS = len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(17)

_KEYS = st.sampled_from(
    [
        *("files", "format", "requires", "path", "bytes", "chunks", "lengths", "digests", "ref"),
        *("version", "dtype", "shape", "data_offsets", "__metadata__", "a"),
    ]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def _damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """Good bytes with a few of them replaced, removed or doubled."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 8)))
        data[start:stop] = draw(
            st.binary(max_size=4)
            | st.just(bytes(data[start:stop]) * 2)
            | st.sampled_from([b"-", b"0", b"9" * 20, b"[", b"}", b"null", b'"', b"\\u0000", b"."])
        )
    return bytes(data)


def _read(read: Callable[[], _T], *errors: type[DamselflyError]) -> _T | None:
    """Read something, or refuse it in one readable line with one of `errors`."""
    try:
        return read()
    except errors as exc:
        told = explain(exc)
    assert told.isprintable()
    return None


@settings(max_examples=300, deadline=None)
@given(_damaged(_MANIFEST) | st.binary() | _JSON.map(lambda value: json.dumps(value).encode()))
@example(_MANIFEST)
def test_garbage_is_no_manifest(data: bytes) -> None:
    manifest = _read(lambda: Manifest.parse(data), ManifestError, UnsupportedFormatError)

    assert manifest is None or manifest.canonical() == data


@settings(max_examples=300, deadline=None)
@given(_damaged(_PLAN.canonical()) | st.binary() | _JSON)
@example(_PLAN.canonical())
def test_garbage_is_no_plan(source: object) -> None:
    plan = _read(lambda: Plan.parse(source), RemoteProtocolError)

    assert plan is None or Plan.parse(plan.to_json()) == plan


@settings(max_examples=300, deadline=None)
@given(_damaged(_SAFETENSORS) | st.binary(), st.integers(-20, 20))
@example(_SAFETENSORS, 0)
def test_garbage_is_no_header(data: bytes, more: int) -> None:
    file_bytes = max(0, len(data) + more)

    length = _read(lambda: safetensors.header_bytes(data, file_bytes), HeaderError)
    if length is None or length > len(data):
        return
    header = _read(lambda: safetensors.parse(data, file_bytes), HeaderError)

    if header is not None:
        assert header.length + sum(t.stop - t.start for t in header.tensors) == file_bytes


@settings(max_examples=300, deadline=None)
@given(_damaged(_SAFETENSORS))
@example(_SAFETENSORS)
def test_what_we_read_the_library_reads_alike(data: bytes) -> None:
    try:
        header = safetensors.parse(data, len(data))
    except HeaderError:
        return  # We may refuse more; tests/attacks says what.

    theirs = {name: (found["dtype"], tuple(found["shape"])) for name, found in deserialize(data)}
    assert {tensor.name: (tensor.dtype, tensor.shape) for tensor in header.tensors} == theirs


@settings(max_examples=300, deadline=None)
@given(
    st.text()
    | st.builds("{}://{}/{}".format, st.sampled_from(["file", "http", "hf"]), st.text(), st.text())
    | _damaged(b"https://h.example:8443/a/%20?x=1#blake3:" + b"ab" * 32).map(
        lambda data: data.decode(errors="replace")
    )
)
def test_garbage_is_no_ref(text: str) -> None:
    ref = _read(lambda: Ref.parse(text), UsageError)

    if ref is not None:
        assert Ref.parse(str(ref)) == ref
        assert str(ref).isascii()


@given(st.text())
def test_garbage_is_no_path(text: str) -> None:
    path = _read(lambda: check_path(text), ManifestError)

    assert path is None or not (path.startswith("/") or ".." in path.split("/"))


@given(st.integers(0, 100), st.binary(max_size=20))
def test_garbage_is_no_bitmap(size: int, data: bytes) -> None:
    bitmap = _read(lambda: Bitmap.parse(size, data), RemoteProtocolError)

    assert bitmap is None or bitmap.to_bytes() == data
