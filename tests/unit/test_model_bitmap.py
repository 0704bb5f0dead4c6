"""Bitmaps on the wire; their algebra is in tests/property."""

import pytest

from damselfly.errors import RemoteProtocolError
from damselfly.model.bitmap import Bitmap, indexes_of


def test_bit_i_is_bit_i_mod_8_of_byte_i_div_8() -> None:
    assert Bitmap.of(20, [0, 9, 19]).to_bytes() == bytes([0b1, 0b10, 0b1000])


@pytest.mark.parametrize(
    ("size", "data"),
    [(8, b""), (8, b"\0\0"), (9, b"\0"), (0, b"\0"), (7, b"\x80"), (9, b"\0\x02")],
)
def test_a_bitmap_of_the_wrong_size_is_refused(size: int, data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=f"a bitmap of {size} chunks"):
        Bitmap.parse(size, data)


def test_an_empty_bitmap_is_full() -> None:
    assert Bitmap(0).is_full
    assert Bitmap.parse(0, b"") == Bitmap.full(0)


def test_a_copy_is_independent() -> None:
    bitmap = Bitmap.of(5, [1])
    copy = bitmap.copy()

    copy.add(2)
    bitmap.discard(1)

    assert list(bitmap) == []
    assert list(copy) == [1, 2]
    assert repr(copy) == "<Bitmap 2/5>"


def test_sparse_bits_are_found_in_order() -> None:
    assert list(indexes_of(1 | 1 << 63 | 1 << 64 | 1 << 200_000)) == [0, 63, 64, 200_000]
