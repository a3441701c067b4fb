"""Words that error messages share."""

from __future__ import annotations


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
