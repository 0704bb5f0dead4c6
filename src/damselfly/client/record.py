"""Records: frozen dataclasses that cross the agent's socket as JSON objects."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from math import isfinite
from types import NoneType, UnionType
from typing import Any, ClassVar, Self, cast, get_args, get_origin, get_type_hints

from damselfly.errors import RemoteProtocolError

TEXT_LENGTH_MAX = 64 * 1024


class Record:
    """A frozen dataclass whose fields are text, numbers, truths, other records, or tuples of them.

    Reading is strict about what is there and easy about what is new: a missing or mistyped field
    is an error, an unknown one is passed over, because a newer agent may say more.
    """

    event: ClassVar[str] = ""
    """What a stream calls it."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def to_json(self) -> dict[str, object]:
        """The record as `json.dumps` takes it."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def parse(cls, value: object, *, unknown_is_error: bool = False) -> Self:
        """Read a record from parsed JSON.

        Raises:
            RemoteProtocolError: A field is missing or has the wrong type.
        """
        given = _mapping(value, cls.__name__)
        hints = _hints(cls)
        found: dict[str, object] = {}
        for field in fields(cls):
            if field.name in given:
                where = f"{cls.__name__}.{field.name}"
                found[field.name] = _read(given[field.name], hints[field.name], where)
            elif field.default is MISSING and field.default_factory is MISSING:
                raise RemoteProtocolError(f"{cls.__name__} lacks the field {field.name!r}")
        if unknown_is_error and (unknown := sorted(set(given) - set(hints))):
            raise RemoteProtocolError(f"{cls.__name__} has no field {unknown[0]!r}")
        return cls(**found)


_KNOWN: dict[type[Record], dict[str, Any]] = {}


def _hints(cls: type[Record]) -> dict[str, Any]:
    """The types of a record's fields, looked up once."""
    if (known := _KNOWN.get(cls)) is None:
        hints = get_type_hints(cls)
        known = _KNOWN[cls] = {field.name: hints[field.name] for field in fields(cls)}
    return known


def _plain(value: object) -> object:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, tuple):
        return [_plain(item) for item in cast("tuple[object, ...]", value)]
    return value


def _mapping(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise RemoteProtocolError(f"{what} is not a JSON object")
    return cast("dict[str, object]", value)


def _read(value: object, hint: Any, where: str) -> object:  # noqa: ANN401 - a type, of any kind
    """Check one value against the type that its field declares."""
    if isinstance(hint, UnionType):
        choices = [choice for choice in get_args(hint) if choice is not NoneType]
        assert len(choices) == 1, "records know `X | None`, and no other union"
        return None if value is None else _read(value, choices[0], where)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise RemoteProtocolError(f"{where} is not a list")
        return tuple(_read(item, get_args(hint)[0], where) for item in cast("list[object]", value))
    if issubclass(hint, Record):
        return hint.parse(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (
        type(value) is not hint
        or (isinstance(value, str) and len(value) > TEXT_LENGTH_MAX)
        or (isinstance(value, float) and not isfinite(value))
    ):
        raise RemoteProtocolError(f"{where} is not {_SPOKEN[hint]}")
    return value


_SPOKEN: dict[type, str] = {str: "text", int: "a whole number", float: "a number", bool: "a truth"}
