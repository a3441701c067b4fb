"""The options of `qat train` beside the overrides: those of Hydra."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser  # no public function says which options Hydra takes


def options_first(words: Sequence[str]) -> list[str]:
    """The same arguments, options first and by their full names: Hydra takes overrides behind an option for unknown arguments.

    Args:
        words: the arguments of the program.

    Raises:
        ValueError: there is no such option, or its value is missing or not possible.

    >>> options_first(["recipe=digits_w8a8", "-m", "seed=0,1", "--config-d=mine"])
    ['--config-dir=mine', '--multirun', 'recipe=digits_w8a8', 'seed=0,1']
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        known, unknown = parser.parse_known_intermixed_args(list(words))
    except argparse.ArgumentError as error:
        name = (error.argument_name or "").partition("/")[0]
        raise ValueError(f"{name}: {error.message} (--help says more)") from error
    if unknown:
        raise ValueError(_unknown(unknown[0], [f"--{name.replace('_', '-')}" for name in vars(known)]))
    overrides = vars(known).pop("overrides")
    given = {name.replace("_", "-"): value for name, value in vars(known).items() if value}
    return [*sorted(f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()), *overrides]


def _unknown(word: str, known: Sequence[str]) -> str:
    name, _, value = word.partition("=")
    if name == "--json":
        return "--json is an option of `qat train`, whose results go to standard output alone: write qat train --json."
    if near := difflib.get_close_matches(name, known, n=1, cutoff=0.75):
        return f"unknown option {word}; did you mean {near[0]}?"
    if value:
        return f"unknown option {word}: write {name.lstrip('-')}={value}, without the dashes."
    return f"unknown option {word}: values are written key=value, and --help lists what there is."
