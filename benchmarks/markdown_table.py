"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """A pipe table; the first `text_columns` columns are left-aligned, the others hold numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def count_threads(threads: int) -> str:
    """1 -> "1 thread", 2 -> "2 threads"."""
    return f"{threads} thread{'s' if threads > 1 else ''}"
