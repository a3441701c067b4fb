"""Words that error messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def with_article(noun: str) -> str:
    """A noun with its indefinite article.

    >>> with_article("int"), with_article("list"), with_article("UNet")
    ('an int', 'a list', 'a UNet')
    """
    return f"{'an' if noun[:1] in 'aeioAEIO' else 'a'} {noun}"


def type_of(value: object) -> str:
    """The name of a value's class, with its article.

    >>> type_of(3), type_of([])
    ('an int', 'a list')
    """
    return with_article(type(value).__name__)


def shown(value: object) -> str:
    """A value as a message shows it: what it is instead, if it has many characters or lines.

    >>> shown("w8a8"), shown(list(range(99)))
    ("'w8a8'", 'a list')
    """
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else type_of(value)


def instead_of(name: object, known: Iterable[str]) -> str:
    """What to write instead of a name that does not exist: the one that was probably meant, or one of all.

    >>> instead_of("portabel", ["onnx", "portable"]), instead_of(None, ["onnx", "portable"])
    ('did you mean portable?', 'write one of onnx, portable.')
    """
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"did you mean {close[0]}?" if close else f"write one of {', '.join(names)}."
