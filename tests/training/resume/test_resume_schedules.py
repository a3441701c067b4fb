"""Schedules over a fit go on, wherever it was interrupted, as if it had not been: the same bits."""

from pathlib import Path
from typing import Any

import pytest
from interrupted import Everywhere, Fit, differences, own_generator
from people import LIGHTNING

from qat.training.callbacks import Freeze

pytestmark = [*LIGHTNING, pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric")]

BY_STEPS = {"epochs": -1, "max_steps": 12, "val_check_interval": 4}


@pytest.mark.parametrize("length", [{}, BY_STEPS], ids=["epochs", "steps"])
def test_what_is_frozen_stays_frozen(length: dict[str, Any], tmp_path: Path) -> None:
    def fit(*callbacks: Any, seed: int = 0) -> Fit:
        freeze = Freeze(batch_norm=0.3, scales=0.6)
        return Fit(tmp_path, own_generator, seed=seed, callbacks=[freeze, *callbacks], **length)

    end = fit(Everywhere(tmp_path)).run().end()
    for path in sorted(tmp_path.glob("*.ckpt"))[1::4]:
        assert differences(end, fit(seed=99).run(path).end()) == [], path.name
