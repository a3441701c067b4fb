"""Which layers can saturate in the 16-bit sums of processors without VNNI."""

import numpy as np
import pytest
import torch
from torch import nn

import qat


@pytest.mark.parametrize(("bits", "may"), [(8, True), (7, False), (4, False)])
def test_weights_of_8_bits_may_saturate_and_7_bits_never(bits: int, may: bool) -> None:
    torch.manual_seed(0)
    policy = qat.load_policy(f"w{bits}a8", first_last_bits=None)
    prepared = qat.prepare(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)), policy)
    qat.calibrate(prepared, [torch.randn(4, 3, 8, 8)])
    layers = [m for m in qat.convert(prepared).modules() if hasattr(m, "may_saturate")]
    assert [layer.may_saturate for layer in layers] == [may, may]
    for layer in layers:
        codes = np.sort(
            layer.product_units * np.abs(layer.weight.numpy().astype(np.int64)).reshape(len(layer.weight), -1), axis=1
        )
        assert ((codes[:, -2:].sum(axis=1) * 255).max() > np.iinfo(np.int16).max) == may
