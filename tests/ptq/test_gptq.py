"""GPTQ against optimal brain quantization, written down naively."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qat
from qat import Grid, PerChannel, QuantSpec
from qat.ptq import GPTQ, AdaRound, Calibrate, HessianMSE, apply_passes
from qat.ptq.gptq import Rounding, round_columns, rounding_of
from qat.ptq.unfold import unfold_inputs
from qat.quantizers import Static


def naive(weight: np.ndarray, hessian: np.ndarray, scale: np.ndarray, damping: float) -> np.ndarray:
    """OBQ in fixed order: round the first weight left, correct the others by eq. 2, take it out of the inverse by eq. 3."""
    out = np.empty_like(weight)
    damped = hessian + damping * np.diag(hessian).mean() * np.eye(len(hessian))
    for row in range(len(weight)):
        w, inverse = weight[row].copy(), np.linalg.inv(damped)
        for q in range(len(w)):
            out[row, q] = np.clip(np.rint(w[q] / scale[row, q]), -7, 7) * scale[row, q]
            w -= (w[q] - out[row, q]) / inverse[q, q] * inverse[q]
            inverse -= np.outer(inverse[:, q], inverse[q]) / inverse[q, q]
            inverse[q, q] = 1.0  # out of the game
    return out


def on_grid(scale: torch.Tensor) -> Rounding:
    """Rounding to 4 bits, narrow."""
    quantizer = Static(QuantSpec(Grid(4, narrow=True), PerChannel()), tuple(scale.shape))
    return rounding_of(quantizer, scale, torch.zeros_like(scale))


def test_it_computes_what_obq_computes_in_that_order() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 12)) @ generator.normal(size=(12, 12))
    weight, hessian = generator.normal(size=(5, 12)), 2 * x.T @ x
    scale = np.repeat(np.abs(weight).max(axis=1, keepdims=True) / 7, 12, axis=1).astype(np.float32)
    grid = on_grid(torch.tensor(scale))
    found = round_columns(torch.tensor(weight), torch.tensor(hessian), grid, damping=0.01).numpy()
    expected = naive(weight, hessian, scale.astype(np.float64), 0.01)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    nearest = np.clip(np.rint(weight / scale), -7, 7) * scale
    error = {name: np.square((w - weight) @ x.T).sum() for name, w in (("gptq", found), ("nearest", nearest))}
    assert error["gptq"] < 0.7 * error["nearest"]


def test_an_input_that_is_always_zero_decides_nothing() -> None:
    hessian = torch.diag(torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64))
    grid = on_grid(torch.full((1, 3), 0.5))
    assert torch.equal(round_columns(torch.tensor([[0.6, 0.9, 1.1]]), hessian, grid), torch.tensor([[0.5, 1.0, 1.0]]))


def test_inputs_that_are_always_zero_do_not_dampen_the_others() -> None:
    generator = np.random.default_rng(0)
    x = 1e-4 * generator.normal(size=(200, 12)) @ generator.normal(size=(12, 12))
    x[:, [2, 5, 9]] = 0.0
    weight, hessian = torch.tensor(generator.normal(size=(5, 12))), torch.tensor(2 * x.T @ x)
    grid = on_grid(torch.full((5, 12), 0.4))
    small, large = (round_columns(weight, hessian * factor, grid) for factor in (1.0, 1e8))
    assert torch.equal(small, large)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4, bias=False), (3, 5, 6)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 7, 9)),
        (nn.Conv2d(4, 6, (3, 1), padding=(2, 0), dilation=(2, 1), groups=2, bias=False), (2, 4, 7, 9)),
        (nn.Conv2d(4, 4, 3, padding="same", padding_mode="reflect", groups=4, bias=False), (2, 4, 7, 9)),
        (nn.Conv1d(4, 6, 3, stride=2, padding=2, bias=False), (2, 4, 9)),
    ],
    ids=["linear", "stride", "dilation and groups", "depthwise, same, reflect", "one-dimensional"],
)
def test_outputs_are_products_with_the_patches(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    groups = getattr(layer, "groups", 1)
    inputs = unfold_inputs(layer, x).unflatten(1, (groups, -1)).transpose(0, 1)
    weight = layer.weight.flatten(1).unflatten(0, (groups, -1))  # (groups, out, in)
    products = (inputs @ weight.transpose(1, 2)).transpose(0, 1).flatten(1)  # (rows, out)
    expected = layer(x)
    rows = (
        expected.flatten(0, -2) if isinstance(layer, nn.Linear) else expected.flatten(2).transpose(1, 2).flatten(0, 1)
    )
    torch.testing.assert_close(products, rows)
    assert F.mse_loss(rows, torch.zeros_like(rows)) > 0


def test_a_damping_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"damping=0 is not possible: write a positive number, for example 0\.01\."):
        GPTQ(damping=0)


@pytest.mark.parametrize("policy", ["mxfp4_weights", "nvfp4_weights"])
def test_a_floating_point_format_keeps_its_scales_and_gets_a_smaller_error(policy: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(50, 48), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 8)).eval()
    batches = [torch.randint(50, (32,)) for _ in range(4)]
    rule = qat.load_policy(policy, first_last_bits=None)
    plain = apply_passes([Calibrate("MinMax")], network, rule, batches)
    found = apply_passes([Calibrate("MinMax"), HessianMSE(), GPTQ()], network, rule, batches)
    errors = []
    for quantized in (plain, found):
        errors.append(sum((quantized(x) - network(x)).square().mean().item() for x in batches))
        for layer, other in zip(quantized, plain, strict=True):
            if hasattr(layer, "weight_quantizer"):
                ours, theirs = layer.weight_quantizer, other.weight_quantizer
                assert torch.equal(ours.qparams().scale, theirs.qparams().scale)
    assert torch.equal(found[1].weight_quantizer(found[1].weight), found[1].weight)  # on its grid
    assert torch.equal(found[0].weight, network[0].weight)  # an embedding has no products
    assert errors[1] < 0.8 * errors[0]


def test_passes_for_codes_leave_floating_point_formats_as_they_are() -> None:
    network = nn.Sequential(nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 8)).eval()
    x = torch.randn(16, 48)
    found = apply_passes([Calibrate("MinMax"), AdaRound(iterations=2)], network, "mxfp4_weights", [x])
    assert torch.equal(found[0].weight, network[0].weight)
