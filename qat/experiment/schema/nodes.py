"""Parts of the configuration that name a class or function, `_target_`, and its arguments: ours, a library's or the user's."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, ValidationInfo, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from qat.experiment.schema.values import Section

LIBRARIES = ("qat.", "torch.", "lightning.")
"""Packages whose classes take no infinite number."""
NONE, TEXT = "<none>", "<text>"


def wrong(sentence: str, *key: str | int) -> PydanticCustomError:
    """The error of a validator. `{key}` in its sentence becomes the full name of the key, which lies `*key` below the part."""
    return PydanticCustomError("wrong", "{sentence}", {"sentence": sentence, "key": list(key)})


def unknown(key: str, known: list[str], owner: str = "") -> PydanticCustomError:
    """The error for an unknown key."""
    return PydanticCustomError("unknown", "unknown", {"key": [key], "known": known, "owner": owner})


def may_import(info: ValidationInfo) -> bool:
    """Whether this is the second pass, which imports what is named: the first finds most mistakes without torch."""
    return bool((info.context or {}).get("may_import"))


class Node(Section):
    """Anything with a `_target_`. Its arguments are checked against the signature of what it names."""

    model_config = ConfigDict(extra="allow")

    TARGETS: ClassVar[tuple[str, ...]] = ()
    """What the class describes: names, or prefixes that end in a dot. Other targets are a plain Node."""
    GIVEN: ClassVar[Mapping[str, str]] = {}
    """Arguments that only the run knows, and what to write instead."""
    NO_ARGUMENTS: ClassVar[tuple[str, ...]] = ()
    """Keys beside the arguments."""

    target_: str = Field(alias="_target_", min_length=1)
    """dotted name of a class or function"""
    partial_: bool = Field(False, alias="_partial_")
    """true: the run adds arguments and calls it later"""
    recursive_: bool = Field(True, alias="_recursive_")
    """false: parts inside are handed over as they are"""
    convert_: Literal["none", "partial", "object", "all"] = Field("none", alias="_convert_")
    """how Hydra hands over lists and dicts"""
    args_: list[Any] = Field(default_factory=list, alias="_args_")
    """positional arguments"""

    @model_validator(mode="after")
    def _check_arguments(self, info: ValidationInfo) -> Node:
        given = self.arguments()
        for name, value in given.items():
            if name in self.GIVEN:
                raise wrong(f"{{key}} is set by the run: {self.GIVEN[name]}.", name)
            if not _finite(value, infinite=not self.target_.startswith(LIBRARIES)):
                raise wrong("{key}={value} is not possible: write a finite number.", name)
        if may_import(info):
            found = self.find(self.target_, "_target_")
            self._check_signature(found, given)
            self.check_further(found)
        return self

    def _check_signature(self, found: Any, given: Mapping[str, Any]) -> None:
        parameters = self.parameters(found)
        if parameters is None:
            return
        takes_others = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name, value in given.items():
            if name not in parameters and takes_others:
                continue
            if name not in parameters:
                raise unknown(name, [*parameters, *self.NO_ARGUMENTS], self.target_.rpartition(".")[2])
            if not fits(value, _annotation(parameters[name], found)):
                expected = inspect.formatannotation(parameters[name].annotation).replace("typing.", "")
                raise wrong(f"{{key}}={{value}} is not possible: {self.target_} takes {expected}.", name)

    def arguments(self) -> dict[str, Any]:
        """The arguments that the configuration gives, as they stand there."""
        given = self.model_dump(by_alias=True, exclude_unset=True, warnings=False)
        return {k: v for k, v in given.items() if k not in ("_target_", *self.NO_ARGUMENTS) and not _is_directive(k)}

    @classmethod
    def find(cls, name: str, *key: str) -> Any:
        """What a dotted name stands for; `key` is where the name stands, below the node."""
        from hydra.utils import get_object, log

        log.disabled = True  # it prints what the error says
        try:
            return get_object(name)
        except Exception as error:  # whatever a module of the user's does on import
            reason = " ".join(str(error.__cause__ or error).split())[:160]
            raise wrong(
                f"{{key}}={{value}} cannot be imported ({reason}): write the dotted name of a class or function.", *key
            ) from None
        finally:
            log.disabled = False

    def parameters(self, found: Any) -> Mapping[str, inspect.Parameter] | None:
        """The arguments that the target takes, less those given by the run; None if that cannot be known."""
        try:
            parameters = inspect.signature(found).parameters
        except (TypeError, ValueError):  # some classes in C have no signature
            return None
        return {name: p for name, p in parameters.items() if name not in self.GIVEN}

    def check_further(self, found: Any) -> None:
        """What a kind of node checks beyond its keys; raises `wrong`."""
        if self.target_.startswith("lightning.pytorch.callbacks."):
            self.build_once()

    def build_once(self) -> None:
        """Build the node and discard it: what its class refuses is an error of this key."""
        from hydra.errors import InstantiationException
        from hydra.utils import instantiate

        try:
            instantiate(self.model_dump(by_alias=True, exclude_unset=True, warnings=False), _convert_="all")
        except (InstantiationException, TypeError, ValueError) as error:
            cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
            text = " ".join(str(cause).split())
            if isinstance(cause, AttributeError | TypeError):  # it says what went wrong inside, and not what to write
                raise wrong(f"{{key}} cannot be built ({text}): write arguments that {self.target_} takes.") from None
            raise wrong(f"{{key}}: {text}") from None


class Off(Section):
    """A group that is switched off."""

    target_: None = Field(alias="_target_")
    """null"""


@dataclass(frozen=True)
class OneOf:
    """Metadata of a type: a node of one of these kinds, decided by `_target_`, or another one.

    Args:
        kinds: classes with TARGETS; Off for `_target_: null`.
        other: the kind of every other target.
        null: whether the key may be null.
        text: whether a name alone is enough: `other.find(name)` raises `wrong` if there is no such thing.
    """

    kinds: tuple[type[Section], ...]
    other: type[Node] = Node
    null: bool = False
    text: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {f"<{kind.__name__}>": handler.generate_schema(kind) for kind in (*self.kinds, self.other)}
        if self.null:
            choices[NONE] = core_schema.none_schema()
        if self.text:
            choices[TEXT] = core_schema.with_info_plain_validator_function(self._named)
        return core_schema.tagged_union_schema(choices, self.tag)

    def kind(self, value: Any) -> type[Section] | None:
        """The class that describes a value; None if it is not a node."""
        if not isinstance(value, Mapping):
            return None
        target = value.get("_target_")
        for kind in self.kinds:
            if issubclass(kind, Off):
                if target is None and "_target_" in value:
                    return kind
            elif any(target == t or (t.endswith(".") and str(target).startswith(t)) for t in _targets(kind)):
                return kind
        return self.other

    def tag(self, value: Any) -> str | None:
        """How pydantic finds the class."""
        if value is None and self.null:
            return NONE
        if self.text and isinstance(value, str):
            return TEXT
        kind = self.kind(value)
        return None if kind is None else f"<{kind.__name__}>"

    def _named(self, name: str, info: ValidationInfo) -> str:
        if may_import(info):
            self.other.find(name)
        return name


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value can be meant by an annotation. Classes are built from parts with `_target_`, so these always can.

    >>> fits(1, float), fits("1", float), fits(True, int), fits([0.9, 0.99], tuple[float, float]), fits("x", int | None)
    (True, False, False, True, False)
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return fits(value, inner[0])
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in inner)
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str, list, dict):
        return isinstance(value, annotation)
    if origin is dict or getattr(origin, "__name__", "") == "Mapping":
        return isinstance(value, dict)
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        return isinstance(value, list) and len(value) == len(inner) and all(map(fits, value, inner))
    if origin in (list, tuple) or getattr(origin, "__name__", "") in ("Sequence", "Iterable"):
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value) if inner else True
    return True  # a class, or an annotation that is not known here


def _targets(kind: type[Section]) -> tuple[str, ...]:
    return kind.TARGETS if issubclass(kind, Node) else ()


def _is_directive(key: str) -> bool:
    return key in ("_partial_", "_recursive_", "_convert_", "_args_")


def _annotation(parameter: inspect.Parameter, owner: Any) -> Any:
    """The type of a parameter, read in the module of its owner; Any if it has none that can be read."""
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return Any
    try:
        holder: Any = SimpleNamespace(__annotations__={"it": annotation})
        globals_ = vars(inspect.getmodule(owner)) if inspect.getmodule(owner) else {}
        return typing.get_type_hints(holder, globalns=globals_)["it"]
    except Exception:  # a name that is imported for type checkers only
        return Any


def _finite(value: Any, infinite: bool) -> bool:
    return all(not math.isnan(n) and (infinite or not math.isinf(n)) for n in _numbers(value))


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner)
