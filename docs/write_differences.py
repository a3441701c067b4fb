"""Writes docs/differences_from_papers.md from the docstrings: `python docs/write_differences.py`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "differences_from_papers.md"
HEAD = """# Differences from papers

Collected from the docstrings by `python docs/write_differences.py`; a test compares the two.
"""


def differences(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of each class, function and module of a file whose docstring has a paragraph "Differs from the paper:"."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            name = path.stem if isinstance(node, ast.Module) else node.name
            for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                if found := re.match(r"Differs from the papers?:", paragraph):
                    yield name, " ".join(paragraph[found.end() :].split())


def document() -> str:
    """The text of the whole file."""
    sections = [
        f"## {name}\n\n`{path.relative_to(ROOT).as_posix()}`: {text}\n"
        for path in sorted((ROOT / "qat").rglob("*.py"))
        for name, text in differences(path)
    ]
    return "\n".join([HEAD, *sections])


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
