"""Names of folders: a sweep's after its arguments, a job's after what makes it another than the rest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from omegaconf import OmegaConf

LONGEST = 120
"""Characters of a name; file systems allow 255 bytes."""
VARIES = re.compile(r"=(?:[^\[{]*,|(?:choice|range|interval|glob|shuffle|sort|tag)\()")
"""Matches overrides that list or describe several values."""
WITHOUT_INFLUENCE = ("hydra.", "hydra/", "sweep=", "objective=")
"""Beginnings of overrides that change how a sweep runs, but not what it computes."""


def register_sweep_name(words: Sequence[str]) -> None:
    """Let configurations write `${sweep_name:}`: the same for the same arguments of the program.

    Args:
        words: the arguments, without the program.
    """
    options = config_dir_options(words)
    overrides = [word for word in words if not word.startswith("-") and word not in options]
    OmegaConf.register_new_resolver("sweep_name", lambda: sweep_name(overrides), replace=True)


def influences(override: str) -> bool:
    """Whether an override changes what a run computes."""
    return not override.lstrip("+~").startswith(WITHOUT_INFLUENCE)


def config_dir_options(words: Sequence[str]) -> list[str]:
    """The arguments of a program that say where further configurations are.

    >>> config_dir_options(["-m", "--config-dir", "mine", "seed=1"])
    ['--config-dir', 'mine']
    >>> config_dir_options([])
    []
    """
    options: list[str] = []
    for i, word in enumerate(words):
        if word in ("--config-dir", "-cd"):
            options += words[i : i + 2]
        elif word.startswith("--config-dir="):
            options.append(word)
    return options


def sweep_name(overrides: Sequence[str]) -> str:
    """The name of a sweep: recipe and what varies, and a checksum of the rest. The order of the arguments does not matter.

    >>> sweep_name(["seed=0,1,2", "policy=w4a4,w2a2", "hydra.sweep.dir=out"])
    'policy=w4a4,w2a2__seed=0,1,2'
    >>> sweep_name(["seed=0,1", "optim.lr=0.1", "recipe=mnist_w4a4"])
    'recipe=mnist_w4a4__seed=0,1-f2caf481'
    """
    kept = sorted(filter(influences, overrides))
    shown = [override for override in kept if override.startswith("recipe=") or VARIES.search(override)]
    return _file_name("__".join(shown), "__".join(kept)) or "default"


def job_name(choices: Sequence[str]) -> str:
    """The name of a job.

    Args:
        choices: its overrides of the keys that the sweep varies.

    >>> job_name(["policy=w4a4", "seed=1"]), job_name([])
    ('policy=w4a4,seed=1', 'run')
    """
    return _file_name(",".join(choices)) or "run"


def _file_name(text: str, whole: str | None = None) -> str:
    """A text that can name a folder; what was replaced or left out of the whole is in a checksum at its end.

    >>> _file_name("data.root='a b'")
    'data.root=_a_b_-023cf460'
    """
    plain = re.sub(r"[^\w.,=+~-]", "_", text)
    if plain == (whole or text) and len(plain) <= LONGEST:
        return plain
    return f"{plain[: LONGEST - 9]}-{hashlib.sha256((whole or text).encode()).hexdigest()[:8]}"
