import numpy as np
import pytest
import torch

from qat import PerChannel, PerGroup, PerTensor
from tests.oracles.fake_quantize import per_channel, per_group, per_tensor

SHAPES = [(6, 4), (3, 2, 4), (2, 8, 3, 3)]
CASES = [(PerTensor(), per_tensor), (PerChannel(), per_channel), (PerChannel(1), lambda s: per_channel(s, 1))]
CASES += [(PerChannel(-1), lambda s: per_channel(s, -1)), (PerGroup(4), lambda s: per_group(s, 4))]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("granularity", "oracle"), CASES, ids=[str(g) for g, _ in CASES])
def test_who_shares_a_scale(granularity: PerTensor, oracle, shape: tuple[int, ...]) -> None:
    shared = oracle(shape)
    n = granularity.n_qparams(shape)
    assert n == shared.max() + 1
    x = torch.arange(np.prod(shape)).reshape(shape)
    # each element of the view meets its own scale when broadcast
    broadcast = granularity.broadcastable(torch.arange(n), shape).expand(granularity.view(x).shape).reshape(shape)
    assert np.array_equal(broadcast.numpy(), shared)
    # each row holds the elements of one scale
    rows = granularity.rows(x)
    assert rows.shape[0] == n
    for i, row in enumerate(rows):
        assert sorted(row.tolist()) == sorted(x.numpy()[shared == i].tolist())


def test_a_group_never_crosses_an_output_channel() -> None:
    with pytest.raises(
        ValueError, match=r"group_size=8 does not divide the 12 weights of each output channel"
    ) as error:
        PerGroup(8).n_qparams((4, 3, 2, 2))  # 48 weights: 8 divides the tensor but no channel
    assert "shape (4, 3, 2, 2)" in str(error.value)
    assert "group_size=6 or granularity=per_channel" in str(error.value)


@pytest.mark.parametrize("size", [0, -3, 2.5, None])
def test_an_impossible_group_says_what_to_write(size: object) -> None:
    with pytest.raises(
        ValueError, match=rf"group_size={size!r} is not a valid group size: write a positive whole number"
    ):
        PerGroup(size)  # type: ignore[arg-type]


def test_an_axis_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match=r"axis=2 does not exist in a tensor of shape \(3, 4\)"):
        PerChannel(2).n_qparams((3, 4))
