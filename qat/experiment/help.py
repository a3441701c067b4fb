"""`qat train --help`. Hydra's own takes seconds: it copies the whole configuration for each group that it lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qat.experiment.configuration import CONFIGS, RECIPES
from qat.experiment.sweep.names import config_dir_options

TEXT = """\
Quantization-aware training, compared with PTQ, exported to int8 and verified.

qat train                                   the default recipe, digits_w2a2
qat train recipe=NAME [key=value ...]       another recipe; every key of its configuration can be changed
qat train recipe=NAME --cfg job             the whole configuration of a recipe
qat train -m policy=w4a4,w2a2 seed=0,1,2    a sweep, which ends in one table
qat train recipe=NAME --json                print the results as one JSON object, and all else on standard error
qat train --config-dir=DIR recipe=NAME      your own recipe, DIR/recipe/NAME.yaml

In a checkout, python train.py does the same. Configuration groups (change one with group=option):
{groups}

A run writes all its files into outputs/<recipe>/<time>; hydra.run.dir=PATH changes that. Every key: docs/configuration.md.
exit status: 0 good; 1 it failed, or the file differs; 2 the configuration is not possible"""


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether the arguments of a program ask how to use it."""
    return "--help" in words or "-h" in words


def help_text(words: Sequence[str]) -> str:
    """How to use the program, with every group and its options, also those of a folder after --config-dir.

    Args:
        words: the arguments of the program.
    """
    groups = options_of_groups(words)
    return TEXT.format(groups="\n".join(f"{name}: {', '.join(sorted(groups[name]))}" for name in sorted(groups)))


def options_of_groups(words: Sequence[str] = ()) -> dict[str, set[str]]:
    """The options of every configuration group. words: as in `help_text`."""
    groups: dict[str, set[str]] = {"recipe": {path.stem for path in RECIPES.glob("*.yaml")}}
    own = [
        option.partition("=")[2] or option
        for option in config_dir_options(words)
        if option[:2] != "--" or "=" in option
    ]
    for folder in (CONFIGS, *map(Path, own)):
        for path in folder.glob("*/*.yaml"):
            groups.setdefault(path.parent.name, set()).add(path.stem)
    return groups
