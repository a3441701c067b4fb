"""Conversion of frozen dataclasses to plain JSON values and back. The type annotations define the file format."""

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints


class SchemaError(ValueError):
    """A value that does not fit the documented results schema. The message says where it is and what to write."""


class Record:
    """Base class of every dataclass in the schema.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Point(Record):
    ...     x: float
    ...     label: str = ""
    >>> Point(1.5).to_dict()
    {'x': 1.5, 'label': ''}
    >>> Point.from_dict({"x": 1.5}) == Point(1.5)
    True
    """

    def to_dict(self) -> dict[str, Any]:
        """Convert to dicts, lists, strings, numbers, booleans and None, which `json.dumps` writes unchanged."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            SchemaError: a field is unknown, missing or of the wrong type; the message names it.
        """
        record: Self = _decode(cls, data, cls.__name__)
        return record


def to_plain(value: Any) -> Any:
    """Convert a value to JSON's types. Never fails, so that a finished run can always write its results.

    NaN and infinities become None, numpy and torch scalars become Python numbers, and objects of other types (paths,
    enums) become their string.

    >>> to_plain({"shape": (3, 32, 32), "loss": float("nan")})
    {'shape': [3, 32, 32], 'loss': None}
    """
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (Sequence, set, frozenset)):
        return [to_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays, without importing either
        return to_plain(value.tolist())
    return str(value)


def _decode(annotation: Any, value: Any, where: str) -> Any:
    """Convert a JSON value to the annotated type."""
    if annotation is Any:
        return value
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _decode_record(annotation, value, where)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):  # the schema's only unions are `X | None`
        present = next(argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else _decode(present, value, where)
    if origin is Literal:
        if value not in arguments:
            raise SchemaError(f"{where}={value!r}: expected one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (list, tuple):
        _require(value, (list, tuple), where)
        return origin(_decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        _require(value, (Mapping,), where)
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if annotation is float:
        _require(value, (float, int), where)
        if not math.isfinite(number := float(value)):
            raise SchemaError(f"{where}={value!r}: expected a finite number, or null if it is not known")
        return number
    _require(value, (annotation,), where)
    return value


def _decode_record(record_type: type, value: Any, where: str) -> Any:
    _require(value, (Mapping,), where)
    hints = get_type_hints(record_type)
    fields = {field.name: field for field in dataclasses.fields(record_type)}
    if unknown := sorted(set(value) - set(fields)):
        raise SchemaError(f"{where} has no field {unknown[0]!r}; its fields are {', '.join(fields)}")
    optional = {
        name
        for name, field in fields.items()
        if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    }
    if missing := [name for name in fields if name not in value and name not in optional]:
        raise SchemaError(f"{where} lacks the field {missing[0]!r}")
    return record_type(**{name: _decode(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def _require(value: Any, allowed: tuple[type, ...], where: str) -> None:
    is_stray_bool = isinstance(value, bool) and bool not in allowed  # a bool is an int to Python, not to a reader
    if not isinstance(value, allowed) or is_stray_bool:
        expected = " or ".join(cls.__name__ for cls in allowed)
        raise SchemaError(f"{where}={value!r}: expected {expected}, got {type(value).__name__}")
