"""The configuration files: where they are, and how Hydra finds the recipes among them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf


def _shipped(name: str) -> Path:
    """A folder of configuration files: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).parents[1]
    return package / name if (package / name).is_dir() else package.parent / name


CONFIGS = _shipped("configs")
RECIPES = _shipped("recipes")
CONFIG_NAME = "config"


@cache
def register_recipes() -> None:
    """Make each file of `recipes/` an option of Hydra's group `recipe`; without this, `recipe=NAME` is unknown."""
    store = ConfigStore.instance()
    for path in sorted(RECIPES.glob("*.yaml")):
        store.store(path.stem, OmegaConf.load(path), group="recipe", package="_global_", provider="recipes")


def compose(*overrides: str) -> DictConfig:
    """The configuration of a run, as `qat train OVERRIDES` composes it.

    Raises:
        hydra.errors.HydraException: no such group, option or key.
    """
    register_recipes()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra_compose(CONFIG_NAME, overrides=list(overrides))
