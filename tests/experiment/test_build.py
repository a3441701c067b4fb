import warnings

import pytest
import torch

from qat.data import digits
from qat.experiment import build
from qat.experiment.build import part, validation_plan
from qat.experiment.check import warn_of_unwise_values
from tests.experiment.configurations import changed, composed


@pytest.mark.parametrize(
    ("overrides", "interval"),
    [
        (["trainer.max_steps=400", "trainer.max_epochs=null", "validations=4"], 100),
        (["trainer.max_steps=20", "trainer.max_epochs=null", "validations=6"], 4),
        (["trainer.max_steps=31", "trainer.max_epochs=null"], 31),
        (["trainer.max_steps=3", "trainer.max_epochs=null", "validations=10"], 1),
        (["trainer.max_steps=1000", "trainer.max_epochs=2", "validations=4"], 50),
    ],
)
def test_steps_are_validated_evenly_and_after_the_last_one(overrides: list[str], interval: int) -> None:
    assert validation_plan(changed(*overrides), batches=100) == {
        "check_val_every_n_epoch": None,
        "val_check_interval": interval,
    }


def test_values_are_what_hydra_makes_of_them() -> None:
    values = ["trainer.max_steps=400", "trainer.max_epochs=null", "seed=abc", "optim.lr=1e-3", "float.epochs=1.5"]
    assert changed(*values) == composed(*values)


def test_epochs_are_validated_by_lightning() -> None:
    assert validation_plan(changed("trainer.max_epochs=3"), batches=100) == {}


def test_a_high_temperature_is_warned_of_once_with_the_reason() -> None:
    def check_and_build() -> None:
        config = changed("distillation.weight=0.5", "distillation.temperature=4.0")
        warn_of_unwise_values(config)
        build.distillation(config, torch.nn.Linear(1, 1), digits(limit_train=20))

    with pytest.warns(match=r"^distillation.temperature=4.0: above 1 small networks were seen to collapse") as said:
        check_and_build()
    assert len(said) == 1


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_sgds_learning_rate_is_warned_of_with_adam(optimizer: str) -> None:
    with pytest.warns(match=r"^optim.lr=0.05 is a rate for SGD; with Adam.* write optim.lr=0.001"):
        warn_of_unwise_values(composed(f"optim={optimizer}"))
    warn_of_unwise_values(composed(f"optim={optimizer}", "optim.lr=1e-3"))
    warn_of_unwise_values(changed("optim.lr=0.5"))


@pytest.mark.parametrize("part", ["optim", "float.optim"])
def test_a_weight_decay_that_outweighs_training_is_warned_of(part: str) -> None:
    said = rf"^{part}.weight_decay=5 with {part}.lr=0.1 takes 0.5 of every weight in each step.* write {part}.weight_decay="
    with pytest.warns(match=said):
        warn_of_unwise_values(changed(f"{part}.weight_decay=5", f"{part}.lr=0.1"))
    warn_of_unwise_values(changed(f"{part}.weight_decay=0.005", f"{part}.lr=0.1"))


@pytest.mark.parametrize(("decay", "lr"), [(5, 0.1), (1e-4, 100), (1, 100), (0.01, 5)])
def test_what_is_to_be_written_instead_ends_the_warning(decay: float, lr: float) -> None:
    values = [f"optim.weight_decay={decay}", f"optim.lr={lr}"]
    for _ in range(2):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            warn_of_unwise_values(changed(*values))
        if not said:
            return
        values.append(str(said[0].message).rpartition(" write ")[2].rstrip("."))
    warn_of_unwise_values(changed(*values))


def test_a_safe_temperature_is_not() -> None:
    warn_of_unwise_values(changed("distillation.weight=0.5"))


def test_a_part_with_an_unknown_option_is_named() -> None:
    with pytest.raises(ValueError, match=r"^trainer cannot be built: .*unexpected keyword argument 'foo'\.$"):
        part({"_target_": "lightning.Trainer", "foo": 1}, "trainer")


@pytest.mark.parametrize(
    ("part_of", "target", "said"),
    [
        (
            "optimizer",
            "torch.nn.Identity",
            r"optim\.optimizer makes something else .a Identity.: write its _target_, as torch\.optim",
        ),
        ("schedule", "torch.optim.swa_utils.AveragedModel", r"optim"),
    ],
)
def test_an_optimizer_and_its_schedule_are_what_they_are_called(part_of: str, target: str, said: str) -> None:
    config = composed()
    config.optim[part_of] = {"_target_": target, "_partial_": True}
    with pytest.raises(ValueError, match=said):
        build.classifier(torch.nn.Linear(1, 1), config, digits(limit_train=20))
