"""Manifests: sealing, naming, and what a format 1 reader says to other formats."""

import json

import pytest

from damselfly.errors import UnsupportedFormatError
from damselfly.model.digest import Digest
from damselfly.model.manifest import Chunk, Manifest, ManifestFile
from damselfly.model.plan import Plan, PlannedFile

SHA = "sha256:" + "7" * 64


def _sealed() -> tuple[Plan, list[Digest], Manifest]:
    plan = Plan.of(
        "http://h/x/",
        [
            PlannedFile("b", (4, 4, 1), 'etag:"1"'),
            PlannedFile("a/z", (7,), digests=(SHA,)),
            PlannedFile("empty", ()),
        ],
    )
    digests = [Digest.of(bytes([index])) for index in range(plan.chunk_count)]
    return plan, digests, Manifest.seal(plan, digests)


def test_a_sealed_plan_keeps_its_indexes_cuts_and_digests() -> None:
    plan, digests, manifest = _sealed()

    assert list(manifest.digests) == digests
    assert tuple(manifest.plan(plan.ref).lengths) == tuple(plan.lengths)
    assert [file.path for file in manifest.files] == ["a/z", "b", "empty"]
    assert manifest.files[0].digests == (SHA,)
    assert (manifest.bytes, manifest.chunk_count) == (16, 4)


def test_a_manifest_is_read_back() -> None:
    _, _, manifest = _sealed()

    again = Manifest.parse(manifest.canonical())

    assert again == manifest
    assert again.digest == manifest.digest == Digest.of(manifest.canonical())


def test_an_artifact_is_named_without_where_and_when_it_was_found() -> None:
    plan, digests, manifest = _sealed()
    elsewhere = Plan.of(
        "file:///y/", [PlannedFile(f.path, f.lengths, "other", f.digests) for f in plan.files]
    )

    assert Manifest.seal(elsewhere, digests).digest == manifest.digest


def test_the_id_of_a_file_follows_from_its_content_alone() -> None:
    chunks = (Chunk(Digest.of(b"1"), 1), Chunk(Digest.of(b"2"), 2))
    file = ManifestFile("a", chunks)

    assert file.id == ManifestFile("b", chunks, (SHA,)).id
    assert file.id != ManifestFile("a", chunks[::-1]).id
    assert file.id != ManifestFile("a", (chunks[0], Chunk(chunks[1].digest, 3))).id
    assert Manifest((file,)).file_id(0) == file.id
    assert ManifestFile("empty", ()).id == Digest.of(b"damselfly-file/1\n")


def _with(**changes: object) -> bytes:
    fields: dict[str, object] = {"files": [], "format": "damselfly-manifest/1", "requires": []}
    return json.dumps(fields | changes, sort_keys=True, separators=(",", ":")).encode()


def test_a_newer_format_is_refused_by_its_number_whatever_else_is_in_it() -> None:
    with pytest.raises(UnsupportedFormatError, match="format 2: this version reads 1"):
        Manifest.parse(_with(format="damselfly-manifest/2", files={"new": "layout"}, requires=None))


def test_an_unknown_feature_is_refused_by_its_name() -> None:
    data = _with(requires=["erasure-coding", "zstd"], files={"new": "layout"})

    with pytest.raises(UnsupportedFormatError, match="requires erasure-coding, zstd, which"):
        Manifest.parse(data)


def test_an_empty_artifact_has_a_name_too() -> None:
    assert Manifest.parse(_with()) == Manifest(())
