"""Typed reading of JSON objects that somebody else wrote.

Every reader returns a checked value or raises `RemoteProtocolError`, never any other error. Unknown
fields are ignored, so that a newer agent may say more.
"""

import binascii
import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Final, NoReturn, TypeVar, cast

from damselfly.errors import RemoteProtocolError
from damselfly.model.bitmap import Bitmap
from damselfly.model.bounded_json import loads
from damselfly.model.digest import DIGEST_BYTES, Digest

VALUES_MAX: Final = 1 << 18
"""Lists have some thousand entries; what is long, bits and digests, is text."""

_T = TypeVar("_T")
_HEX_64: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def written(value: dict[str, object]) -> bytes:
    """Write one JSON object on one line, without the line's end."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def base64_of(data: bytes) -> str:
    """Write bytes inside of JSON."""
    return b64encode(data).decode()


class Fields:
    """One JSON object from outside, read field by field."""

    __slots__ = ("_items", "_what")

    def __init__(self, what: str, items: dict[str, object]) -> None:
        self._what = what
        self._items = items

    @classmethod
    def parse(cls, what: str, data: bytes, bytes_max: int) -> "Fields":
        """Read an object of at most `bytes_max` bytes.

        Raises:
            RemoteProtocolError: too long, not JSON, not an object, nested too deeply.
        """
        if len(data) > bytes_max:
            raise RemoteProtocolError(f"{what} has {len(data)} bytes, at most {bytes_max} may be")
        try:
            value = loads(data, values_max=VALUES_MAX)
        except ValueError as exc:
            raise RemoteProtocolError(f"{what} is not JSON") from exc
        if not isinstance(value, dict):
            raise RemoteProtocolError(f"{what} is not a JSON object")
        return cls(what, cast(dict[str, object], value))

    def has(self, name: str) -> bool:
        """The field is there, and not null."""
        return self._items.get(name) is not None

    def text(self, name: str, pattern: re.Pattern[str]) -> str:
        """A string that matches as a whole."""
        value = self._items.get(name)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            self._refuse(name)
        return value

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """An integer in `[low, high]`."""
        return checked_integer(self._items.get(name, default), low, high, self._told(name))

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number in `[low, high]`."""
        value = self._items.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._refuse(name)
        if not low <= value <= high:
            self._refuse(name)
        return float(value)

    def flag(self, name: str) -> bool:
        """A boolean; absent means false."""
        value = self._items.get(name, False)
        if not isinstance(value, bool):
            self._refuse(name)
        return value

    def items(self, name: str, count_max: int, read: Callable[[object], _T]) -> tuple[_T, ...]:
        """A list of at most `count_max` values, each read by `read`; absent means empty."""
        value = self._items.get(name)
        if value is None:
            return ()
        if not isinstance(value, list):
            self._refuse(name)
        values = cast(list[object], value)
        if len(values) > count_max:
            self._refuse(name)
        return tuple(map(read, values))

    def fields(self, name: str) -> "Fields":
        """An object inside of this one."""
        value = self._items.get(name)
        if not isinstance(value, dict):
            self._refuse(name)
        return Fields(f"{name} of {self._what}", cast(dict[str, object], value))

    def raw(self, name: str, length: int) -> bytes:
        """Exactly `length` bytes, written in base64."""
        value = self._items.get(name)
        if not isinstance(value, str) or len(value) != (length + 2) // 3 * 4:
            self._refuse(name)
        try:
            return b64decode(value, validate=True)
        except (binascii.Error, ValueError) as exc:
            raise RemoteProtocolError(self._told(name)) from exc

    def bits(self, name: str, size: int) -> int:
        """A set of indexes below `size`, written as a bitmap in base64; absent means empty."""
        if not self.has(name):
            return 0
        return Bitmap.parse(size, self.raw(name, (size + 7) // 8)).bits

    def digest(self, name: str) -> Digest | None:
        """A digest, as 64 hex digits; absent means none."""
        if not self.has(name):
            return None
        return Digest(bytes.fromhex(self.text(name, _HEX_64)))

    def _told(self, name: str) -> str:
        return f"{self._what} has a bad field {name!r}"

    def _refuse(self, name: str) -> NoReturn:
        raise RemoteProtocolError(self._told(name))


def checked_integer(value: object, low: int, high: int, message: str) -> int:
    """An integer in `[low, high]`, or `RemoteProtocolError(message)`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RemoteProtocolError(message)
    return value


def checked_tuple(value: object, length: int, message: str) -> list[object]:
    """A list of exactly `length` values, or `RemoteProtocolError(message)`."""
    if not isinstance(value, list) or len(cast(list[object], value)) != length:
        raise RemoteProtocolError(message)
    return cast(list[object], value)


def checked_text(value: object, pattern: re.Pattern[str], message: str) -> str:
    """A string that matches as a whole, or `RemoteProtocolError(message)`."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise RemoteProtocolError(message)
    return value


def checked_digest(value: object, message: str) -> Digest:
    """A digest as 64 hex digits, or `RemoteProtocolError(message)`."""
    return Digest(bytes.fromhex(checked_text(value, _HEX_64, message)))


def digests_of(fields: Fields, name: str, known: int) -> dict[int, Digest]:
    """The digests of the indexes in `known`, one after the other in base64."""
    if not known:
        return {}
    data = fields.raw(name, known.bit_count() * DIGEST_BYTES)
    return {
        index: Digest(data[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES])
        for place, index in enumerate(Bitmap(known.bit_length(), known))
    }
