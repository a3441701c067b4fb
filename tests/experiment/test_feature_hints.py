"""Features of a teacher: the formula, projections that learn, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qat
from qat.data import digits
from qat.experiment import build, float_network
from qat.experiment.distillation import Distillation
from qat.experiment.feature_hints import FeatureHints, watching
from qat.experiment.schema import check_configuration
from qat.models import save_weights
from qat.models.resnet_cifar import ResNetCifar
from tests.experiment.configurations import changed

X = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return ResNetCifar(8, width=4, in_channels=1).eval(), ResNetCifar(14, width=8, in_channels=1).eval()


def test_the_distance_is_that_of_normalized_features() -> None:
    """Oracle: numpy, in float64."""
    student, _teacher = networks()
    hints = FeatureHints(student, student, ["layer1.0.bn2", "layer3.0.conv1"], X)
    mine = {"layer1.0.bn2": torch.randn(3, 4, 2, 2), "layer3.0.conv1": torch.randn(3, 16)}
    theirs = {name: torch.randn_like(value) for name, value in mine.items()}

    def unit(x: Tensor) -> np.ndarray[Any, Any]:
        rows = x.double().numpy().reshape(3, -1)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    expected = sum(((unit(mine[n]) - unit(theirs[n])) ** 2).sum(1).mean() for n in mine)
    assert float(hints(mine, theirs)) == pytest.approx(expected, rel=1e-5)
    assert float(hints(mine, {name: 3.7 * value for name, value in mine.items()})) == pytest.approx(0.0, abs=1e-6)
    assert not list(hints.parameters())  # nothing to project


def test_a_teacher_of_other_width_is_projected_and_the_projection_learns() -> None:
    student, teacher = networks()
    hints = FeatureHints(student, teacher, ["layer2.0.bn2:layer2.1.bn2", "linear"], X)
    assert [tuple(p.shape) for p in hints.parameters()] == [(16, 8, 1, 1)]
    prepared = qat.prepare(student, "w4a8", X)
    qat.calibrate(prepared, [X])
    distillation = Distillation(teacher, 0.0, hints=hints)
    with distillation.watch(prepared) as features:
        logits = prepared(X)
    distillation(X, logits, torch.tensor(1.0), features).backward()
    assert all(p.grad is not None and p.grad.any() for p in hints.parameters())
    assert prepared.layer2[0].conv1.weight.grad.any()  # type: ignore[index, union-attr]
    assert prepared.layer3[0].conv1.weight.grad.any()  # type: ignore[index, union-attr]
    assert not any(p.requires_grad for p in distillation.teacher.parameters())


def test_a_layer_that_lost_channels_teaches_nothing() -> None:
    student, _ = networks()
    hints = FeatureHints(student, student, ["layer1.0.bn1"], X)
    features = {"layer1.0.bn1": torch.randn(2, 3, 8, 8)}
    with pytest.raises(
        ValueError, match=r"layer1\.0\.bn1 had 4 channels and has 3, because pruning\.channels took some out"
    ):
        hints(features, features)


def test_nothing_is_watched_afterwards() -> None:
    student, _ = networks()
    with watching(student, ["conv1"]) as found:
        student(X)
    before = found["conv1"]
    student(X)
    assert found["conv1"] is before


def test_a_feature_is_what_its_layer_gave_before_an_operation_in_place() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True))
    with watching(network, ["0"]) as found:
        network(X)
    assert torch.equal(found["0"], network[0](X))


def test_a_layer_that_runs_twice_is_refused() -> None:
    layer = nn.Conv2d(1, 1, 3, padding=1)
    with pytest.raises(
        ValueError, match=r"'0' of the network runs 2 times, and gives as many features: name a layer that"
    ):
        FeatureHints(nn.Sequential(layer, layer), nn.Sequential(layer), ["0"], X)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["layer9"], "'layer9' is not a layer of the network"),
        (["layer3"], "'layer3' is not a layer of the network: write names such as"),
        (["conv1:layer9.conv"], "'layer9.conv' is not a layer of the teacher"),
        (["conv1:linear"], "name layers that both give"),
    ],
)
def test_layers_that_do_not_fit_are_refused(pairs: list[str], message: str) -> None:
    student, teacher = networks()
    with pytest.raises(ValueError, match=message):
        FeatureHints(student, teacher, pairs, X)


def test_a_teacher_of_other_classes_or_too_hot_is_refused() -> None:
    with pytest.raises(ValueError, match="use a teacher of the same classes"):
        Distillation(nn.Linear(3, 4))(torch.rand(2, 3), torch.rand(2, 5), torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"temperature=20.0 is not in \[0\.01, 10\]"):
        Distillation(nn.Linear(3, 4), temperature=20.0)


def test_a_recipe_takes_a_teacher_of_another_architecture(tmp_path: Path) -> None:
    data = digits(limit_train=20)
    _, teacher = networks()
    path = tmp_path / "teacher.safetensors"
    save_weights(teacher, path, {})
    values = ["distillation.weight=0.5", "distillation.features=['layer3.0.bn2:layer3.1.bn2']"]
    config = changed(*values)
    config.distillation.teacher = {"_target_": "qat.models.ResNetCifar", "depth": 14, "width": 8}
    check_configuration(config)
    network = float_network.build(config.model, data)
    with pytest.raises(ValueError, match=r"write distillation.teacher.checkpoint=PATH"):
        build.distillation(config, network, data)
    config.distillation.teacher = {**config.distillation.teacher, "checkpoint": str(path)}
    made = build.distillation(config, network, data)
    assert made is not None
    assert torch.equal(made.teacher.conv1.weight, teacher.conv1.weight)
    classifier = build.classifier(network, config, data, distillation=made)
    names = [name for name, _ in classifier.named_parameters()]
    assert any(name.startswith("hints.projections") for name in names) == (network.linear.in_features != 32)
    assert not any("teacher" in name for name in names)
