"""Each start of configs/start is composed and built."""

import pytest
from configurations import CONFIGS, composed

from qat.training.recipe.build import part


@pytest.mark.parametrize("option", sorted(path.stem for path in (CONFIGS / "start").glob("*.yaml")))
def test_a_start(option: str) -> None:
    config = composed(f"start={option}")
    callback = part(config.callbacks.qat, "callbacks.qat", policy="w4a4")
    assert (callback.start_from is None) == (option == "calibrated")
