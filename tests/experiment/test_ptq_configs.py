"""Each list of passes in configs/ptq is composed and applied."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import qat
import qat.ptq
from qat.experiment.build import part
from qat.export import QuantizeStatic
from qat.ptq import BRECQ, AdaRound, Pass, SmoothQuant, apply_passes
from qat.training.callbacks import PTQBaselines
from tests.experiment.configurations import CONFIGS, composed
from tests.networks import OptionA, build, images

OPTIONS = sorted(path.stem for path in (CONFIGS / "ptq").glob("*.yaml"))


def ladder(option: str) -> dict[str, list[Pass]]:
    config = composed(f"ptq={option}").ptq
    if config.get("_target_") is None:
        return {}
    callback: Any = part(config, "ptq")
    assert isinstance(callback, PTQBaselines)
    return {name: list(passes) for name, passes in callback.ladder.items()}


def test_the_options_build_on_each_other() -> None:
    names = {option: set(ladder(option)) for option in OPTIONS}
    assert names["none"] == set()
    assert names["quick"] == {"PTQ min-max", "PTQ MSE"}
    assert names["default"] == names["quick"] | {"PTQ CLE + bias correction", "PTQ AdaRound"}
    assert names["full"] > names["default"]


def test_full_uses_every_pass_for_convolutions_and_every_recipe_compares_with_default() -> None:
    passes = {type(step) for rung in ladder("full").values() for step in rung}
    assert passes == {p for name in qat.ptq.__all__ if isinstance(p := getattr(qat.ptq, name), type)
                      and issubclass(p, Pass) and p not in (Pass, SmoothQuant)}  # fmt: skip
    assert any(isinstance(step, BRECQ) and step.reconstruction.drop for step in ladder("full")["PTQ QDrop"])
    assert "PTQ AdaRound" in composed().ptq.ladder
    outside = part(composed("ptq=full").ptq, "ptq").outside
    assert outside == {"ONNX Runtime quantize_static (W8A8)": QuantizeStatic()}


@pytest.mark.parametrize("name", ladder("full"))
def test_a_list_ends_in_integers(name: str) -> None:
    passes = ladder("full")[name]
    for step in passes:
        if isinstance(step, AdaRound | BRECQ):
            step.reconstruction = replace(step.reconstruction, iterations=3)
    found = apply_passes(passes, build(OptionA), "w4a8", [images(32)])
    x = images(32)
    expected, integer = found(x), qat.convert(found)(x)
    assert (expected - integer).abs().mean() < 0.01 * expected.abs().mean()


def test_an_observer_of_a_configuration_may_have_options() -> None:
    rung = "[{_target_: qat.ptq.Calibrate, _recursive_: false, observer: {_target_: Percentile, percentile: 90.0}}]"
    callback = part(composed("ptq=quick", f"+ptq.ladder.mine={rung}").ptq, "ptq")
    found = apply_passes(
        callback.ladder["mine"], torch.nn.Sequential(torch.nn.Linear(3, 2)), "w8a8", [torch.randn(9, 3)]
    )
    assert found.get_submodule("0").weight_quantizer.observer.percentile == 90.0
