"""On a GPU: nothing waits for the device, and its integers are those of the CPU. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import qat
from qat.kernels import triton
from qat.models import ResNetCifar

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device: the GPU paths are not tested"),
]


@contextmanager
def no_synchronization() -> Iterator[None]:
    """Inside, whatever makes the host wait for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def prepared(policy: str) -> tuple[torch.nn.Module, Tensor]:
    network, x = ResNetCifar(8).cuda(), torch.randn(8, 3, 16, 16, device="cuda")
    network = qat.prepare(network, policy)
    qat.calibrate(network, [x])
    return network.train(), x


def test_triton_is_there() -> None:
    assert triton.available()


@pytest.mark.parametrize("policy", ["w8a8", "w4a4", "w2a2"])
def test_a_step_does_not_wait_for_the_device(policy: str) -> None:
    network, x = prepared(policy)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    labels = torch.zeros(len(x), dtype=torch.long, device="cuda")
    for _ in range(2):  # the first one compiles
        F.cross_entropy(network(x), labels).backward()
        optimizer.step()
    with no_synchronization():
        F.cross_entropy(network(x), labels).backward()
        optimizer.step()


def test_integers_are_those_of_the_cpu() -> None:
    network, x = prepared("w4a8")
    integer = qat.convert(network.eval())
    codes = {name: c.cpu() for name, c in integer.codes(x)[1].items()}
    expected = integer.cpu().codes(x.cpu())[1]
    assert codes.keys() == expected.keys()
    assert all(torch.equal(codes[name], expected[name]) for name in codes)
