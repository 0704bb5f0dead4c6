"""Check the pinned vectors without Damselfly: `python tests/vectors/verify.py`.

A second reading of the format, from its description and not from its code: slow, plain, and with
nothing in common with the code but the BLAKE3 package. If the two disagree, one of them is wrong.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import NoReturn, TypedDict

import blake3

HERE = Path(__file__).parent
MEBIBYTE = 1024 * 1024
BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "U8": 8,
    "BF16": 16,
}


class Tensor(TypedDict):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class Cut(TypedDict):
    name: str
    header: str
    pad: int
    bytes: int
    lengths: list[int]


class Cuts(TypedDict):
    safetensors: list[Cut]
    plain: list[Cut]


class File(TypedDict):
    path: str
    header: str | None
    bytes: int
    digests: list[str]


class Artifact(TypedDict):
    ref: str
    files: list[File]
    plan: str
    plan_id: str
    manifest: str
    artifact: str
    file_ids: dict[str, str]


def sizes_of_tensors(text: str) -> list[int]:
    tensors: dict[str, Tensor] = json.loads(text)
    tensors.pop("__metadata__", None)
    found: list[tuple[int, int]] = []
    for tensor in tensors.values():
        start, stop = tensor["data_offsets"]
        bits = BITS[tensor["dtype"]]
        for length in tensor["shape"]:
            bits *= length
        if bits != 8 * (stop - start):
            fail("a vector has a tensor of the wrong size")
        found.append((start, stop))
    found.sort()
    return [stop - start for start, stop in found]


def cuts_of_plain(size: int) -> list[int]:
    """Positions at which a chunk ends: every 4 MiB, and at the end."""
    positions: list[int] = []
    position = 0
    while position < size:
        position = min(size, position + 4 * MEBIBYTE)
        positions.append(position)
    return positions


def cuts_of_tensor(size: int) -> list[int]:
    """Every 4 MiB from its own start; a rest under 1 MiB belongs to what is before it."""
    positions = list(range(4 * MEBIBYTE, size, 4 * MEBIBYTE))
    if positions and size - positions[-1] < MEBIBYTE:
        positions.pop()
    return [*positions, size]


def cuts_of_safetensors(header_length: int, sizes: list[int]) -> list[int]:
    positions = cuts_of_plain(header_length)
    position = header_length
    room = 0  # What still fits into the open chunk of small tensors; 0: none is open.
    for size in sizes:
        if size >= MEBIBYTE:
            if positions[-1] != position:
                positions.append(position)
            positions.extend(position + cut for cut in cuts_of_tensor(size))
            position += size
            room = 0
        else:
            if size > room:
                if positions[-1] != position:
                    positions.append(position)
                room = 4 * MEBIBYTE
            position += size
            room -= size
    if positions[-1] != position:
        positions.append(position)
    return positions


def lengths_between(positions: list[int]) -> list[int]:
    lengths: list[int] = []
    before = 0
    for position in positions:
        lengths.append(position - before)
        before = position
    return lengths


def runs(lengths: list[int]) -> str:
    text = ""
    while lengths:
        first = lengths[0]
        count = 0
        while count < len(lengths) and lengths[count] == first:
            count += 1
        text += ("," if text else "") + f"[{first},{count}]"
        lengths = lengths[count:]
    return f"[{text}]"


def quoted(text: str) -> str:
    if any(letter in '"\\' or ord(letter) < 32 for letter in text):
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def fail(what: str) -> NoReturn:
    sys.exit(f"the vectors are wrong: {what}")


def expect(found: object, pinned: object, what: str) -> None:
    if found != pinned:
        fail(f"{what}: pinned {str(pinned)[:200]}, found {str(found)[:200]}")


def verify_chunker() -> int:
    vectors: Cuts = json.loads((HERE / "chunker.json").read_text(encoding="utf-8"))
    for case in vectors["plain"]:
        expect(
            lengths_between(cuts_of_plain(case["bytes"])), case["lengths"], f"{case['bytes']} bytes"
        )
    for case in vectors["safetensors"]:
        sizes = sizes_of_tensors(case["header"])
        header_length = 8 + len(case["header"].encode()) + case["pad"]
        expect(header_length + sum(sizes), case["bytes"], case["name"])
        positions = cuts_of_safetensors(header_length, sizes)
        expect(lengths_between(positions), case["lengths"], case["name"])
    return len(vectors["plain"]) + len(vectors["safetensors"])


def verify_manifest() -> int:
    vectors: Artifact = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    files = sorted(vectors["files"], key=lambda file: file["path"].encode())
    manifest_parts: list[str] = []
    plan_parts: list[str] = []
    for file in files:
        path = file["path"]
        shake = hashlib.shake_256(path.encode())
        if file["header"] is None:
            data = shake.digest(file["bytes"])
            positions = cuts_of_plain(len(data))
        else:
            text = file["header"].encode()
            sizes = sizes_of_tensors(file["header"])
            data = len(text).to_bytes(8, "little") + text + shake.digest(sum(sizes))
            positions = cuts_of_safetensors(8 + len(text), sizes)
        expect(len(data), file["bytes"], path)
        lengths = lengths_between(positions)
        hashes: list[bytes] = []
        before = 0
        for position in positions:
            hashes.append(blake3.blake3(data[before:position]).digest())
            before = position
        name = b"damselfly-file/1\n"
        for raw, length in zip(hashes, lengths, strict=True):
            name += raw + length.to_bytes(8, "little")
        expect(f"blake3:{blake3.blake3(name).hexdigest()}", vectors["file_ids"][path], path)
        whole = ",".join(quoted(digest) for digest in file["digests"])
        chunks = ",".join(quoted(f"blake3:{raw.hex()}") for raw in hashes)
        manifest_parts.append(
            f'{{"bytes":{len(data)},"chunks":[{chunks}],"digests":[{whole}],'
            f'"lengths":{runs(lengths)},"path":{quoted(path)}}}'
        )
        version = quoted(f'etag:"{len(data)}"')
        plan_parts.append(
            f'{{"digests":[{whole}],"lengths":{runs(lengths)},"path":{quoted(path)},'
            f'"version":{version}}}'
        )
    manifest = (
        f'{{"files":[{",".join(manifest_parts)}],"format":"damselfly-manifest/1","requires":[]}}'
    )
    expect(manifest, vectors["manifest"], "the bytes of the manifest")
    digest = blake3.blake3(manifest.encode()).hexdigest()
    expect(f"blake3:{digest}", vectors["artifact"], "the artifact's name")
    plan = f'{{"files":[{",".join(plan_parts)}],"ref":{quoted(vectors["ref"])}}}'
    expect(plan, vectors["plan"], "the bytes of the plan")
    digest = blake3.blake3(plan.encode()).hexdigest()
    expect(f"blake3:{digest}", vectors["plan_id"], "the plan's name")
    return len(files)


if __name__ == "__main__":
    print(f"{verify_chunker()} cuts and {verify_manifest()} files of a manifest agree")
