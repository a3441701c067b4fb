"""Budgets in recipes: refused before anything is trained, found once, kept by a resumed run, and reported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import qat
from qat.data import digits
from qat.experiment import build, float_network, mixed_precision
from qat.experiment.other_runs import other_runs
from qat.experiment.run import run
from qat.experiment.schema import check_configuration
from qat.report import read_results
from qat.search import Allocation
from tests.experiment.configurations import changed, composed
from tests.training.user_modules import LIGHTNING

pytestmark = LIGHTNING


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["budget.latency=2.0"], "a latency needs a latency_table"),
        (["budget.weight_bits=[2, 9]"], r"budget.weight_bits.1=9 is not possible: write a whole number from 2 to 8"),
        (["budget.mean_bits=33"], "budget.mean_bits=33 is not possible"),
        (["budget.sensitivity=guess"], "measured or fisher"),
    ],
)
def test_the_schema_refuses(values: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_configuration(changed(*values))


def test_a_budget_out_of_range_is_refused_with_the_range_before_training() -> None:
    config = changed("budget.size=100")
    data = digits(limit_train=20)
    network = float_network.build(config.model, data)
    with pytest.raises(ValueError, match=r"budget.size=100 is not possible: .* it goes from 7,\d\d\d to .* bytes"):
        mixed_precision.check(config, network, qat.load_policy("w4a8"), data)


def test_a_resumed_run_has_the_bits_of_the_run_that_it_continues(tmp_path: Path) -> None:
    config = changed("budget.size=11000", "budget.points=0", "budget.weight_bits=[2, 4]")
    data = digits(limit_train=20)
    network, policy = float_network.build(config.model, data), qat.load_policy("w4a8")
    batches = [torch.rand(8, 1, 8, 8)]
    first, second = tmp_path / "first", tmp_path / "second"
    found = mixed_precision.find_allocation(config, network, policy, batches, first, None)
    assert found is not None
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()  # other weights would ask for other bits
    checkpoint = first / "checkpoints" / "last.ckpt"
    assert mixed_precision.find_allocation(config, network, policy, batches, second, checkpoint) == found
    assert Allocation.load(second / "allocation.json") == found


def test_other_runs_must_be_finished_and_on_the_same_data(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"compare_with=.* has no results.json"):
        other_runs(changed(f"compare_with=[{tmp_path}]"), digits(limit_train=20))


@pytest.mark.slow
def test_a_mixed_run_reports_its_bits_and_whether_it_beat_the_uniform_one(tmp_path: Path) -> None:
    quick = ["recipe=digits_mixed", "ptq=none", "trainer.max_steps=3", "float.epochs=1", "calibration_images=64"]
    quick.append("optim.lr=0.001")
    uniform = composed(*quick, "budget.size=null", "budget.keep=[first,last]")
    run(uniform, tmp_path / "uniform", "uniform", "")
    config = composed(*quick, "budget.points=2", f"compare_with=[{tmp_path / 'uniform'}]")
    run(config, tmp_path / "mixed", "digits_mixed", "")
    results = read_results(tmp_path / "mixed" / "results.json")
    assert results.verification is not None
    assert results.verification.exact
    assert results.allocation is not None
    bits = {layer.layer: f"int{layer.weight_bits}" for layer in results.allocation.layers}
    assert {s.site: str(s.weight).split()[0] for s in results.sites if s.weight} == bits
    assert len(set(bits.values())) > 1
    (other,) = results.other_runs
    assert other.other == "uniform, w3a3 (other run)"
    assert other.better in (True, False)
    assert build.policy(config).name == "w3a3"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*takes no channel of layer1.0.conv2:UserWarning")
def test_a_recipe_with_fewer_channels_is_loaded_from_its_checkpoint_alone(tmp_path: Path) -> None:
    quick = ["recipe=digits_w8a8", "ptq=none", "trainer.max_epochs=1", "float.epochs=1", "calibration_images=64"]
    run(composed(*quick, "pruning.channels=0.3", "pruning.pattern='2:4'"), tmp_path, "digits_w8a8", "")
    results = read_results(tmp_path / "results.json")
    assert results.pruning is not None
    assert {layer.layer: layer.kept for layer in results.pruning.removed} == {
        "layer1.0.conv1": 12, "layer2.0.conv1": 24, "layer3.0.conv1": 48
    }  # fmt: skip
    network = qat.load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert network.layer1[0].conv1.weight.shape[0] == 12  # type: ignore[index, union-attr]
