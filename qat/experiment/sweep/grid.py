"""The jobs of a grid: every combination of the values that the command line lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from qat.experiment.sweep.names import job_name


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        overrides: all of them, as they can be given to a run alone.
        choices: key -> value of those that the sweep varies.
        name: of its folder.
    """

    overrides: tuple[str, ...]
    choices: Mapping[str, str]
    name: str

    def launched(self, folder: Path) -> list[str]:
        """The overrides with which a launcher starts it in a folder of the sweep.

        They name the folders, because launchers in other processes compose the configuration anew.
        """
        own = {"hydra.sweep.dir": folder, "hydra.sweep.subdir": self.name, "hydra.run.dir": folder / self.name}
        return [*self.overrides, *(f"{key}={quoted(str(value))}" for key, value in own.items())]


def parse(arguments: Sequence[str]) -> list[Override]:
    """The overrides of a sweep, each key once: the last one counts.

    Raises:
        HydraException: an override lists no value at all.
    """
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    found = {override.get_key_element(): override for override in parser.parse_overrides(list(arguments))}
    for key, override in found.items():
        if override.is_discrete_sweep() and next(override.sweep_string_iterator(), None) is None:
            raise HydraException(f"{override.input_line} stands for no value: list at least one, {key}=A,B,C.")
    return list(found.values())


def grid(arguments: Sequence[str]) -> list[Job]:
    """Every combination, the last key fastest.

    Raises:
        HydraException: an argument is an interval, of which there is no finite number of values.
    """
    overrides = parse(arguments)
    jobs = []
    for chosen in product(*map(_choices, overrides)):
        varied = [text for text, override in zip(chosen, overrides, strict=True) if override.is_sweep_override()]
        jobs.append(Job(chosen, dict(text.split("=", 1) for text in varied), job_name(varied)))
    return jobs


def quoted(value: str) -> str:
    """A value that Hydra reads as it is."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _choices(override: Override) -> list[str]:
    """An override, once for each value."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise HydraException(
            f"{override.input_line} is an interval, which has no list of values: add sweep=optuna, or list some, "
            f"{override.get_key_element()}=A,B,C."
        )
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
