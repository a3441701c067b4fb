"""Whatever functions of torch a graph calls between its layers, its integer model comes back from a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat
from qat.structure.names import find_function, name_of_function

NO_COMPUTATION = {"assert_int_or_pair", "grouped_mm", "scaled_mm", "scaled_grouped_mm"}
"""Helpers, and products that need a GPU."""


def test_every_function_of_torch_nn_has_a_name() -> None:
    functions = {
        name: value
        for name, value in vars(F).items()
        if callable(value) and not isinstance(value, type) and not name.startswith(("_", "has_torch_function"))
    }
    own = {n: f for n, f in functions.items() if f.__module__ in (F.__name__, "torch._C._nn", None) and n.islower()}
    missing = {name for name, function in own.items() if name_of_function(function) is None}
    assert len(own) > 100
    assert missing - NO_COMPUTATION == {"boolean_dispatch", "handle_torch_function"} & missing
    assert all(find_function(str(name_of_function(own[name]))) is own[name] for name in own.keys() - missing)


class Between(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.first, self.last = function, nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.function(self.first(x)))
        return y


@pytest.mark.parametrize(
    "function",
    [
        F.hardswish,
        F.hardsigmoid,
        torch.relu_,
        lambda x: torch.topk(x, 8).values,
        lambda x: torch.sort(x).indices.float(),
        lambda x: torch.hann_window(8) * x,
    ],
    ids=["hardswish", "hardsigmoid", "relu_", "topk", "sort", "window"],
)
def test_an_integer_model_comes_back(function: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    x = torch.randn(16, 8)
    prepared = qat.prepare(Between(function), "w4", x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    assert torch.equal(qat.load_quantized(qat.save_quantized(integer, tmp_path))(x), integer(x))
