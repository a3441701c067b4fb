"""Numbers where tensors of real numbers are expected: operands of forward without example inputs."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat
from qat.transform import quantizers


class Scaled(nn.Module):
    """Multiplies by one argument and adds another, whatever they are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, factor: Any, shift: Any) -> Tensor:
        return self.b(F.relu(self.a(x) * factor + shift))


X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("numbers", [(0.5, 1), (torch.tensor(0.5), 1.0), (2, torch.tensor([0.25]))])
def test_numbers_as_operands_pass_calibration_and_file(numbers: tuple[Any, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Scaled().eval()
    prepared = qat.prepare(model, "w8a8")
    qat.calibrate(prepared, [(X, *numbers)])
    torch.testing.assert_close(prepared.eval()(X, *numbers), model(X, *numbers), atol=0.05, rtol=0.1)
    integer = qat.convert(prepared)
    path = tmp_path / "model.onnx"
    qat.export_onnx(integer, (X, *numbers), path)
    assert qat.verify(path, integer, [(X, *numbers)], prepared).exact


def test_numbers_are_remembered_in_checkpoints_and_forgotten_with_the_range() -> None:
    torch.manual_seed(0)
    prepared = qat.prepare(Scaled(), "w8a8")
    qat.calibrate(prepared, [(X, 0.5, 1)])
    passing = {name for name, q in quantizers(prepared).items() if q.passes}
    assert passing == {"sites.factor_input", "sites.shift_input"}
    loaded = qat.prepare(Scaled(), "w8a8")
    loaded.load_state_dict(prepared.state_dict())
    assert all(q.ready for q in quantizers(loaded).values())
    assert torch.equal(loaded.eval()(X, 0.5, 1), prepared.eval()(X, 0.5, 1))
    with pytest.raises(RuntimeError, match="'factor_input' has no range yet"):
        loaded(X, torch.ones(16, 6), 1)
