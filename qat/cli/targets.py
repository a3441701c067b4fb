"""The target of a command line: by `--target`, or by the name of the file."""

from __future__ import annotations

from pathlib import Path

from qat.cli.errors import UsageError
from qat.export.targets import TARGETS, Target, target_named, target_of_file


def target_of(path: Path, name: str | None = None) -> Target:
    """The target of a name, else of a file's suffix.

    Raises:
        UsageError: there is no such target, or it does not write files of this name.
    """
    if name is None:
        found = target_of_file(path)
        if found is None:
            known = ", ".join(f"{t.name} ({' or '.join(t.suffixes)})" for t in TARGETS)
            raise UsageError(f"--output {path} ends in nothing that can be written: write a name for one of {known}.")
        return found
    try:
        target = target_named(name)
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    if path.suffix not in target.suffixes:
        raise UsageError(
            f"--output {path} is not a file name for --target {name}: write one that ends in {target.suffixes[0]}."
        )
    return target
