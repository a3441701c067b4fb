"""Hooks that change values are operations of the graph, applied once; hooks that look stay hooks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat

X = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    def __init__(self, attends: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True) if attends else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.b(x if self.attention is None else self.attention(x, x, x)[0])


def _halve(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 0.5


def _halve_in_place(module: nn.Module, inputs: Any, output: Tensor) -> None:
    output.mul_(0.5)


def _shift(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0] + 0.25,)


def _double(module: nn.Module, args: tuple[Tensor], kwargs: Any) -> tuple[tuple[Tensor], Any]:
    return (args[0] * 2,), kwargs


HOOKS: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "after a layer": ("a", "forward_hook", _halve),
    "after a layer, in place": ("a", "forward_hook", _halve_in_place),
    "before a layer": ("b", "forward_pre_hook", _shift),
    "before a layer, with keywords": ("b", "forward_pre_hook", _double),
    "before the model": ("", "forward_pre_hook", _shift),
    "after the model": ("", "forward_hook", _halve),
}
"""Name -> (module, kind, hook)."""


@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize("attends", [False, True], ids=["torch.fx", "torch.export"])
def test_what_hooks_change_is_in_the_graph_once(attends: bool, name: str, tmp_path: Path) -> None:
    if attends and name not in ("after a layer, in place", "before the model"):
        pytest.skip("two hooks are enough for torch.export, which takes longer")
    torch.manual_seed(0)
    model = Network(attends).eval()
    where, kind, hook = HOOKS[name]
    options = {"with_kwargs": True} if hook is _double else {}
    getattr(model.get_submodule(where), f"register_{kind}")(hook, **options)
    prepared = qat.prepare(model, "w8a8", X)
    assert "layer by layer" not in qat.inspect(prepared).capture
    with qat.mode(prepared, qat.Mode.OFF):
        torch.testing.assert_close(prepared(X), model(X))
    qat.calibrate(prepared, [X])
    integer = qat.convert(prepared)
    qat.export_onnx(integer, X, tmp_path / "model.onnx")
    assert qat.verify(tmp_path / "model.onnx", integer, [X], prepared).passed


def test_hooks_that_look_still_see_the_prepared_network() -> None:
    seen: list[float] = []
    model = Network(attends=False).eval()
    model.a.register_forward_hook(lambda module, inputs, output: seen.append(float(output.detach().abs().max())))
    prepared = qat.prepare(model, "w8a8", X)
    qat.calibrate(prepared, [X])
    seen.clear()
    prepared(X)
    assert len(seen) == 1
