"""A prepared network computes in training what forward does there: auxiliary heads, other results, losses that it stores."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat
from qat.torch_private import tree_leaves


class Trunk(nn.Module):
    """Two convolutions and a linear layer; what training adds differs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.second, self.head = nn.Conv2d(4, 4, 3), nn.Linear(4, 3)
        self.auxiliary = nn.Sequential(nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.Dropout(0.0), nn.AdaptiveAvgPool2d(1))
        self.centers = nn.Parameter(torch.randn(3, 4))
        self.losses: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Any:
        features = self.first(x)
        pooled = F.relu(self.second(features), inplace=True).mean((2, 3))
        return self.results(features, pooled, self.head(pooled))

    def results(self, features: Tensor, pooled: Tensor, y: Tensor) -> Any:
        raise NotImplementedError


class Heads(Trunk):
    def results(self, features: Tensor, pooled: Tensor, y: Tensor) -> Any:
        return (y, self.auxiliary(features), [self.auxiliary(features)]) if self.training else y


class ReadsWhatIsOverwritten(Trunk):
    def forward(self, x: Tensor) -> Any:
        features = self.first[0](x)
        other = features.mean((2, 3)) if self.training else None
        y = self.head(F.relu(features, inplace=True).mean((2, 3)))
        return (y, other) if self.training else y


class SharedHead(Trunk):
    def results(self, features: Tensor, pooled: Tensor, y: Tensor) -> Any:
        return {"out": y, "early": self.head(features.mean((2, 3)))} if self.training else {"out": y}


class Probabilities(Trunk):
    def results(self, features: Tensor, pooled: Tensor, y: Tensor) -> Any:
        return y if self.training else y.softmax(-1)


class Features(Trunk):
    def results(self, features: Tensor, pooled: Tensor, y: Tensor) -> Any:
        return pooled if self.training else y


class Margins(Trunk):
    def results(self, features: Tensor, pooled: Tensor, y: Tensor) -> Any:
        return F.normalize(pooled) @ F.normalize(self.centers).T if self.training else y


class StoredLoss(Trunk):
    def results(self, features: Tensor, pooled: Tensor, y: Tensor) -> Any:
        if self.training:
            self.losses["auxiliary"] = self.auxiliary(features).square().mean()
        return y


class StoredFeatures(Trunk):
    def results(self, features: Tensor, pooled: Tensor, y: Tensor) -> Any:
        if self.training:
            self.losses["pooled"] = pooled
        return y


class NoiseOfResult(Trunk):
    def results(self, features: Tensor, pooled: Tensor, y: Tensor) -> Any:
        return y + torch.randn_like(y) if self.training else y


class NoiseInside(Trunk):
    def results(self, features: Tensor, pooled: Tensor, y: Tensor) -> Any:
        return self.head(pooled + torch.randn_like(pooled)) if self.training else self.head(pooled)


NETWORKS = [
    Heads, ReadsWhatIsOverwritten, SharedHead, Probabilities, Features, Margins, StoredLoss, StoredFeatures, NoiseOfResult,
]  # fmt: skip


def trained(model: Any, x: Tensor) -> tuple[Any, dict[str, Tensor | None], dict[str, Tensor]]:
    """What it returns and stores in training, the gradients, and the statistics afterwards."""
    torch.manual_seed(0)
    results = model.train()(x), dict(model.losses)
    model.losses.clear()
    sum(((i + 1) * t.square().sum() for i, t in enumerate(tree_leaves(results))), torch.zeros(())).backward()
    gradients = {
        name: p.grad for name, p in model.named_parameters() if "sites" not in name and "quantizer" not in name
    }
    return results, gradients, {name: b for name, b in model.named_buffers() if "running" in name}


@pytest.mark.parametrize("network", NETWORKS)
def test_training_computes_what_the_float_network_computes(network: type[Trunk]) -> None:
    torch.manual_seed(0)
    model, x = network().eval(), torch.randn(4, 3, 8, 8)
    prepared = qat.prepare(model, "w8a8", x)
    with qat.mode(prepared, qat.Mode.OFF):
        torch.testing.assert_close(prepared.eval()(x), model(x))
        for network_again in (prepared, pickle.loads(pickle.dumps(prepared)), copy.deepcopy(prepared)):
            torch.testing.assert_close(trained(network_again, x), trained(copy.deepcopy(model), x))


def test_auxiliary_heads_train_beside_the_quantized_trunk_and_no_file_has_them(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 8, 8)
    prepared = qat.prepare(Heads().eval(), "w8a8", x)
    qat.calibrate(prepared, [x])
    assert (
        qat.inspect(prepared).notes[0] == "auxiliary.0, auxiliary.1: run in training alone, in float; no file has them."
    )
    share = qat.inspect(prepared).share
    assert share is not None
    assert share.weights == 1.0
    prepared.train()(x)[1].sum().backward()
    assert prepared.first[0].weight.grad is not None  # type: ignore[union-attr,index]
    integer = qat.convert(prepared.eval())
    qat.export_onnx(integer, x, tmp_path / "model.onnx")
    assert qat.verify(tmp_path / "model.onnx", integer, [x], prepared=prepared).passed


def test_training_that_changes_what_layers_read_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="NoiseInside branches on self.training"):
        prepared = qat.prepare(NoiseInside().eval(), "w8a8", torch.randn(4, 3, 8, 8))
    assert not hasattr(prepared, "only_in_training")
