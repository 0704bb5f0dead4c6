"""Records: frozen values that cross the agent's socket as JSON objects.

They look like frozen dataclasses, to readers and to type checkers, and are not: making two dozen of
those takes `dataclasses` 20 ms, and a command has 60 ms to start.
"""

from collections.abc import Mapping
from math import isfinite
from types import NoneType, UnionType
from typing import (
    Any,
    ClassVar,
    NoReturn,
    Self,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from damselfly.errors import RemoteProtocolError

TEXT_LENGTH_MAX = 64 * 1024


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Record:
    """A value whose fields are text, numbers, truths, other records, or tuples of them.

    Reading is strict about what is there and easy about what is new: a missing or mistyped field
    is an error, an unknown one is passed over, because a newer agent may say more.
    """

    event: ClassVar[str] = ""
    """What a stream calls it."""
    fields: ClassVar[Mapping[str, Any]] = {}
    """Its fields by name, with their types."""
    defaults: ClassVar[Mapping[str, object]] = {}
    """The values of fields that may be left out."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        hints = get_type_hints(cls)
        cls.fields = {
            name: hint for name, hint in hints.items() if get_origin(hint) is not ClassVar
        }
        cls.defaults = {name: getattr(cls, name) for name in cls.fields if hasattr(cls, name)}

    def __init__(self, **values: object) -> None:
        if unknown := values.keys() - self.fields.keys():
            raise TypeError(f"{type(self).__name__} has no field {min(unknown)!r}")
        if missing := self.fields.keys() - values.keys() - self.defaults.keys():
            raise TypeError(f"{type(self).__name__} needs the field {min(missing)!r}")
        vars(self).update({**self.defaults, **values})

    def but(self, **changes: object) -> Self:
        """The same with some fields changed."""
        return type(self)(**{**vars(self), **changes})

    def to_json(self) -> dict[str, object]:
        """The record as `json.dumps` takes it."""
        return {name: _plain(getattr(self, name)) for name in self.fields}

    @classmethod
    def parse(cls, value: object, *, unknown_is_error: bool = False) -> Self:
        """Read a record from parsed JSON.

        Raises:
            RemoteProtocolError: A field is missing or has the wrong type.
        """
        given = _mapping(value, cls.__name__)
        found: dict[str, object] = {}
        for name, hint in cls.fields.items():
            if name in given:
                found[name] = _read(given[name], hint, f"{cls.__name__}.{name}")
            elif name not in cls.defaults:
                raise RemoteProtocolError(f"{cls.__name__} lacks the field {name!r}")
        if unknown_is_error and (unknown := given.keys() - cls.fields.keys()):
            raise RemoteProtocolError(f"{cls.__name__} has no field {min(unknown)!r}")
        return cls(**found)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed: records are frozen")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *(getattr(self, name) for name in self.fields)))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.fields)
        return f"{type(self).__name__}({shown})"


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
