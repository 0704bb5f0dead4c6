"""Cuts: the rules by name. Where exactly is pinned in tests/vectors."""

from damselfly.model.chunker import CHUNK_BYTES, CHUNK_BYTES_MAX, MIB, cut, cut_safetensors
from damselfly.model.safetensors import Header, Tensor


def _header(*sizes: int, length: int = 100) -> Header:
    tensors: list[Tensor] = []
    start = length
    for number, size in enumerate(sizes):
        tensors.append(Tensor(f"t{number}", "U8", (size,), start, start + size))
        start += size
    return Header(length, tuple(tensors), {})


def test_the_longest_chunk_is_a_slice_and_a_tail_that_joined() -> None:
    assert cut_safetensors(_header(5 * MIB - 1)) == (100, 5 * MIB - 1)
    assert CHUNK_BYTES_MAX == 5 * MIB - 1


def test_a_tensor_keeps_its_chunks_when_its_neighbours_change() -> None:
    before = cut_safetensors(_header(3, 6 * MIB, 9))
    after = cut_safetensors(_header(500, 70, 2 * MIB, 6 * MIB, length=333))

    assert before[2:4] == after[3:5] == (4 * MIB, 2 * MIB)


def test_small_tensors_are_never_sliced() -> None:
    sizes = (MIB - 1, MIB - 2, MIB - 3, MIB - 4, MIB - 5, 50)

    assert cut_safetensors(_header(*sizes)) == (100, sum(sizes[:4]), sum(sizes[4:]))


def test_another_file_keeps_its_chunks_as_it_grows() -> None:
    assert cut(9 * MIB)[:2] == cut(14 * MIB)[:2] == (CHUNK_BYTES, CHUNK_BYTES)
    assert cut(4 * MIB + 1) == (CHUNK_BYTES, 1)


def test_an_empty_file_has_no_chunks() -> None:
    assert cut(0) == ()
