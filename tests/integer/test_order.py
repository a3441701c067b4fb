"""Equal values have one order in the integer model, in its file, and in what verify compares them with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import qat
from qat.integer.order import ORDERED, OneOrder, argsort, kthvalue, median, sort, topk

X = torch.randint(0, 4, (3, 40, 7), generator=torch.Generator().manual_seed(0)).float()
CHOICES: dict[str, Callable[[Tensor], Any]] = {
    "topk": lambda x: x.topk(5, dim=1),
    "smallest": lambda x: torch.topk(x, 5, dim=1, largest=False, sorted=False),
    "sort": lambda x: torch.sort(x, dim=1, descending=True),
    "argsort": lambda x: (x, x.argsort(1)),
    "kthvalue": lambda x: torch.kthvalue(x, k=7, dim=1, keepdim=True),
    "median": lambda x: x.median(dim=1, keepdim=True),
}


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_the_lower_index_comes_first(dim: int) -> None:
    up, down = (np.argsort(a, dim, kind="stable") for a in (X.numpy(), -X.numpy()))
    middle = np.take(up, [(X.shape[dim] - 1) // 2], dim)
    for found, expected in (
        (argsort(X, dim), up),
        (sort(X, dim, True).indices, down),
        (topk(X, 2, dim).indices, np.take(down, [0, 1], dim)),
        (topk(X, 2, dim, largest=False).indices, np.take(up, [0, 1], dim)),
        (kthvalue(X, 2, dim, keepdim=True).indices, np.take(up, [1], dim)),
        (median(X, dim, keepdim=True).indices, middle),
        (median(X, dim).indices, middle.squeeze(dim)),
    ):
        np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("keepdim", [False, True])
def test_the_values_are_those_of_torch(dim: int, keepdim: bool) -> None:
    for name in ("kthvalue", "median"):
        arguments = {"dim": dim, "keepdim": keepdim, **({"k": 3} if name == "kthvalue" else {})}
        torch.testing.assert_close(ORDERED[name](X, **arguments).values, getattr(torch, name)(X, **arguments).values)
    torch.testing.assert_close(topk(X, 3, dim).values, X.topk(3, dim).values)


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_torch_has_it_inside_a_context(choice: Callable[[Tensor], Any]) -> None:
    down = choice is CHOICES["topk"] or choice is CHOICES["sort"]
    order = np.argsort(-X.numpy() if down else X.numpy(), 1, kind="stable")
    with OneOrder():
        indices = choice(X)[1].numpy()
    rank = {"kthvalue": 6, "median": 19}.get(next(n for n, c in CHOICES.items() if c is choice), 0)
    np.testing.assert_array_equal(indices, order[:, rank : rank + indices.shape[1]])


class Detector(nn.Module):
    """Scores on 256 codes, and the boxes of those that are chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.scores, self.boxes = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> list[Tensor]:
        h = self.features(x).relu()
        scores, boxes = self.scores(h).sigmoid(), self.boxes(h)
        chosen = [choice(scores)[1][:, :3] for choice in CHOICES.values()]
        return [*chosen, *(boxes.gather(1, index.expand(-1, -1, 4)) for index in chosen)]


def test_a_file_chooses_what_its_model_chooses(tmp_path: Path) -> None:
    """Some hundred scores at 4 bits are often equal."""
    torch.manual_seed(0)
    x, other = torch.randn(2, 200, 4), torch.randn(3, 200, 4)
    prepared = qat.prepare(Detector(), "w4a4", x)
    qat.calibrate(prepared, [x, other])
    integer = qat.convert(prepared.eval())
    qat.export_onnx(integer, x, tmp_path / "model.onnx")
    check = qat.verify(tmp_path / "model.onnx", integer, [x, other], prepared)
    assert check.passed, check
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for ours, theirs in zip(integer(other), session.run(None, {"x": other.numpy()}), strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, atol=1e-5)
    assert torch.equal(qat.load_quantized(qat.save_quantized(integer, tmp_path / "folder"))(x)[0], integer(x)[0])
