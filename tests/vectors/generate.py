"""Write the pinned vectors anew: `python -m tests.vectors.generate` (with src on the path).

Run it only when the format changes on purpose, and read the difference: every vector that moves is
an artifact that every store in the field would fetch again under another name.

Contents are SHAKE-256 of the file's path, as many bytes as the file has, so that they need not be
kept here; a safetensors file has its header in front, as text in the vector.
"""

import hashlib
import json
from pathlib import Path

from damselfly.model import chunker, safetensors
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.plan import Plan, PlannedFile

HERE = Path(__file__).parent
MIB = 1 << 20
REF = "https://models.example/llama/"

Tensors = list[tuple[str, str, list[int]]]


def header_text(tensors: Tensors) -> str:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, dtype, shape in tensors:
        stop = start + _bytes(dtype, shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
        start = stop
    return json.dumps(entries, separators=(",", ":"))


def _bytes(dtype: str, shape: list[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count * safetensors.DTYPE_BITS[dtype] // 8


def prefixed(text: str, pad: int = 0) -> bytes:
    body = text.encode() + b" " * pad
    return len(body).to_bytes(8, "little") + body


def _u8(*sizes: int) -> Tensors:
    return [(f"t{number:04d}", "U8", [size]) for number, size in enumerate(sizes)]


def _llama(layers: int, hidden: int, wide: int, vocabulary: int) -> Tensors:
    tensors: Tensors = [("model.embed_tokens.weight", "BF16", [vocabulary, hidden])]
    for layer in range(layers):
        at = f"model.layers.{layer}"
        tensors += [
            (f"{at}.input_layernorm.weight", "BF16", [hidden]),
            (f"{at}.mlp.down_proj.weight", "BF16", [hidden, wide]),
            (f"{at}.mlp.gate_proj.weight", "BF16", [wide, hidden]),
            (f"{at}.mlp.up_proj.weight", "BF16", [wide, hidden]),
            (f"{at}.post_attention_layernorm.weight", "BF16", [hidden]),
            (f"{at}.self_attn.k_proj.weight", "BF16", [hidden // 4, hidden]),
            (f"{at}.self_attn.o_proj.weight", "BF16", [hidden, hidden]),
            (f"{at}.self_attn.q_proj.weight", "BF16", [hidden, hidden]),
            (f"{at}.self_attn.v_proj.weight", "BF16", [hidden // 4, hidden]),
        ]
    return [*tensors, ("model.norm.weight", "BF16", [hidden])]


SAFETENSORS: dict[str, tuple[Tensors, int]] = {
    "no tensors": ([], 0),
    "one small tensor": (_u8(5), 0),
    "one under the limit to stand alone": (_u8(MIB - 1), 0),
    "one at the limit to stand alone": (_u8(MIB), 0),
    "one of exactly a chunk": (_u8(4 * MIB), 0),
    "a tail of one byte joins": (_u8(4 * MIB + 1), 0),
    "the longest chunk there is": (_u8(5 * MIB - 1), 0),
    "a tail at the limit does not join": (_u8(5 * MIB), 0),
    "slices, and a tail that joins the last": (_u8(13 * MIB - 1), 0),
    "small ones packed to exactly a chunk": (_u8(*[MIB // 2] * 8), 0),
    "small ones packed, one too many": (_u8(*[MIB // 2] * 8, 1), 0),
    "small ones that would not fit are not sliced": (_u8(*[MIB - 1] * 9), 0),
    "small, alone, small": (_u8(7, 11, 2 * MIB, 13, 17), 0),
    "tensors without bytes": (_u8(0, 0, 3 * MIB, 0, 5, 0), 0),
    "a header of over a chunk": (_u8(2 * MIB, 3), 5 * MIB),
    "types of less than a byte": (
        [("a", "F4", [3, 2]), ("b", "F6_E2M3", [4]), ("c", "BOOL", [])],
        0,
    ),
    "a small llama": (_llama(2, 1024, 2816, 4096), 0),
}
PLAIN = [0, 1, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 5 * MIB - 1, 9 * MIB, 12 * MIB]

ARTIFACT: dict[str, tuple[int, Tensors | None, list[str]]] = {
    # path: bytes after the header, tensors if it is safetensors, whole-file digests
    "README.md": (0, None, []),
    "config.json": (613, None, ["sha256:" + "5e" * 32]),
    "model-00001-of-00002.safetensors": (0, _u8(300, 3 * MIB, 40, 5 * MIB - 1, 2), []),
    "model-00002-of-00002.safetensors": (0, _u8(MIB), []),
    "original/größe 1.bin": (4 * MIB + 1, None, []),
    "original/tokenizer.model": (100_003, None, []),
    "original-copy.bin": (4 * MIB + 1, None, []),
}


def content(path: str, size: int) -> bytes:
    return hashlib.shake_256(path.encode()).digest(size)


def chunker_vectors() -> dict[str, object]:
    cases: list[dict[str, object]] = []
    for name, (tensors, pad) in SAFETENSORS.items():
        text = header_text(tensors)
        prefix = prefixed(text, pad)
        size = len(prefix) + sum(_bytes(dtype, shape) for _, dtype, shape in tensors)
        header = safetensors.parse(prefix, size)
        cases.append(
            {
                "name": name,
                "header": text,
                "pad": pad,
                "bytes": size,
                "lengths": chunker.cut_safetensors(header),
            }
        )
    plain = [{"bytes": size, "lengths": chunker.cut(size)} for size in PLAIN]
    return {"safetensors": cases, "plain": plain}


def manifest_vectors() -> dict[str, object]:
    planned: list[PlannedFile] = []
    digests: dict[str, list[Digest]] = {}
    described: list[dict[str, object]] = []
    for path, (size, tensors, whole) in ARTIFACT.items():
        text = None
        if tensors is None:
            data = content(path, size)
            lengths = chunker.cut(len(data))
        else:
            text = header_text(tensors)
            head = prefixed(text)
            data = head + content(path, sum(_bytes(dtype, shape) for _, dtype, shape in tensors))
            lengths = chunker.cut_safetensors(safetensors.parse(head, len(data)))
        file = PlannedFile(path, lengths, f'etag:"{len(data)}"', tuple(whole))
        planned.append(file)
        digests[path] = [
            Digest.of(data[stop - length : stop])
            for stop, length in zip(file.stops, lengths, strict=True)
        ]
        described.append({"path": path, "header": text, "bytes": len(data), "digests": whole})
    plan = Plan.of(REF, planned)
    manifest = Manifest.seal(plan, [digest for file in plan.files for digest in digests[file.path]])
    return {
        "ref": REF,
        "files": described,
        "plan": plan.canonical().decode(),
        "plan_id": str(plan.id),
        "manifest": manifest.canonical().decode(),
        "artifact": str(manifest.digest),
        "file_ids": {file.path: str(file.id) for file in manifest.files},
    }


def write(name: str, value: object) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False)
    (HERE / name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write("chunker.json", chunker_vectors())
    write("manifest.json", manifest_vectors())
