"""Turns mistakes in the configuration into one sentence: on standard error, with exit status 1 and without a traceback."""

from __future__ import annotations

import difflib
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qat.experiment.configuration import compose

FULL_ERROR = "HYDRA_FULL_ERROR"
"""The environment variable with which Hydra shows tracebacks."""
SHOWS_TRACEBACKS = os.environ.get(FULL_ERROR) == "1"
"""Whether the user who started the program asked for them."""


@contextmanager
def configuration_errors(debug: bool = False) -> Iterator[None]:
    """Inside the `with` block, an error in the configuration, the data or the artefact ends the program with one sentence.

    With `debug`, or HYDRA_FULL_ERROR=1 in the environment, the traceback is shown.
    """
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from qat.export import VerificationError

    library_errors = (MisconfigurationException, OmegaConfBaseException, HydraException)
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError, VerificationError, *library_errors) as error:
        if debug or SHOWS_TRACEBACKS:
            raise
        _exit(sentence(error))


@contextmanager
def composition_errors() -> Iterator[None]:
    """The same for errors that Hydra finds before the program starts: an unknown recipe, an unknown key, a syntax error."""
    if SHOWS_TRACEBACKS:
        yield
        return
    os.environ[FULL_ERROR] = "1"  # Hydra raises instead of printing
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        _exit(composition_sentence(error))
    except OSError as error:  # before the program starts, Hydra creates the run's folder and nothing else
        _exit(f"the run's folder cannot be created ({sentence(error)}): set hydra.run.dir to a new folder.")
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
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = ", ".join(sorted(error.options or ()))
        return f"{group or 'configuration'} {name!r} does not exist: write {group}=NAME with one of {options}."
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read: write key=value, and quote values with special characters twice."
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'|No match in the defaults list\.? ?.*?'?([\w/@.]+)=", text):
        return _unknown_key(next(group for group in match.groups() if group))
    return textwrap.shorten(" ".join(text.split("\nSee ")[0].split()), 300)


def _unknown_key(key: str) -> str:
    keys = list(_dotted_keys(compose()))
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    top = ", ".join(k for k in keys if "." not in k)
    hint = f"did you mean {close[0]}?" if close else f"the top-level keys are {top}."
    return f"unknown key {key}; {hint}"


def _dotted_keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """All keys of a configuration, such as `trainer` and `trainer.max_steps`."""
    for key in map(str, config):
        yield f"{prefix}{key}"
        child = None if OmegaConf.is_missing(config, key) else OmegaConf.to_container(config).get(key)  # type: ignore[union-attr]
        if isinstance(child, dict):
            yield from _dotted_keys(OmegaConf.create(child), f"{prefix}{key}.")


def _exit(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)
    sys.exit(1)
