"""Turns mistakes in the configuration into one sentence: on standard error, with an exit status and without a traceback."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from qat.experiment.answers import answer_error
from qat.experiment.configuration import CONFIGS, RECIPES, compose
from qat.experiment.schema.words import all_keys, type_of, values_of
from qat.experiment.signals import START, SignalHandler
from qat.experiment.suggestion import unknown_key

FAILED, USAGE = 1, 2
"""Exit statuses, as those of the other commands: a run that began and failed; a configuration that is not possible."""
FULL_ERROR = "HYDRA_FULL_ERROR"
"""The environment variable with which Hydra shows tracebacks."""
UNKNOWN_KEY = re.compile(
    r"Could not override '([^']+)'|Could not delete from config. '([^']+)'|No match in the defaults list\.? ?.*?'?([\w/@.]+)="
)
"""What Hydra says of a key that does not exist."""
SHOWS_TRACEBACKS = os.environ.get(FULL_ERROR) == "1"
"""Whether the user who started the program asked for them."""


@contextmanager
def configuration_errors(signals: SignalHandler, debug: bool = False) -> Iterator[None]:
    """Inside the `with` block, an error in the configuration, the data or the artefact ends the program with one sentence.

    With `debug`, or HYDRA_FULL_ERROR=1 in the environment, the traceback is shown.

    Args:
        signals: knows whether everything has been checked, and training has begun.
        debug: show the traceback.
    """
    try:
        yield
    except expected_errors() as error:
        if debug or SHOWS_TRACEBACKS:
            raise
        exit_with(sentence(error), USAGE if signals.stage == START else FAILED)


def expected_errors() -> tuple[type[Exception], ...]:
    """The errors whose message is enough; any other is a fault of the program, and its traceback is shown."""
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from qat.export import VerificationError

    library_errors = (MisconfigurationException, OmegaConfBaseException, HydraException)
    return (ValueError, OSError, ModuleNotFoundError, VerificationError, *library_errors)


@contextmanager
def composition_errors(words: Sequence[str] = ()) -> Iterator[None]:
    """The same for errors that Hydra finds before the program starts: an unknown recipe, an unknown key, a syntax error.

    Args:
        words: the overrides, to name one of which Hydra says nothing.
    """
    if SHOWS_TRACEBACKS:
        yield
        return
    os.environ[FULL_ERROR] = "1"  # Hydra raises instead of printing
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        exit_with(composition_sentence(error))
    except OSError as error:  # outside of runs, the folder of the run or of the sweep is written, and nothing else
        kind = "sweep" if {"-m", "--multirun"} & {*words} else "run"
        exit_with(f"the {kind}'s folder cannot be written ({sentence(error)}): set hydra.{kind}.dir to a new folder.")
    except Exception as error:
        if not _raised_by_hydra(error):
            raise
        exit_with(_argument_sentence(" ".join(str(error).split()), words))
    finally:
        del os.environ[FULL_ERROR]


def sentence(error: BaseException) -> str:
    """The innermost message of an error, in one line.

    >>> sentence(ValueError("bits=9 is not a valid width:\\n  write 8."))
    'bits=9 is not a valid width: write 8.'
    """
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    if isinstance(error, HydraException):
        text = re.sub(r"\s*full_key: .*", "", text, flags=re.DOTALL)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return " ".join(text.split()) or type(error).__name__


def composition_sentence(error: BaseException) -> str:
    """One sentence for a configuration that cannot be composed."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read: write key=value, and quote values with special characters twice."
    text = str(error)
    if match := re.match(r"Error merging override (\+*([^=]+)=.*)", text):
        return _wrong_kind(match[1], match[2], error)
    if match := UNKNOWN_KEY.search(text):
        key = next(group for group in match.groups() if group)
        below = str(getattr(error.__cause__, "full_key", ""))
        return _unknown_key(below if below.startswith(f"{key}.") else key)  # {a: 1} for a key that has no a
    if re.search("Could not (override|delete) ''", text):
        return "an override has no key: write key=value."
    if match := re.search(r"Ambiguous value for argument '(([^=]+)=([^']*))'", text):
        return (
            f"{match[1]} has several values: add -m for a sweep over them, or write {match[2]}=[{match[3]}] for a list."
        )
    if match := re.search(r"Sweep parameters '(.+)' requires --multirun", text):
        return f"{match[1]} stands for several values: add -m for a sweep over them, or write one."
    if match := re.search(r"An item is already at '([^']+)'", text):
        return f"{match[1]} is in this configuration already: write {match[1]}=VALUE, without the plus."
    if match := re.search(r"Could not delete '([^']+)'", text):
        return f"~{match[1]} is not in this configuration: leave it out."
    if match := re.search(r"Additional config directory '([^']*)' not found", text):
        return f"--config-dir={match[1]} is not a folder: write the folder that holds recipe/NAME.yaml."
    if isinstance(error, InterpolationResolutionError):
        return (
            f"{error.full_key or 'the configuration'} refers to something that does not exist ({text.splitlines()[0]})."
        )
    return textwrap.shorten(" ".join(text.split("\nSee ")[0].split()), 300)


def _raised_by_hydra(error: BaseException) -> bool:
    """Whether it was Hydra that met something it cannot read, rather than the run."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith(("hydra.", "omegaconf."))


def _argument_sentence(reason: str, words: Sequence[str]) -> str:
    if reason.startswith("Config group override must be a string or a list"):
        for word in words:
            key, _, value = word.partition("=")
            if not key:
                return f"{word} has no key: write key=value."
            if key in groups() and not re.match(r"[\w\[]", value.replace("null", "", 1)):
                return f"{word} is not possible: write {key}=NAME with one of {', '.join(_options(key))}."
    if "--resolve" in reason:
        return "--resolve shows a configuration with all values filled in: write --cfg job --resolve, or leave it out."
    return f"the arguments cannot be read ({reason}): write key=value, see --help."


def _missing_option(error: MissingConfigException) -> str:
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    in_group = _options(group) if group in groups() else []
    error.options = error.options or in_group  # of a list, export=[onnxruntime,nme], Hydra gives none
    if not error.options:
        return (
            f"the configuration {name!r} does not exist: leave --config-name out, or add the --config-dir that has it."
        )
    if group == "hydra/launcher" and name not in error.options:
        extra = name.partition("_")[0]
        return f"sweep={name} needs a package that is not installed: pip install 'qat-lightning[{extra}]'."
    options = ", ".join(sorted(error.options))
    top, _, path = str(error.missing_cfg_file).lstrip("/").partition("/")
    if top in groups() and ("/" in path or path.endswith((".yaml", ".yml"))):
        return (
            f"{top}={path} is a path, and {top} takes names: write --config-dir=DIR {top}=NAME for DIR/{top}/NAME.yaml, or one "
            f"of {options}."
        )
    return f"{group} {name!r} does not exist: write {group}=NAME with one of {options}."


def _wrong_kind(override: str, key: str, error: BaseException) -> str:
    """A list in place of keys, or null in place of a text."""
    annotation, metadata = type_of(key, OmegaConf.to_container(compose(), resolve=False))
    if annotation is None:
        return (
            f"{override} is not possible: {' '.join(str(error.__cause__ or error).split()).partition(' full_key')[0]}."
        )
    return f"{override} is not possible: write {values_of(annotation, metadata)}."


def _unknown_key(key: str) -> str:
    config = compose()
    present, possible = [k for k in _dotted_keys(config) if "_target_" not in k], all_keys()
    top = key.partition(".")[0]
    if top == "hydra":
        return f"unknown key {key}: --cfg hydra shows those that there are."
    if key not in present and type_of(key, OmegaConf.to_container(config, resolve=False))[0] is not None:
        if top in ("trainer", "float", "optim", "callbacks"):
            return f"{key} is not in this configuration yet: write +{key}=VALUE to add it."
        return (
            f"{key} is not in this configuration: write +{key}=VALUE if the {top} that you chose takes it, or choose another "
            f"with {top}=NAME."
        )
    if key in present:
        return f"{key} is not in the {top} that you chose: leave it out."
    if key in possible:
        return f"{key} is not in the {top} that you chose: leave it out, or choose another with {top}=NAME."
    return unknown_key(key, [*present, *possible, *groups()])


def _options(group: str) -> list[str]:
    """The names that a group has."""
    return sorted(path.stem for path in (RECIPES if group == "recipe" else CONFIGS / group).glob("*.yaml"))


def groups() -> list[str]:
    """The groups of the configuration, of which `GROUP=NAME` chooses a file."""
    return ["recipe", *(path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "hydra")]


def _dotted_keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """All keys of a configuration, such as `trainer` and `trainer.max_steps`."""
    for key in map(str, config):
        yield f"{prefix}{key}"
        child = None if OmegaConf.is_missing(config, key) else OmegaConf.to_container(config).get(key)  # type: ignore[union-attr]
        if isinstance(child, dict):
            yield from _dotted_keys(OmegaConf.create(child), f"{prefix}{key}.")


def exit_with(text: str, status: int = USAGE) -> NoReturn:
    """End the program with one sentence on standard error, and, where it was asked for, the same in JSON."""
    answer_error(text, status)
    print(f"error: {text}", file=sys.stderr)
    sys.exit(status)
