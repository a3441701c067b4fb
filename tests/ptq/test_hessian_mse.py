"""HessianMSE against a search over every scale, by the error that it wants to be small."""

import numpy as np
import pytest
import torch
from torch import nn

import qat
from qat.nn import as_quantized, is_quantized
from qat.ptq import Calibrate, HessianMSE, apply_passes
from qat.ptq.hessian_mse import input_second_moments
from qat.transform import quantizers
from tests.networks import OptionA, build, images

LAYERS = [
    (nn.Linear(6, 4, bias=False), (3, 5, 6)),
    (nn.Conv2d(4, 6, (3, 1), padding=(2, 0), stride=2, groups=2, bias=False), (2, 4, 7, 9)),
    (nn.Conv1d(4, 4, 3, padding=2, groups=4, bias=False), (2, 4, 9)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=["linear", "strided groups", "one-dimensional depthwise"])
def test_importance_is_half_the_second_derivative_of_the_mean_square_of_the_output(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    """d^2 mean over positions of y_c^2 / dw_j^2 = 2 E[x_j^2]: by finite differences, exact for a quadratic."""
    x, layer = torch.randn(shape).double(), layer.double()
    channels = -1 if isinstance(layer, nn.Linear) else 1

    def energy(w: torch.Tensor) -> np.ndarray:
        y = torch.func.functional_call(layer, {"weight": w}, x).movedim(channels, 0).flatten(1)
        return y.square().mean(dim=1).detach().numpy()

    weight, found = layer.weight.detach(), input_second_moments(layer, [x[:1], x[1:]]).numpy()
    assert found.shape == tuple(weight.shape)
    for index in np.ndindex(*weight.shape):
        step = torch.zeros_like(weight)
        step[index] = 1.0
        second = (energy(weight + step) - 2 * energy(weight) + energy(weight - step))[index[0]]
        assert found[index] == pytest.approx(second / 2, rel=1e-9)


@pytest.mark.parametrize("rule", [{}, {"granularity": "per_tensor"}, {"granularity": "per_group", "group_size": 8}])
def test_the_scales_are_the_best_of_a_brute_force_search(rule: dict[str, object]) -> None:
    x = torch.randn(300, 16) * torch.logspace(-2, 1, 16)  # some inputs matter a thousand times as much as others
    network = nn.Sequential(nn.Linear(16, 3))
    policy = qat.load_policy({"rules": {"all": {"match": "*", "weight": {"bits": 3, **rule}, "activation": None}}})
    made, plain = (apply_passes([Calibrate(), *more], network, policy, [x]) for more in ([HessianMSE(400)], []))
    size = {"per_tensor": 48, "per_group": 8}.get(str(rule.get("granularity")), 16)
    w = network[0].weight.detach().double().numpy().reshape(-1, size)
    h = np.tile((x.double().numpy() ** 2).mean(axis=0), 3).reshape(-1, size)

    def error(scale: np.ndarray) -> np.ndarray:
        return (h * (np.clip(np.rint(w / scale[:, None]), -3, 3) * scale[:, None] - w) ** 2).sum(axis=1)

    best = np.min([error(np.abs(w).max(axis=1) / 3 * f) for f in np.linspace(0.001, 1, 2000)], axis=0)
    ours, usual = (error(as_quantized(m[0]).weight_quantizer.qparams().scale.double().numpy()) for m in (made, plain))
    assert (ours <= 1.01 * best).all()
    assert (usual > 1.05 * best).any()
    assert torch.equal(made[0].weight, network[0].weight)


def test_layers_see_the_inputs_that_the_layers_before_leave_them() -> None:
    """Layer by layer, with the quantizer as it was set: the second layer's error is the smallest for these inputs."""
    made, x = build(OptionA), images(32)
    found = apply_passes([Calibrate("MinMax"), HessianMSE()], made, "w2a8", [x])
    plain = apply_passes([Calibrate("MinMax")], made, "w2a8", [x])
    inputs: dict[str, torch.Tensor] = {}
    layers = {name: module for name, module in found.named_modules() if is_quantized(module)}
    for name, module in layers.items():
        module.register_forward_hook(lambda _m, i, _y, name=name: inputs.update({name: i[0].detach()}))
    found(x)
    for name, module in layers.items():
        h = input_second_moments(module, [inputs[name]])

        def error(network: nn.Module, name: str = name, h: torch.Tensor = h) -> float:
            layer = as_quantized(network.get_submodule(name))
            return float((h * (layer.weight_quantizer(layer.weight) - layer.weight).detach().square()).sum())

        assert error(found) <= error(plain)
    scales = [[q.qparams().scale for q in quantizers(m).values() if q.is_weight] for m in (found, plain)]
    assert sum(not torch.equal(ours, usual) for ours, usual in zip(*scales, strict=True)) >= 2


def test_inputs_that_are_always_zero_leave_the_full_range() -> None:
    network = nn.Sequential(nn.Linear(4, 2))
    with pytest.warns(UserWarning, match="saw nothing to represent but zeros"):
        found = apply_passes([Calibrate(), HessianMSE()], network, "w3a8", [torch.zeros(5, 4)])
    scale = as_quantized(found[0]).weight_quantizer.qparams().scale
    expected = network[0].weight.abs().amax(dim=1) / as_quantized(found[0]).weight_quantizer.spec.grid.qmax
    torch.testing.assert_close(scale, expected)


def test_no_candidates_are_refused() -> None:
    with pytest.raises(ValueError, match="candidates=0 is not possible: write a whole number, 1 or more, such as 100"):
        HessianMSE(candidates=0)
