"""Hostile manifests: each is refused with a reason, and none is read in two ways."""

import json

import pytest

from damselfly.errors import ManifestError, explain
from damselfly.model.digest import Digest
from damselfly.model.manifest import MANIFEST_BYTES_MAX, Manifest
from damselfly.model.plan import CHUNKS_MAX

CHUNK = str(Digest.of(b"a"))
SHA = "sha256:" + "0" * 64


def _file(path: object = "a", **changes: object) -> dict[str, object]:
    one: dict[str, object] = {
        "path": path,
        "bytes": 1,
        "chunks": [CHUNK],
        "lengths": [[1, 1]],
        "digests": [],
    }
    return one | changes


def _manifest(*files: object, **changes: object) -> bytes:
    fields: dict[str, object] = {
        "files": files,
        "format": "damselfly-manifest/1",
        "requires": [],
    }
    text = json.dumps(fields | changes, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode(errors="surrogatepass")


GOOD = _manifest(_file())

ATTACKS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "reading a manifest"),
    "not JSON": (b"<html>", "reading a manifest"),
    "not UTF-8": (b"\xff\xfe", "reading a manifest"),
    "a list": (b"[]", "expected dict"),
    "nested deep": (b"[" * 200_000, "nested too deep"),
    "no format": (b'{"files":[]}', "not a Damselfly manifest"),
    "another format": (_manifest(format="torrent"), "not a Damselfly manifest"),
    "format 0": (_manifest(format="damselfly-manifest/0"), "not a Damselfly manifest"),
    "format as a number": (_manifest(format=1), "not a Damselfly manifest"),
    "requires is text": (_manifest(requires="x"), "requires: expected list"),
    "requires a number": (_manifest(requires=[1]), "expected str"),
    "requires what is no name": (_manifest(requires=["\x1b[31m"]), "name of a feature"),
    "a field nobody knows": (_manifest(evil=1), "nothing else"),
    "files is an object": (_manifest(files={}), "files: expected list"),
    "a file is text": (_manifest("a"), "a file: expected dict"),
    "a field of a file nobody knows": (_manifest(_file(mode=0o4755)), "nothing else"),
    "out of the directory": (_manifest(_file("../a")), "component '..'"),
    "out of the directory later": (_manifest(_file("a/../../b")), "component '..'"),
    "an absolute path": (_manifest(_file("/etc/passwd")), "absolute"),
    "an empty path": (_manifest(_file("")), "empty path"),
    "a dot": (_manifest(_file("./a")), "component '.'"),
    "a backslash": (_manifest(_file("..\\a")), "contains"),
    "a NUL": (_manifest(_file("a\x00.bin")), "contains"),
    "a direction override": (_manifest(_file("a\u202ebin")), "contains"),
    "a path that is a number": (_manifest(_file(7)), "path: expected str"),
    "half a surrogate pair": (GOOD.replace(b'"path":"a"', b'"path":"\\ud800"'), "not Unicode"),
    "the same path twice": (_manifest(_file(), _file()), "occurs twice"),
    "a file and a directory": (_manifest(_file("a"), _file("a/b")), "is a file"),
    "out of order": (_manifest(_file("b"), _file("a")), "path order"),
    "a digest of the wrong length": (_manifest(_file(chunks=["blake3:00"])), "64 hex"),
    "a digest in capitals": (_manifest(_file(chunks=[CHUNK.upper()])), "64 hex"),
    "a digest of another kind": (_manifest(_file(chunks=[SHA])), "64 hex"),
    "a digest that is a number": (_manifest(_file(chunks=[0])), "64 hex"),
    "a chunk digest for the whole file": (_manifest(_file(digests=[CHUNK])), "whole file"),
    "whole-file digests unsorted": (
        _manifest(_file(digests=["sha256:" + "1" * 64, SHA])),
        "unsorted",
    ),
    "more digests than lengths": (_manifest(_file(chunks=[CHUNK] * 2)), "2 digests, 1 lengths"),
    "more lengths than digests": (_manifest(_file(lengths=[[1, 2]])), "1 digests, 2 lengths"),
    "a chunk of no bytes": (_manifest(_file(lengths=[[0, 1]], bytes=0)), "0 bytes"),
    "a negative length": (_manifest(_file(lengths=[[-1, 1]])), "-1 bytes"),
    "a chunk too long": (_manifest(_file(lengths=[[5 << 20, 1]], bytes=5 << 20)), "1 to 5242879"),
    "a length that is true": (_manifest(_file(lengths=[[True, 1]])), "not [length, count]"),
    "a length with a fraction": (_manifest(_file(lengths=[[1.0, 1]])), "is no integer"),
    "a run bomb": (_manifest(_file(lengths=[[1, 10**15]])), "more than"),
    "a size that is not the sum": (_manifest(_file(bytes=2)), "not what it says"),
    "a size that is true": (_manifest(_file(bytes=True)), "not what it says"),
    "spaces": (json.dumps(json.loads(GOOD), sort_keys=True).encode(), "canonical"),
    "a newline at the end": (GOOD + b"\n", "canonical"),
    "keys in another order": (
        b'{"requires":[],"files":[],"format":"damselfly-manifest/1"}',
        "canonical",
    ),
    "an escape that is not needed": (GOOD.replace(b'"path":"a"', b'"path":"\\u0061"'), "canonical"),
    "one run in two": (
        _manifest(_file(bytes=2, chunks=[CHUNK] * 2, lengths=[[1, 1], [1, 1]])),
        "continues",
    ),
    "a key twice": (GOOD.replace(b'"bytes":1', b'"bytes":9,"bytes":1'), "occurs twice"),
    "a minus zero": (GOOD.replace(b'"bytes":1', b'"bytes":-0'), "not what it says"),
    "not a number": (GOOD.replace(b'"bytes":1', b'"bytes":NaN'), "NaN"),
    "an integer of 5,000 digits": (
        GOOD.replace(b'"bytes":1', b'"bytes":' + b"9" * 5000),
        "reading a manifest",
    ),
}


def test_the_pattern_of_all_attacks_is_good() -> None:
    assert Manifest.parse(GOOD).canonical() == GOOD


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_manifest_is_refused(name: str) -> None:
    data, why = ATTACKS[name]

    with pytest.raises(ManifestError) as caught:
        Manifest.parse(data)

    assert why in explain(caught.value)
    assert explain(caught.value).isprintable()


def test_too_many_files_are_refused() -> None:
    file = _file(bytes=0, chunks=[], lengths=[])

    with pytest.raises(ManifestError, match="100001 files"):
        Manifest.parse(_manifest(*[file] * 100_001))


def test_chunks_are_counted_over_all_files_before_they_are_built() -> None:
    files = [_file(f"{number}", lengths=[[1, CHUNKS_MAX]]) for number in range(2)]
    files[0]["chunks"] = []

    with pytest.raises(ManifestError):
        Manifest.parse(_manifest(*files))


def test_a_manifest_that_is_too_long_is_not_even_read() -> None:
    with pytest.raises(ManifestError, match="the limit is"):
        Manifest.parse(bytes(MANIFEST_BYTES_MAX + 1))
