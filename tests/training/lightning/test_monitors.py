"""Faults of quantizers that training has broken."""

import torch

from qat import Grid, QuantSpec
from qat.quantizers import LSQ
from qat.training.lightning.monitors import learned_scale_fault


def test_a_scale_on_its_floor_is_a_fault() -> None:
    quantizer = LSQ(QuantSpec(Grid(4)))
    quantizer.set_range(torch.tensor([-1.0]), torch.tensor([1.0]))
    assert learned_scale_fault(quantizer) == ""
    with torch.no_grad():
        quantizer.scale.fill_(-1.0)
    assert "has fallen to its floor (1 of 1)" in learned_scale_fault(quantizer)
