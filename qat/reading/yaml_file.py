"""YAML files: plain values only, of bounded size."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from qat.messages import type_of
from qat.reading.bounds import check_nesting
from qat.reading.malformed import malformed

MAX_BYTES = 1 << 20
MAX_VALUES = 100_000


class _EachKeyOnce(yaml.SafeLoader):
    """Refuses a mapping that has a key twice, of which YAML keeps the last. A key may replace one that `<<` merges."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            key = None if key_node.tag.endswith(":merge") else self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in keys:
                line = key_node.start_mark.line + 1
                raise ValueError(f"line {line} has the key {key!r} again, and the last alone would count")
            if isinstance(key, Hashable) and key is not None:
                keys.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not YAML, not a mapping, has a key twice, or its aliases stand for more than a configuration has.
    """
    with malformed(path, "is not a YAML file of keys and values", "correct it"):
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        content = yaml.load(text.decode(), _EachKeyOnce)
        if content is None:
            return {}
        if not isinstance(content, dict):
            raise ValueError(f"it is {type_of(content)}")
        if strange := [key for key in content if not isinstance(key, str)]:
            raise ValueError(f"its key {strange[0]!r} is not text")
        check_nesting(content, MAX_VALUES)
    return content
