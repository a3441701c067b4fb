"""Every argument of a call ends in the graph: tensors as inputs, all else as the value that it was made with."""

import copy
import inspect
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat

X, Y = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).unbind(0)


class _Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)


class Optional(_Layers):
    def forward(self, x: Tensor, mask: Tensor | None = None, y: Tensor | None = None, *, how: str = "sum") -> Tensor:
        h = F.relu(self.a(x) if mask is None else self.a(x) * mask)
        return self.b(h if y is None else h + y if how == "sum" else h * y)


class Required(_Layers):
    def forward(self, x: Tensor, state: Tensor | None, steps: int, options: dict[str, Any]) -> Tensor:
        h = x if state is None else x + state
        for _ in range(steps):
            h = F.relu(self.a(h)) * options["scale"]
        return self.b(h)


class Several(_Layers):
    def forward(self, *xs: Tensor, scale: float = 1.0) -> Tensor:
        return self.b(torch.stack([F.relu(self.a(x)) for x in xs]).sum(0) * scale)


class Named(_Layers):
    def forward(self, x: Tensor, **others: Any) -> Tensor:
        return self.b(F.relu(self.a(x) + others["y"]) if others["flag"] else self.a(x))


class Attended(nn.Module):
    """Captured with torch.export."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.b = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
        x = x.unsqueeze(1).expand(-1, 5, -1)
        hidden = self.attention(x, x, x, key_padding_mask=mask, need_weights=False)[0]
        return self.b(hidden[:, 0] if causal else hidden.mean(1))


CALLS: dict[str, tuple[type[nn.Module], Any, list[Any]]] = {
    "a default, written": (Optional, (X, None), [(X, Y)]),
    "None before a tensor": (Optional, (X, None, Y), [(X,), (X, Y, Y)]),
    "a text": (Optional, {"x": X, "y": Y, "how": "product"}, [{"x": X, "y": Y}]),
    "None, a number, a dict": (Required, (X, None, 2, {"scale": 0.5}), [(X, Y, 2, {"scale": 0.5}), (X, None, 2, {})]),
    "*xs": (Several, (X, Y, X), [(X, Y), (X, Y, X, X)]),
    "**others": (Named, {"x": X, "y": Y, "flag": True}, [{"x": X, "y": Y, "flag": False}]),
    "torch.export": (Attended, (X, None, True), [(X, None), (X, torch.zeros(3, 5, dtype=torch.bool), True)]),
}  # fmt: skip
"""Name -> network, its call, calls that the integer model must refuse."""


def _call(model: nn.Module, arguments: Any) -> Any:
    return model(**arguments) if isinstance(arguments, dict) else model(*arguments)


@pytest.mark.parametrize("name", CALLS)
def test_the_integer_model_takes_the_call_of_the_network_and_no_other(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, call, others = CALLS[name]
    model = network().eval()
    prepared = qat.prepare(model, "w8a8", call)
    assert "layer by layer" not in qat.inspect(prepared).capture
    with qat.mode(prepared, qat.Mode.OFF):
        torch.testing.assert_close(_call(prepared, call), _call(model, call))
    qat.calibrate(prepared, [call])
    integer = qat.convert(prepared)
    expected = _call(integer, call)
    torch.testing.assert_close(expected, _call(prepared.eval(), call), rtol=0, atol=0.05)
    for other in others:
        with pytest.raises((ValueError, TypeError), match=r"graph was made with|argument"):
            _call(integer, other)
    torch.save(integer, buffer := io.BytesIO())
    buffer.seek(0)
    qat.save_quantized(integer, tmp_path / "packed")
    for again in (
        copy.deepcopy(integer),
        torch.load(buffer, weights_only=False),
        qat.load_quantized(tmp_path / "packed"),
    ):
        assert torch.equal(_call(again, call), expected)
    qat.export_onnx(integer, call, tmp_path / "model.onnx")
    assert qat.verify(tmp_path / "model.onnx", integer, [call], prepared).passed


def test_a_network_without_a_graph_is_exported_with_all_its_arguments(tmp_path: Path) -> None:
    class Counted(Several):
        calls = 0

        def forward(self, *xs: Tensor, scale: float = 1.0) -> Tensor:
            self.calls += 1
            return super().forward(*xs, scale=scale)

    torch.manual_seed(0)
    prepared = qat.prepare(Counted().eval(), "w8a8", (X, Y))
    qat.calibrate(prepared, [(X, Y)])
    integer = qat.convert(prepared)
    qat.export_onnx(integer, (X, Y), tmp_path / "model.onnx")
    assert qat.verify(tmp_path / "model.onnx", integer, [(X, Y)], prepared).passed


def test_a_prepared_network_serves_other_calls_with_its_own_forward_where_torch_export_made_the_graph() -> None:
    torch.manual_seed(0)
    model = Optional().eval()
    prepared = qat.prepare(model, "w8a8", (X, None, Y))
    assert inspect.signature(prepared.forward) == inspect.signature(model.forward)
    with qat.mode(prepared, qat.Mode.OFF):
        assert torch.equal(prepared(X, Y), model(X, Y))
