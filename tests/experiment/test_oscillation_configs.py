"""The options of the group `oscillation`, built as a run builds them."""

from pathlib import Path

import pytest
from omegaconf import DictConfig

from qat.data import digits
from qat.experiment import build
from qat.experiment.run import _callbacks
from qat.training.callbacks import OscillationControl
from tests.experiment.configurations import CONFIGS, composed

EXPECTED = {
    "none": None,
    "track": (None, None),
    "dampen": ((0.0, 0.1), None),
    "freeze": (None, (0.1, 0.01)),
}


def control(config: DictConfig, tmp_path: Path) -> OscillationControl | None:
    batches = build.datamodule(config, digits())
    found = _callbacks(config, tmp_path, build.policy(config), batches)
    return next((callback for callback in found if isinstance(callback, OscillationControl)), None)


def test_every_option_is_expected() -> None:
    assert {path.stem for path in (CONFIGS / "oscillation").glob("*.yaml")} == EXPECTED.keys()
    assert composed().oscillation._target_ is None


@pytest.mark.parametrize("option", EXPECTED)
def test_an_option_builds_the_callback(option: str, tmp_path: Path) -> None:
    found = control(composed(f"oscillation={option}"), tmp_path)
    expected = EXPECTED[option]
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert (found.dampening, found.freezing) == expected
        assert (found.momentum, found.threshold, found.max_bits) == (0.01, 0.005, 4)


def test_both_at_once_and_constants_from_the_command_line(tmp_path: Path) -> None:
    config = composed("oscillation=dampen", "oscillation.dampening=0.05", "+oscillation.freezing=[0.2,0.02]")
    found = control(config, tmp_path)
    assert found is not None
    assert (found.dampening, found.freezing) == (0.05, (0.2, 0.02))
