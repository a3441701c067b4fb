"""Writes docs/configuration.md from the schema of the configuration: `python docs/write_configuration.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from qat.experiment.configuration import compose
from qat.experiment.schema import Configuration
from qat.experiment.schema.nodes import Node
from qat.experiment.schema.values import Section
from qat.experiment.schema.words import field_values, keys_of, sections_in

TARGET = Path(__file__).parent / "configuration.md"
HEAD = """# Configuration

Every key of `qat train`, from its schema (`qat/experiment/schema/`) by `python docs/write_configuration.py`; a test compares
the two. "default" is the value in `recipe=digits_w4a8`. A whole configuration is checked before anything is created: an unknown
key, or a value that is not in these tables, ends the program with status 2 and one sentence.

A key without a default is added with a plus, `+trainer.gradient_clip_val=1.0`. Where `_target_` names a class of your own, its
arguments are checked against its signature. Keys of your own, for `${my_key}`, are allowed where another key refers to them.
"""


def document() -> str:
    """The text of the whole file."""
    content: Any = OmegaConf.to_container(compose(), resolve=True)
    tables = [_table("", Configuration, content), *_tables(Configuration, content, "", set())]
    return "\n".join([HEAD, *tables])


def _tables(section: type[Section], content: Any, prefix: str, seen: set[type[Section]]) -> Iterator[str]:
    for name, field in keys_of(section).items():
        for inner in dict.fromkeys(sections_in(field.annotation, field.metadata)):
            if inner in seen or not keys_of(inner):
                continue
            seen.add(inner)
            below = content.get(name) if isinstance(content, dict) else None
            yield _table(f"{prefix}{name}", inner, below)
            yield from _tables(inner, below, f"{prefix}{name}.", seen)


def _table(key: str, section: type[Section], content: Any) -> str:
    title = f"`{key}`: {section.__name__}" if key else "The top"
    targets = [f"`{t}*`" if t.endswith(".") else f"`{t}`" for t in getattr(section, "TARGETS", ())]
    kind = f" `_target_`: {', '.join(targets)}." if issubclass(section, Node) and targets else ""
    rows = [
        f"| `{name}` | {_cell(field_values(field))} | {_default(name, content)} | {_cell(field.description or '')} |"
        for name, field in keys_of(section).items()
    ]
    about = " ".join((section.__doc__ or "").split())
    return "\n".join(
        [f"## {title}\n", f"{about}{kind}\n", "| key | values | default | |", "| --- | --- | --- | --- |", *rows, ""]
    )


def _default(name: str, content: Any) -> str:
    value = content.get(name, ...) if isinstance(content, dict) else ...
    if value is ... or isinstance(value, dict | list):
        return ""
    return (
        "null"
        if value is None
        else str(value).lower()
        if isinstance(value, bool)
        else f"`{value}`"
        if value != ""
        else "''"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
