"""Where a person's mistake becomes one sentence: on standard error, with a non-zero exit and without a traceback."""

from __future__ import annotations

import difflib
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

FULL = "HYDRA_FULL_ERROR"
TRACEBACKS = os.environ.get(FULL) == "1"
"""Whether the person who started the program asked for them."""


@contextmanager
def configuration_errors(debug: bool = False) -> Iterator[None]:
    """Inside the `with`, what is wrong with the configuration or the data ends the program with one sentence.

    With `debug`, or HYDRA_FULL_ERROR=1 in the environment, the traceback stays.
    """
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    of_libraries = (MisconfigurationException, OmegaConfBaseException, HydraException)
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError, *of_libraries) as error:
        if debug or TRACEBACKS:
            raise
        _end(sentence(error))


@contextmanager
def composition_errors(configs: Path, config_name: str = "config") -> Iterator[None]:
    """The same for what Hydra says before the program begins: no such recipe, no such key, a value that is none."""
    if TRACEBACKS:
        yield
        return
    os.environ[FULL] = "1"  # Hydra raises instead of printing
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        _end(composition_sentence(error, configs, config_name))
    except OSError as error:  # before the program begins, Hydra makes its folder and nothing else
        _end(f"the run's folder cannot be made ({sentence(error)}): set hydra.run.dir to a new folder.")
    finally:
        del os.environ[FULL]


def sentence(error: BaseException) -> str:
    """What a person is told about an error: the innermost message, in one line.

    >>> sentence(ValueError("bits=9 is no width:\\n  write 8."))
    'bits=9 is no width: write 8.'
    """
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    if isinstance(error, HydraException):
        text = re.sub(r"\s*full_key: .*", "", text, flags=re.DOTALL)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    return " ".join(text.split()) or type(error).__name__


def composition_sentence(error: BaseException, configs: Path, config_name: str) -> str:
    """What a person is told when no configuration can be composed."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = ", ".join(sorted(p.stem for p in (configs / group).glob("*.yaml")))
        return f"{group or 'configuration'} {name!r} does not exist: write {group}=NAME with one of {options}."
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read: write key=value, and quote values with special characters twice."
    text = str(error)
    if found := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(found[1], configs, config_name)
    if found := re.search(r"Could not override '([^']+)'|No match in the defaults list\.? ?.*?'?([\w/@.]+)=", text):
        return _unknown_key(next(g for g in found.groups() if g), configs, config_name)
    return textwrap.shorten(" ".join(text.split("\nSee ")[0].split()), 300)


def _unknown_key(key: str, configs: Path, config_name: str) -> str:
    keys = list(_keys(configs, config_name))
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    top = ", ".join(k for k in keys if "." not in k)
    hint = f"did you mean {close[0]}?" if close else f"the keys at the top are {top}."
    return f"{key} is no key of the configuration; {hint}"


def _keys(configs: Path, config_name: str) -> Iterator[str]:
    """All keys of the default configuration, with dots."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(configs.resolve()), version_base="1.3"):
        yield from _dotted(compose(config_name), "")


def _dotted(config: DictConfig, prefix: str) -> Iterator[str]:
    for key in map(str, config):
        yield f"{prefix}{key}"
        child = None if OmegaConf.is_missing(config, key) else OmegaConf.to_container(config).get(key)  # type: ignore[union-attr]
        if isinstance(child, dict):
            yield from _dotted(OmegaConf.create(child), f"{prefix}{key}.")


def _end(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)
    sys.exit(1)
