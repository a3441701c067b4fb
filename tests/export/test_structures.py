"""Inputs and outputs of any structure, and arguments that forward calculates: from the model to the verified file."""

import copy
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat
from tests.networks import build


@dataclass
class Found:
    logits: Tensor
    aux: Tensor | None = None
    maps: tuple[Tensor, ...] = ()


@dataclass
class Sample:
    image: Tensor
    age: Tensor


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


class ReturnsDataclass(nn.Module):
    """A dataclass, in one field alone, and a dict around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.conv(x))
        found = Found(self.head(y.mean((2, 3))), maps=(y, y.amax(1)))
        return {"found": found, "scale": 3, "name": "text", "none": None}


class ExportedDataclass(ReturnsDataclass):
    """The same with a list of images, which torch.fx cannot follow, and a dict with a number."""

    def forward(self, x: dict[str, Any], scale: Tensor) -> Any:
        y = sum(F.relu(self.conv(image)).mean((2, 3)) for image in x["images"])
        return Found(self.head(y * scale) + x["more"]["bias"], aux=y)


class TakesDataclass(ReturnsDataclass):
    """A dataclass and a named tuple."""

    def forward(self, x: Sample, pair: Pair) -> Any:
        return self.head(F.relu(self.conv(x.image)).mean((2, 3)) * x.age) + pair.left - pair.right


class Calculated(nn.Module):
    """Axes and windows that forward calculates, and types that it mixes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head, self.slope = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4), nn.RReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = self.slope(self.b(x.permute(0, x.dim() - 3, x.dim() - 1, 2).transpose(x.dim() - 1, 2)))
        pooled = F.avg_pool2d(x, x.size()[2:]).flatten(1) + F.max_pool2d(x, (x.size(2), x.size(3))).flatten(1)
        means = x.flatten(2).mean(x.dim() - 2)
        rank = torch.arange(8) * (pooled > 0) + torch.arange(8).unsqueeze(0)
        return self.head(pooled * rank) + means.sum(1, keepdim=True)


class Shared(nn.Module):
    """One layer three times, and pools that pickle does not find by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = F.adaptive_max_pool2d(F.relu(self.layer(x)), 8)
        return self.head(F.max_pool2d(x, x.size()[2:]).flatten(1))


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 10, 10)


def listed(n: int) -> tuple[Any, ...]:
    return {"images": [images(n), torch.randn(n, 3, 8, 8)], "k": 3, "more": {"bias": torch.randn(n, 4)}}, torch.rand(
        n, 8
    )


CASES: dict[type[nn.Module], Any] = {
    ReturnsDataclass: lambda n: (images(n),),
    ExportedDataclass: listed,
    TakesDataclass: lambda n: (Sample(images(n), torch.rand(n, 1)), Pair(torch.rand(n, 4), torch.rand(n, 4))),
    Calculated: lambda n: (images(n),),
    Shared: lambda n: (images(n),),
}


@pytest.mark.parametrize("network", CASES, ids=lambda network: network.__name__)
def test_the_file_is_verified_and_the_integer_model_is_copied(network: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, example, other = build(network), CASES[network](4), CASES[network](3)
    prepared = qat.prepare(model, "w8a8", example)
    assert "layer by layer" not in qat.inspect(prepared).capture
    qat.calibrate(prepared, [example])
    assert type(prepared(*example)) is type(model(*example))
    integer = qat.convert(prepared)
    qat.export_onnx(integer, example, tmp_path / "model.onnx")
    check = qat.verify(tmp_path / "model.onnx", integer, [example, other], prepared)
    assert check.passed, check
    for again in (copy.deepcopy(integer), pickle.loads(pickle.dumps(integer))):
        assert str(again(*example)) == str(integer(*example))


def test_outputs_and_inputs_are_named_after_fields(tmp_path: Path) -> None:
    names = {}
    for network in (ReturnsDataclass, TakesDataclass):
        example = CASES[network](2)
        prepared = qat.prepare(build(network), "w8a8", example)
        qat.calibrate(prepared, [example])
        qat.export_onnx(qat.convert(prepared), example, tmp_path / "model.onnx")
        graph = onnx.load(tmp_path / "model.onnx").graph
        names[network] = [i.name for i in graph.input], [o.name for o in graph.output]
    assert names[ReturnsDataclass][1] == ["output_found_logits", "output_found_maps_0", "output_found_maps_1"]
    assert names[TakesDataclass][0] == ["x_image", "x_age", "pair_left", "pair_right"]
