"""Records that are read from JSON, and checked by the types of their fields: a damaged file gets one clear error.

A record's fields are the keys of the file, in the order of the file. A field with a default may be
missing in the file; one whose default is None is written only where it has a value.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, Self, dataclass_transform, get_args, get_origin, get_type_hints

from pipeflow.safe_files import brief

_LARGEST = 1e24
"""More multiply-adds than years of training take."""
_NOT_FINITE = ("nan", "inf", "-inf")

Count = Annotated[int, lambda value: 0 <= value < _LARGEST]
Seconds = Annotated[float, lambda value: 0 <= value < _LARGEST]
Positive = Annotated[float, lambda value: 0 < value < _LARGEST]
Finite = Annotated[float, lambda value: abs(value) < _LARGEST]
Number = Annotated[float, lambda value: not _LARGEST <= abs(value) < math.inf]
"""A number that need not be finite: a loss or bits/dim of a run that diverges."""
Text = Annotated[str, lambda value: value.isprintable() and len(value) <= 500]
"""A name. Nothing in it moves the cursor of a terminal."""


class RecordError(ValueError):
    """A value in a file that no run writes; the message names the field: `epochs[3].seconds is -1`."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Record:
    """Base of the records: subclasses become frozen dataclasses that are written as JSON values and read back."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    def to_json(self) -> dict[str, Any]:
        """Gives the record as plain values. Numbers that are not finite stay floats."""
        values = ((field, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {
            field.name: _plain(value)
            for field, value in values
            if value is not None or field.default is dataclasses.MISSING
        }

    @classmethod
    def from_json(cls, value: object, name: str = "") -> Self:
        """Reads what `to_json` wrote, without keys that are no fields. name: of the place, for errors.

        Raises RecordError.
        """
        if not isinstance(value, dict):
            raise RecordError(f"{name or 'it'} is {brief(value)} and no mapping")
        read: dict[str, Any] = {}
        for field, kind in _fields(cls):  # type: ignore[arg-type]  # a class is hashable, whatever its instances are
            if field.name in value:
                read[field.name] = _read(kind, value[field.name], f"{name}.{field.name}" if name else field.name)
            elif field.default is dataclasses.MISSING:
                raise RecordError(f"{name or 'it'} has no {field.name}")
        return cls(**read)


def dumps(value: Any, indent: int | None = None) -> str:
    """Writes standard JSON, in which numbers that are not finite stand as "nan", "inf" and "-inf"."""
    return json.dumps(_in_words(value), allow_nan=False, indent=indent)


def _in_words(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _in_words(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_in_words(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@functools.cache
def _fields(record: Any) -> list[tuple[dataclasses.Field[Any], Any]]:
    types = get_type_hints(record, include_extras=True)
    return [(field, types[field.name]) for field in dataclasses.fields(record)]


def _read(kind: Any, value: Any, name: str) -> Any:
    """Reads a value of the type `kind`. Raises RecordError."""
    origin, arguments = get_origin(kind), get_args(kind)
    if NoneType in arguments:
        return None if value is None else _read(arguments[0], value, name)
    if isinstance(kind, type) and issubclass(kind, Record):
        return kind.from_json(value, name)
    if origin is Mapping:
        if not isinstance(value, dict):
            raise RecordError(f"{name} is {brief(value)} and no mapping")
        return {
            _read_plain(arguments[0], key, f"{name} has"): _read(arguments[1], item, f"{name}.{key}")
            for key, item in value.items()
        }
    if origin is tuple:
        if not isinstance(value, list):
            raise RecordError(f"{name} is {brief(value)} and no list")
        kinds = arguments if arguments[-1] is not Ellipsis else arguments[:1] * len(value)
        if len(kinds) != len(value):
            raise RecordError(f"{name} is {brief(value)}")
        return tuple(_read(each, item, f"{name}[{index}]") for index, (each, item) in enumerate(zip(kinds, value)))
    return _read_plain(kind, value, f"{name} is")


def _read_plain(kind: Any, value: Any, complaint: str) -> Any:
    """Reads a value of a type that is neither a list nor a mapping. complaint: how the error begins."""
    base: type
    if get_origin(kind) is Literal:
        base, is_right = str, get_args(kind).__contains__
    else:
        base, is_right = get_args(kind) or (kind, lambda _: True)
    read = float(value) if base is float and value in _NOT_FINITE else value
    fits = isinstance(read, (int, float) if base is float else base)
    if not fits or (isinstance(read, bool) and base in (int, float)) or not is_right(read):
        raise RecordError(f"{complaint} {brief(value)}")
    return read
