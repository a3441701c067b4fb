"""Checks a configuration before Hydra creates the run's folder, and those of a sweep before its first run."""

from __future__ import annotations

import re
from itertools import islice
from typing import Any

from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from qat.experiment.configuration import CONFIG_NAME
from qat.experiment.errors import composition_sentence, exit_with, groups, sentence
from qat.experiment.repeated_keys import check_each_key_once
from qat.experiment.schema import Configuration, check_configuration
from qat.experiment.schema.validate import references
from qat.experiment.suggestion import unknown_key
from qat.experiment.sweep.grid import grid
from qat.experiment.sweep.space import Space

INSTEAD_OF_DELETING = {group: f"write {group}=none" for group in ("ptq", "export", "oscillation")}
SEVERAL = ("export", "policy", "ptq", "callbacks")
"""Groups of which several files make one configuration."""
HYDRA_KEYS = {*HydraConf.__dataclass_fields__, "env"}
"""What a configuration can set under `hydra`."""
MOST_RUNS = 50
"""Runs of a sweep that are checked before the first begins; the others are checked when they begin."""


class EarlyCheck(Callback):
    """A callback of Hydra's, in configs/config.yaml. A mistake ends the program with one sentence and status 2."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _check_is_no_sweep(config)
        _check(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _check_order(config)
        _check_repetition(_overrides(config))
        for overrides in islice(_runs_of_sweep(config), MOST_RUNS):
            try:
                composed = GlobalHydra.instance().config_loader().load_sweep_config(config, list(overrides))
            except HydraException as error:  # Hydra would ignore it here, and raise it when this job begins
                exit_with(composition_sentence(error) if isinstance(error, MissingConfigException) else sentence(error))
            _check(composed, "sweep")


def _check(config: DictConfig, mode: str) -> None:
    plain: Any = OmegaConf.to_container(config, resolve=False)
    hydra = plain.pop("hydra")
    folder = hydra[mode]["dir"]
    if plain.get("debug") is True or "${hydra:" in str(plain):
        return  # the run checks itself: it shows the traceback, or knows its own folder
    task = OmegaConf.masked_copy(config, list(plain))
    try:
        if not str(folder or "").strip():
            raise ValueError(f"hydra.{mode}.dir is empty: write the name of a new folder, or leave it out.")
        for key in hydra.keys() - HYDRA_KEYS:
            raise ValueError(unknown_key(f"hydra.{key}", [f"hydra.{known}" for known in HYDRA_KEYS]))
        for override in hydra["overrides"]["task"]:
            _check_override(str(override), task)
        _check_each_policy_counts(task.policy, hydra)
        check_configuration(task)
    except ValueError as error:
        exit_with(sentence(error))


def _overrides(config: DictConfig) -> list[str]:
    """The overrides of the command line, as they were written."""
    return [str(o) for o in OmegaConf.to_container(config.hydra.overrides.task, resolve=False) or ()]


def _check_is_no_sweep(config: DictConfig) -> None:
    """Refuse a choice of sweep that one run would ignore."""
    for chosen in _overrides(config):
        if chosen.startswith("sweep=") and chosen != "sweep=wandb":
            exit_with(f"{chosen} says how several runs are made, and this is one: write -m before it, or leave it out.")
    _check_order(config)


def _check_order(config: DictConfig) -> None:
    """Refuse the file of W&B, and a list of sweeps whose last one takes the search back."""
    chosen = _overrides(config)
    if "sweep=wandb" in chosen:
        exit_with(
            "sweep=wandb is not a sweep of Hydra's but of W&B's agent: write wandb sweep configs/sweep/wandb.yaml."
        )
    mixed = [override for override in chosen if override.startswith("sweep=[") and "optuna" in override]
    if mixed and not str(config.hydra.sweeper.get("_target_")).endswith("OptunaSweeper"):
        others = [name.strip() for name in mixed[0][7:].rstrip("]").split(",") if name.strip() != "optuna"]
        exit_with(
            f"{mixed[0]} searches nothing, because the last one decides: write sweep=[{','.join([*others, 'optuna'])}]."
        )


def _check_repetition(overrides: list[str]) -> None:
    """Refuse values that a sweep lists twice, and a key that is listed and then set again, of which the last alone counts."""
    given: dict[str, str] = {}
    for override in overrides:
        key, _, value = override.partition("=")
        if key in given and "," in given[key] + value:
            exit_with(f"{given[key]} and {override} are of one key, and the last alone would count: write one of them.")
        given[key] = override
        values = value.split(",") if re.fullmatch(r"[\w.,+-]+", value) else []
        for repeated in [v for v in values if values.count(v) > 1][:1]:
            once = ",".join(dict.fromkeys(values))
            exit_with(f"{override} has {repeated} twice, which is one run: write {key}={once}.")


def _check_override(override: str, config: DictConfig) -> None:
    """Refuse what Hydra composes although it cannot be meant: a key given twice, a deleted group, {}, which deletes nothing."""
    check_each_key_once(override)
    key, _, value = override.partition("=")
    group = key.removeprefix("~").partition("@")[0]
    if key.startswith("~") and group in (*Configuration.model_fields, "recipe"):
        hint = INSTEAD_OF_DELETING.get(group, "leave it out")
        other = f"choose another with {group}=NAME" if group in groups() else f"write {group}=VALUE"
        raise ValueError(f"~{group} deletes what every run needs: {hint}, or {other}.")
    if key.startswith("~") and key[1:] in references(OmegaConf.to_container(config, resolve=False)):
        raise ValueError(f"{key} deletes what other keys refer to: leave it out, or write {key[1:]}=VALUE.")
    if key == "recipe" and value.startswith("["):
        raise ValueError(f"{override} mixes recipes, and a run has one: write recipe=NAME.")
    if (
        not key.startswith(("+", "~"))
        and group in groups()
        and value.startswith("[")
        and OmegaConf.is_dict(config[group])
    ):
        names = [name.strip() for name in value.strip("[]").split(",")]
        if group not in SEVERAL and len(names) > 1:
            raise ValueError(f"{key}={value} would be the last of them alone: write {key}={names[-1]}.")
        if "none" in names and len(names) > 1:
            names.remove("none")
            raise ValueError(f"{key}={value} has none beside others: write {key}=[{','.join(names)}], or {key}=none.")
    if value.replace(" ", "") == "{}" and OmegaConf.select(config, key.lstrip("+")):
        top = key.lstrip("+").partition(".")[0]
        hint = INSTEAD_OF_DELETING.get(top, f"write the keys to change, or ~{key.lstrip('+')}.NAME to remove one")
        raise ValueError(f"{key}={{}} deletes nothing, because keys are added to those that are there: {hint}.")


def _check_each_policy_counts(policy: DictConfig, hydra: dict[str, Any]) -> None:
    """Refuse a list of policies of which one is overwritten by those behind it."""
    given = [str(override) for override in hydra["overrides"]["task"]]
    for override in [o for o in given if o.startswith("policy=[") and "," in o]:
        names = [name.strip() for name in override[8:].rstrip("]").split(",")]
        for name in names:
            kept = ",".join(other for other in names if other != name)
            loader, without = GlobalHydra.instance().config_loader(), [o for o in given if o != override]
            composed = loader.load_configuration(CONFIG_NAME, [*without, f"policy=[{kept}]"], RunMode.RUN)
            if composed.policy == policy:
                raise ValueError(
                    f"{override} is the same without {name}, because policies that set the same keys overwrite each other: "
                    f"leave {name} out, and write other bits of some layers as policy.rules."
                )


def _runs_of_sweep(config: DictConfig) -> list[tuple[str, ...]]:
    """The overrides of each run, or of a few example runs of a search; none for sweepers that are not ours."""
    hydra: Any = OmegaConf.to_container(config.hydra, resolve=False)  # as they are written, ${...} included
    sweeper = hydra["sweeper"]
    if not str(sweeper.get("_target_")).startswith("hydra_plugins.qat_sweepers."):
        return []
    arguments = [*(f"{k}={v}" for k, v in (sweeper.get("params") or {}).items()), *hydra["overrides"]["task"]]
    try:
        searches = str(sweeper["_target_"]).endswith("OptunaSweeper")
        return [job.overrides for job in (Space.of(arguments).examples() if searches else grid(arguments))]
    except HydraException as error:
        exit_with(sentence(error))
