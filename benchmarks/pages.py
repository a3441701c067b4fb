"""Pages with tables that programs write, each between two markers."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
"""The folder of README.md."""


def fill(path: Path, marker: str, text: str, check: bool) -> None:
    """Replace the text between the two markers of a page.

    Raises:
        SystemExit: the page has no such markers, or `check` is set and its text differs.
    """
    page = path.read_text()
    start, end = f"<!-- {marker} -->", f"<!-- end of {marker} -->"
    if start not in page or end not in page:
        raise SystemExit(f"{path.name} has no place for {marker!r}: write {start} and {end}, each on its line.")
    write_page(path, re.sub(f"{start}.*?{end}", lambda _: f"{start}\n{text}\n{end}", page, flags=re.DOTALL), check)


def write_page(path: Path, text: str, check: bool) -> None:
    """Write `text` unless the page holds it already.

    Raises:
        SystemExit: `check` is set and its text differs.
    """
    if text == path.read_text():
        return
    if check:
        raise SystemExit(f"{path.relative_to(ROOT)} is out of date: run python -m benchmarks.tables.")
    path.write_text(text)
