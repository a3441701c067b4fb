"""How the failure of a candidate is recorded. Needs no package."""

from __future__ import annotations


def failure_line(error: BaseException) -> str:
    """The type of an error and the first line of its message that is not empty, at most 300 characters."""
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {message}"[:300]
