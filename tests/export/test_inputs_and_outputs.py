"""What goes into a file and comes out of it: names, kinds of inputs, free axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import qat
from qat.export.onnx import example_inputs
from qat.export.onnx.proof import renamed_sites
from qat.export.onnx.runtime import session


def written(model: nn.Module, example: tuple[Any, ...], path: Path, **options: Any) -> nn.Module:
    """The integer model, after it was exported."""
    torch.manual_seed(0)
    prepared = qat.prepare(model.eval(), "w8a8")
    qat.calibrate(prepared, [example])
    integer = qat.convert(prepared)
    qat.export_onnx(integer, options.pop("examples", example), path, **options)
    return integer


def run(path: Path, **inputs: Tensor) -> dict[str, np.ndarray]:
    """The outputs of the file, by name."""
    runtime = session(path)
    names = [output.name for output in runtime.get_outputs()]
    return dict(zip(names, runtime.run(None, {n: x.numpy() for n, x in inputs.items()}), strict=True))


class Named(nn.Module):
    """Layers have the names of the input, of outputs, and of what belongs to other layers."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.x_weight, self.x_input = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.output_0, self.output_1 = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.x_input(F.relu(self.x_weight(F.relu(self.x(x))))))
        a = F.relu(self.output_0(x))
        return F.relu(self.output_1(a)), a


def test_layers_named_like_inputs_and_outputs(tmp_path: Path) -> None:
    x = torch.randn(8, 4)
    integer = written(Named(), (x,), tmp_path / "m.onnx")
    results = run(tmp_path / "m.onnx", x=x)
    with torch.no_grad():
        for name, expected in zip(("output_0", "output_1"), integer(x), strict=True):
            assert np.array_equal(results[name], expected.numpy())
    file = onnx.load(tmp_path / "m.onnx")
    names = [o for n in file.graph.node for o in n.output] + [t.name for t in file.graph.initializer] + ["x"]
    assert len(names) == len(set(names))
    assert set(renamed_sites(file)) == {"x", "output_0"}
    assert qat.verify(tmp_path / "m.onnx", integer, [x]).exact


class Many(nn.Module):
    """A state of two tensors, a mask, a number and an argument that may be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, state: Any, mask: Tensor, slope: Any, missing: Any) -> dict[str, Any]:
        hidden, cell = state
        h = F.leaky_relu(self.inner(x) + hidden, slope).masked_fill(mask, 0.0)
        y = self.outer(h)
        return {"y": y, "again": [y, x], "score": y.abs().max(), "cell": cell, "nothing": missing}


def test_all_kinds_of_inputs_and_outputs(tmp_path: Path) -> None:
    x, hidden, cell, mask = (
        torch.randn(1, 4),
        torch.randn(1, 4),
        torch.ones(1, 4, dtype=torch.long),
        torch.rand(1, 4) < 0.5,
    )
    example = (x, (hidden, cell), mask, 2.0, None)
    keywords = dict(zip(("x", "state", "mask", "slope", "missing"), example, strict=True))
    integer = written(Many(), example, tmp_path / "m.onnx", examples=keywords)
    batch = [t.repeat(3, 1) for t in (x, hidden, cell, mask)]
    results = run(tmp_path / "m.onnx", **dict(zip(("x", "state_0", "state_1", "mask"), batch, strict=True)))
    expected = integer(batch[0], batch[1:3], batch[3], 2.0, None)
    assert list(results) == ["output_y", "output_again_0", "output_again_1", "output_score", "output_cell"]
    assert np.allclose(results["output_y"], expected["y"], atol=1e-5)
    assert np.array_equal(results["output_cell"], batch[2])
    assert results["output_score"].shape == ()


@pytest.mark.parametrize(
    ("examples", "dynamic", "sentence"),
    [
        ((torch.zeros(2, 4),), None, "input 'state' is missing"),
        ({"y": torch.zeros(2, 4)}, None, "no argument 'y'"),
        ((torch.zeros(2, 4, dtype=torch.complex64), None, None, 1, None), None, "complex"),
        (
            (torch.zeros(2, 4), (torch.zeros(2, 4), 0), torch.zeros(2, 4) > 0, 1, None),
            {"x": (2,)},
            "axis 2 of input 'x': write a whole number from 0 to 1",
        ),
        (None, {"x": 2}, "axis 2 of input 'x': write a whole number"),
        (None, {"x": "batch"}, "axis 'b' of input 'x': write a whole number"),
        (None, ["x"], r"dynamic=\['x'\] is not possible: write input -> its free axes, \{'x': \(0,\)\}"),
        (
            (torch.zeros(2, 4), (torch.zeros(2, 4), 0), torch.zeros(2, 4) > 0, 1, None),
            {"x": (0,)},
            "cannot run with other",
        ),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    examples: Any, dynamic: Any, sentence: str, tmp_path: Path
) -> None:
    example = (torch.randn(4, 4), (torch.randn(4, 4), torch.ones(4, 4)), torch.rand(4, 4) < 0.5, 2.0, None)
    with pytest.raises(ValueError, match=sentence):
        written(Many(), example, tmp_path / "m.onnx", examples=examples or example, dynamic=dynamic)
    assert list(tmp_path.iterdir()) == []


class Resized(nn.Module):
    """Any height and width; one sample loses an axis to squeeze."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.last(F.interpolate(F.relu(self.first(x)), scale_factor=2, mode="bilinear"))
        return x, x.mean((2, 3), keepdim=True).squeeze()


class OverPositions(nn.Module):
    """Attention over all positions of an image: the product of two free sizes is an axis, and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        n, c, height, width = x.shape
        rows = x.flatten(2).transpose(1, 2)
        products = rows @ rows.transpose(1, 2) / (height * width)
        return (products.softmax(-1) @ rows).transpose(1, 2).reshape(n, c, height, width)


def test_the_product_of_two_free_sizes_is_free(tmp_path: Path) -> None:
    example = torch.randn(2, 3, 6, 6)
    integer = written(OverPositions(), (example,), tmp_path / "m.onnx", dynamic={"x": (0, 2, 3)})
    for other in (example, torch.randn(3, 3, 4, 7)):
        found = torch.as_tensor(run(tmp_path / "m.onnx", x=other)["output"])
        assert_close(found, integer(other).detach(), rtol=0, atol=0.02)


def test_a_file_for_the_sizes_of_two_trials_alone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example_inputs, "OTHER_SIZES", ((2, 3, 1), (3, 2, 1)))  # their product is the same
    with pytest.raises(ValueError, match="ONNX Runtime cannot run the file with other sizes of its free axes"):
        written(OverPositions(), (torch.randn(2, 3, 6, 6),), tmp_path / "m.onnx", dynamic={"x": (0, 2, 3)})


def test_free_height_and_width_and_an_example_of_one_sample(tmp_path: Path) -> None:
    integer = written(Resized(), (torch.randn(1, 3, 6, 8),), tmp_path / "m.onnx", dynamic={"x": (0, 2, 3)})
    other = torch.randn(5, 3, 7, 5)
    results = run(tmp_path / "m.onnx", x=other)
    with torch.no_grad():
        expected = integer(other)
    assert [results[f"output_{i}"].shape for i in (0, 1)] == [(5, 2, 14, 10), (5, 2)]
    assert np.abs(results["output_0"] - expected[0].numpy()).mean() < 0.02 * expected[0].abs().mean()


def test_a_file_of_a_half_model_computes_in_float32(tmp_path: Path) -> None:
    x = torch.randn(4, 4)
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    prepared = qat.prepare(model.eval(), "w8a8")
    qat.calibrate(prepared, [x])
    qat.export_onnx(qat.convert(prepared).double(), x.double(), tmp_path / "m.onnx")
    assert (
        run(tmp_path / "m.onnx", **{session(tmp_path / "m.onnx").get_inputs()[0].name: x})["output"].dtype == np.float32
    )


@pytest.mark.slow
def test_a_network_of_many_layers(tmp_path: Path) -> None:
    """Nothing recurses as deep as the network."""
    layers = nn.Sequential(*[nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU()) for _ in range(300)])
    for weight in layers.parameters():
        nn.init.eye_(weight)
    integer = written(layers, (torch.rand(4, 2),), tmp_path / "m.onnx")
    assert qat.verify(tmp_path / "m.onnx", integer, [torch.rand(3, 2)]).exact
