"""Where files are cut into chunks: rules of sizes and tensors, never of content.

A cut that followed from content (a rolling hash) would have to read everything before anybody knew
what to ask for. Weights are tables of tensors, and a fine-tune replaces whole tensors, so cutting
along tensors shares just as much and follows from a header of a few kilobytes.

Rule 1  The header of a safetensors file (8 bytes and the JSON) is its own chunk, or, where it is
        longer than 4 MiB, chunks of 4 MiB: a change in it touches no tensor's chunk.
Rule 2  A tensor of 1 MiB or more starts and ends on a cut and is sliced every 4 MiB from its own
        start. A last slice under 1 MiB joins the one before it: small chunks cost a request each.
Rule 3  Smaller tensors that follow each other are packed: a chunk takes the next one as long as it
        stays within 4 MiB. They are never sliced.
Rule 4  Any other file is cut every 4 MiB, whatever is left at the end: chunk i starts at i x 4 MiB
        in every version of a file, so one that grew shares all but its old end.
Rule 5  A zero-byte file has no chunks.

A chunk is at most 5 MiB - 1: four whole and a tail that joined.
"""

from damselfly.errors import ManifestError
from damselfly.model.safetensors import Header

MIB = 1 << 20
CHUNK_BYTES = 4 * MIB
FILE_BYTES_MAX = 1_000_000 * CHUNK_BYTES
"""All that an artifact may have, in one file. Who says how big a file is may say anything."""
TENSOR_ALONE_BYTES = MIB
"""From this size on a tensor has chunks of its own (Rule 2)."""
CHUNK_BYTES_MAX = CHUNK_BYTES + TENSOR_ALONE_BYTES - 1


def is_safetensors(path: str) -> bool:
    """Whether a file of this name is cut along its tensors; its header must then keep the rules."""
    return path.endswith(".safetensors")


def cut(file_bytes: int) -> tuple[int, ...]:
    """Cut a file whose inside we do not know (Rules 4 and 5).

    Raises:
        ManifestError: no artifact is that big.
    """
    if file_bytes > FILE_BYTES_MAX:
        raise ManifestError(f"a file of {file_bytes} bytes: the limit is {FILE_BYTES_MAX}")
    whole, rest = divmod(file_bytes, CHUNK_BYTES)
    return (CHUNK_BYTES,) * whole + ((rest,) if rest else ())


def cut_safetensors(header: Header) -> tuple[int, ...]:
    """Cut a safetensors file along its tensors (Rules 1 to 3)."""
    lengths = list(cut(header.length))
    packed = 0
    for tensor in header.tensors:
        size = tensor.stop - tensor.start
        if size >= TENSOR_ALONE_BYTES or packed + size > CHUNK_BYTES:
            if packed:
                lengths.append(packed)
            packed = 0
        if size >= TENSOR_ALONE_BYTES:
            lengths.extend(_slices(size))
        else:
            packed += size
    if packed:
        lengths.append(packed)
    return tuple(lengths)


def _slices(size: int) -> tuple[int, ...]:
    slices = cut(size)
    if len(slices) > 1 and slices[-1] < TENSOR_ALONE_BYTES:
        return (*slices[:-2], slices[-2] + slices[-1])
    return slices
