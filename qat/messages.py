"""Words of error messages."""

from __future__ import annotations


def with_article(noun: str) -> str:
    """A noun behind its article.

    >>> with_article("int"), with_article("list"), with_article("UNet")
    ('an int', 'a list', 'a UNet')
    """
    return f"{'an' if noun[:1] in 'aeioAEIO' else 'a'} {noun}"


def type_of(value: object) -> str:
    """What a value is, by the name of its class.

    >>> type_of(3), type_of([])
    ('an int', 'a list')
    """
    return with_article(type(value).__name__)
