"""Recipes are code: each is composed, its parts are built, and its policy is put on its network."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra.utils
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

import qat
from qat.data import ImageData, TensorImages, digits
from qat.experiment import build, float_network
from qat.experiment.schema import check_configuration
from tests.experiment.configurations import CONFIGS, RECIPES, composed
from tests.training.user_modules import LIGHTNING

pytestmark = LIGHTNING

RECIPE_FILES = sorted(RECIPES.glob("*.yaml"))
SHAPES = {
    "qat.data.digits": (1, 8, 8),
    "qat.data.mnist": (1, 28, 28),
    "qat.data.cifar10": (3, 32, 32),
    "qat.data.image_folder": (3, 64, 64),
}


def some_data(config: DictConfig) -> ImageData:
    """Black images of the right shape."""
    shape = SHAPES[config.data._target_]
    images = TensorImages(torch.zeros(4, *shape, dtype=torch.uint8), torch.arange(4))
    channels = (0.5,) * shape[0]
    return replace(
        digits(limit_train=20),
        image_shape=shape,
        train=images,
        val=images,
        test=images,
        mean=channels,
        std=channels,
        crop_padding=config.data.crop_padding,
    )


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def test_all_recipes_are_there() -> None:
    expected = {"digits_w2a2", "digits_w8a8", "digits_w4a8", "mnist_w4a4", "mnist_w2a2", "resnet18_w4a8"}
    expected |= {"digits_mixed", "cifar10_mixed_w3", "digits_pruned_w4a8", "cifar10_w4a4_pruned"}
    expected |= {"cifar10_w4a4_pruned_distilled"}
    expected |= {f"cifar10_{bits}" for bits in ("w8a8", "w4a8", "w4a4", "w3a3", "w2a2")}
    assert expected <= {path.stem for path in RECIPE_FILES}


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda path: path.stem)
def test_a_recipe_composes_and_its_parts_fit(path: Path, tmp_path: Path) -> None:
    config = composed(f"recipe={path.stem}", *(["model.weights=null"] if "resnet18" in path.stem else []))
    check_configuration(config)
    data = some_data(config)
    network = float_network.build(config.model, data)
    policy = build.policy(config)
    assert policy.name in path.stem.split("_") or "mixed" in path.stem
    prepared = qat.prepare(network, policy, torch.zeros(2, *data.image_shape))
    assert not qat.inspect(prepared).float_edges
    float_network.check_source(config, data)
    for part in (config, config.float):
        build.classifier(network, part, data, distillation=build.distillation(config, network, data))
    build.trainer(config, tmp_path, [], False, **build.validation_plan(config, 100))


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda path: path.stem)
def test_a_recipe_says_what_to_expect(path: Path) -> None:
    lines = path.read_text().splitlines()
    header = " ".join(lines[: lines.index("defaults:")])
    assert lines[0] == "# @package _global_"
    assert path.stem.rpartition("_")[2] in header.lower()
    for what in ("Reproduces", "expected:", "takes:"):
        assert what in header


@pytest.mark.parametrize("name", options("policy"))
def test_policies_are_the_presets(name: str) -> None:
    written = OmegaConf.load(CONFIGS / "policy" / f"{name}.yaml")
    own = {"first_last_bits": None} if "first_last_bits" in written and written.first_last_bits is None else {}
    preset = qat.load_policy(name.removesuffix("_all_layers"), **own)
    assert build.policy(composed(f"policy={name}")).rules.keys() == preset.rules.keys()


@pytest.mark.parametrize("group", ["quantizer", "observer"])
def test_every_quantizer_and_observer_can_be_chosen(group: str) -> None:
    config = composed()
    last = options(group)[-1]
    assert composed(f"{group}={last}")[group] == OmegaConf.load(CONFIGS / group / f"{last}.yaml")  # as Hydra does here
    for name in options(group):
        config[group] = OmegaConf.load(CONFIGS / group / f"{name}.yaml")
        policy = build.policy(config)
        part = getattr(policy.rules["all"].weight, group)
        chosen = part.get("estimator", part)
        found = hydra.utils.get_class(chosen["_target_"]).__name__.lower()
        assert found == name.replace("_", "") or ("element" in chosen and name.startswith(found))


@pytest.mark.parametrize("name", options("optim"))
def test_every_optimizer_trains_float_and_quantized(name: str) -> None:
    config = composed(f"optim={name}", f"optim@float.optim={name}", "optim.lr=0.003")
    network = torch.nn.Linear(2, 2)
    made = build.classifier(network, config, some_data(config))
    optimizer = made.optimizer(network.parameters())
    assert type(optimizer).__name__.lower() == name
    assert optimizer.param_groups[0]["lr"] == 0.003
    assert (
        build.classifier(network, config.float, some_data(config)).optimizer(network.parameters()).defaults["lr"] == 0.1
    )


@pytest.mark.parametrize("name", options("logger"))
def test_every_logger_writes_into_the_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    if name == "mlflow":
        pytest.importorskip("mlflow")
        warnings.simplefilter("ignore", DeprecationWarning)  # of SQLAlchemy 2.1, for MLflow
    logger = build.part(composed(f"logger={name}").logger, "logger", save_dir=str(tmp_path))
    where = logger.save_dir or str(logger._tracking_uri).removeprefix("sqlite:///")  # MLflow's is a database
    assert str(where).startswith(str(tmp_path))


def test_every_callback_is_one() -> None:
    for options in composed().callbacks.values():
        assert issubclass(hydra.utils.get_class(options["_target_"]), Callback)


def test_overrides_reach_the_policy() -> None:
    config = composed(
        "policy=w4a4",
        "policy.residual_bits=4",
        "policy.first_last_bits=null",
        "policy.weight.granularity=per_group",
        "policy.weight.group_size=16",
        "policy.rules={head: {match: 'type:Linear', weight: {bits: 8}}}",
        "observer=percentile",
        "observer.percentile=99.9",
    )
    policy = build.policy(config)
    assert list(policy.rules) == ["all", "head"]
    assert policy.residual_bits == 4
    weight: Any = policy.rules["all"].weight
    assert (weight.granularity, weight.group_size) == ("per_group", 16)
    assert weight.observer == {"_target_": "qat.observers.Percentile", "percentile": 99.9}
    assert policy.rules["head"].activation is None


def test_the_configuration_resolves_without_a_run() -> None:
    config = composed()
    assert OmegaConf.to_container(config, resolve=True)
    assert config.model.checkpoint is None
