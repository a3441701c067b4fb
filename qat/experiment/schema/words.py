"""The schema in words: what a key can be set to, and which keys there are. Errors and the documentation use them."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import annotated_types
from pydantic.fields import FieldInfo

from qat.experiment.schema.nodes import Node, OneOf
from qat.experiment.schema.values import Says, Section

SCALARS = {bool: "true or false", str: "text", type(None): "null", dict: "keys and values"}


def values_of(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """What can be written for a type.

    >>> from qat.experiment.schema.values import Bits, Share
    >>> values_of(Bits | None), values_of(Share), values_of(Literal["zeros", "reflect"])
    ('a whole number from 2 to 8, or null', 'a number from 0 to 1', 'zeros or reflect')
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return values_of(inner[0], (*_flat(inner[1:]), *metadata))
    for item in metadata:
        if isinstance(item, Says):
            return item.text
        if isinstance(item, OneOf):
            return _node_values(item)
    if origin in (typing.Union, types.UnionType):
        said = [values_of(one) for one in sorted(inner, key=lambda one: one is type(None))]
        return _any_of([one for one in said if one])  # "" cannot be said
    if origin is Literal:
        return _any_of([str(value).lower() if isinstance(value, bool) else str(value) for value in inner])
    if annotation in (int, float):
        return ("a whole number" if annotation is int else "a number") + _range(metadata)
    if origin is list:
        return f"a list of {_plural(values_of(inner[0]))}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f"keys, {{{', '.join(f'{key}: ...' for key in keys_of(annotation))}}}"
    if origin is dict and (says := values_of(inner[1])).startswith("keys"):
        return f"names with {says}"
    return SCALARS.get(annotation if origin is None else origin, "a value")


def field_values(field: FieldInfo) -> str:
    """What can be written for a field."""
    return values_of(field.annotation, tuple(_flat(field.metadata)))


def keys_of(section: type[Section]) -> dict[str, FieldInfo]:
    """The keys of a section, without Hydra's own (`_target_`, ...)."""
    return {name: field for name, field in section.model_fields.items() if field.alias is None}


def sections_in(annotation: Any, metadata: Any = (), named: bool = True) -> Iterator[type[Section]]:
    """The classes of keys inside a type: sections and kinds of nodes.

    Args:
        annotation: the type.
        metadata: of the type.
        named: also those under names that the user chooses, as callbacks.NAME.
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from sections_in(inner[0], (*inner[1:], *metadata), named)
        return
    for item in metadata:
        if isinstance(item, OneOf):
            yield from (*item.kinds, item.other)
    if origin in (typing.Union, types.UnionType) or (named and origin in (list, dict)):
        for one in inner:
            yield from sections_in(one, (), named)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation


def all_keys() -> list[str]:
    """The dotted name of every key whose name is not the user's own: seed, optim.lr, trainer.gradient_clip_val, ..."""
    from qat.experiment.schema.configuration import Configuration

    def below(section: type[Section], prefix: str) -> Iterator[str]:
        for name, field in keys_of(section).items():
            yield f"{prefix}{name}"
            for inner in sections_in(field.annotation, field.metadata, named=False):
                yield from below(inner, f"{prefix}{name}.")

    return list(dict.fromkeys(below(Configuration, "")))


def at(annotation: Any, metadata: Any, key: str | int, value: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type, with its metadata, of what lies under a key of `value`; (None, ()) if the schema does not say.

    Args:
        annotation: the type of `value`.
        metadata: of that type.
        key: in `value`, or missing there.
        value: what the configuration has.
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return at(inner[0], (*_flat(inner[1:]), *metadata), key, value)
    for item in metadata:
        if isinstance(item, OneOf):
            annotation = item.kind(value)
            origin = None
    if origin in (typing.Union, types.UnionType):
        found = (at(one, (), key, value) for one in inner)
        return next((pair for pair in found if pair[0] is not None), (None, ()))
    if origin is list and isinstance(key, int):
        return inner[0], ()
    if origin is dict and isinstance(value, Mapping):
        return inner[1], ()
    if isinstance(annotation, type) and issubclass(annotation, Section):
        fields = {field.alias or name: field for name, field in annotation.model_fields.items()}
        if key in fields:
            return fields[str(key)].annotation, tuple(_flat(fields[str(key)].metadata))
    return None, ()


def type_of(key: str, content: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type, with its metadata, of a dotted key, whether or not `content` has it; (None, ()) if the schema does not say."""
    from qat.experiment.schema.configuration import Configuration

    here: tuple[Any, tuple[Any, ...]] = (Configuration, ())
    for step in key.split("."):
        here = at(*here, step, content)
        content = (content.get(step) if isinstance(content, Mapping) else None) or {}
    return here


def _node_values(one_of: OneOf) -> str:
    targets = [t for kind in one_of.kinds if issubclass(kind, Node) for t in kind.TARGETS if not t.endswith(".")]
    example = targets[0] if targets else "NAME"
    said = f"keys, as {{_target_: {example}, ...}}"
    if one_of.text:
        said = "the name of a class, or " + said
    return f"{said}, or null" if one_of.null else said


def _range(metadata: Any) -> str:
    """' from 1 to 8', from bounds."""
    bounds = {type(item): item for item in metadata}
    low, above = bounds.get(annotated_types.Ge), bounds.get(annotated_types.Gt)
    high, below = bounds.get(annotated_types.Le), bounds.get(annotated_types.Lt)
    start = f" from {_number(low.ge)}" if low else f" above {_number(above.gt)}" if above else ""
    end = f"{_number(high.le)}" if high else f"below {_number(below.lt)}" if below else ""
    if not end:
        return start
    joint = "up to" if above and high else "and" if above else "to"
    return f"{start} {joint} {end}"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) or float(value).is_integer() else f"{value:g}"


def _plural(said: str) -> str:
    """'whole numbers from 2 to 8' of 'a whole number from 2 to 8'; choices stay as they are."""
    return re.sub(r"^(?:a )?(text|number|whole number)\b", r"\1s", said)


def _any_of(options: list[str]) -> str:
    options = list(dict.fromkeys(options))
    if len(options) == 1:
        return options[0]
    plain = all(" " not in option for option in options)
    return ", ".join(options[:-1]) + (" or " if plain else ", or ") + options[-1]


def _flat(metadata: Any) -> Iterator[Any]:
    """Metadata without the FieldInfo around some of it."""
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _flat(item.metadata)
        else:
            yield item
