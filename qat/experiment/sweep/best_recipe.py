"""The best configuration of a sweep as a recipe that runs as it is."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from qat.experiment.folders import shortened
from qat.experiment.sweep.summary import Group, score
from qat.files import write_atomically
from qat.report.text_of_numbers import format_count

RECIPE = Path("recipe") / "best.yaml"
NOT_IN_A_RECIPE = ("seed", "resume", "objective", "debug", "hydra")
Compose = Callable[[list[str]], DictConfig]
NO_GROUPS = ("recipe", "sweep", "hydra/")


def best_command(folder: Path) -> str:
    """The command that runs it."""
    return shlex.join(["qat", "train", f"--config-dir={shortened(folder)}", "recipe=best"])


def write_best_recipe(path: Path, best: Group, config: DictConfig, compose: Compose) -> None:
    """Write the recipe.

    Args:
        path: of the file.
        best: for its header.
        config: of one of its jobs, as Hydra composed it.
        compose: from overrides to a configuration.
    """
    write_atomically(path, recipe_text(best, config, compose))


def recipe_text(best: Group, config: DictConfig, compose: Compose) -> str:
    """The text of the recipe: the groups that were chosen, and the values that differ from theirs."""
    choices = {
        group: choice
        for group, choice in config.hydra.runtime.choices.items()
        if choice is not None and not str(group).startswith(NO_GROUPS)
    }
    sweep = [override for override in best.entries[0].job.overrides if override.startswith("sweep=")]
    base = compose(["~recipe", *sweep, *(f"{group}={choice}" for group, choice in choices.items())])
    defaults = [{f"override /{group}": choice} for group, choice in reversed(choices.items())]
    wanted: Any = OmegaConf.to_container(config, resolve=False)
    values = _differing({k: v for k, v in wanted.items() if k not in NOT_IN_A_RECIPE}, OmegaConf.to_container(base))
    body = OmegaConf.to_yaml({"defaults": defaults, **values})
    return f"# @package _global_\n{_header(best)}\n{body}"


def _header(best: Group) -> str:
    spread, first = best.spread(score), best.results[0]
    metric = first.metric
    value = "not measured" if spread is None else metric.text(spread.mean)
    more = "" if spread is None or spread.deviation is None else f" ± {metric.number(spread.deviation)}"
    seeds = f"mean of {len(best.results)} seeds" if len(best.results) > 1 else "one seed"
    return (
        f"# The best configuration of a sweep: {best.name}.\n#\n"
        f"# expected: {value}{more} ({seeds}; {first.data.label})\n"
        f"# takes:    {sum(sum(r.timings.values()) for r in best.results) / 60 / len(best.results):.1f} minutes on "
        f"{format_count(first.environment.threads, 'thread')} of {first.environment.cpu}"
    )


def _differing(wanted: Any, base: Any) -> dict[str, Any]:
    """What is to be merged into `base` so that it becomes `wanted`. A key that was deleted becomes null."""
    found: dict[str, Any] = {key: None for key in base if key not in wanted and key not in NOT_IN_A_RECIPE}
    for key, value in wanted.items():
        if key in base and isinstance(value, dict) and isinstance(base[key], dict):
            if inner := _differing(value, base[key]):
                found[key] = inner
        elif key not in base or base[key] != value:
            found[key] = value
    return found
