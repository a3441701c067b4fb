"""Keys that stand twice in one {...} of an override."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hydra.core.override_parser.overrides_parser import (
    CommonTokenStream,
    InputStream,
    OverrideLexer,
    OverrideParser,
    create_functions,
)
from hydra.core.override_parser.overrides_visitor import HydraOverrideVisitor


def check_each_key_once(override: str) -> None:
    """Refuse an override in which a key stands twice in one {...}: Hydra would keep the last without a word.

    Args:
        override: as it was written, of a syntax that Hydra can read.

    Raises:
        ValueError: a key stands there twice; 0 and 0.0 are one key.

    >>> check_each_key_once("progressive={0.0: 8, 0.5: 4}")
    >>> check_each_key_once("progressive={0.0: 8, 0: 2}")
    Traceback (most recent call last):
    ...
    ValueError: progressive={0.0: 8, 0: 2} has the key 0 twice, and the last alone would count: write each key once.
    """
    visitor = HydraOverrideVisitor(create_functions())
    for mapping in _mappings(OverrideParser(CommonTokenStream(OverrideLexer(InputStream(override)))).override()):
        keys = []
        for pair in mapping.dictKeyValuePair():
            key = visitor.visitDictKey(pair.dictKey())
            if key in keys:
                text = pair.dictKey().getText()
                raise ValueError(
                    f"{override} has the key {text} twice, and the last alone would count: write each key once."
                )
            keys.append(key)


def _mappings(node: Any) -> Iterator[Any]:
    """Every {...} in a syntax tree."""
    if isinstance(node, OverrideParser.DictContainerContext):
        yield node
    for child in getattr(node, "children", None) or ():
        yield from _mappings(child)
