from itertools import pairwise

import pytest
import torch
from torch import nn

from qat.experiment.learning_rate import warmup_cosine


def rates(steps: int, **options: float) -> list[list[float]]:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [parameters[0]]}, {"params": [parameters[1]], "lr": 0.1}], lr=1.0)
    scheduler = warmup_cosine(optimizer, steps, **options)
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


def test_it_rises_to_the_learning_rate_and_falls_to_zero() -> None:
    first = [rate for rate, _ in rates(20, warmup=0.1)]
    assert first[:3] == [0.5, 1.0, 1.0]
    assert all(a > b for a, b in pairwise(first[2:]))
    assert 0 < first[-1] < 0.01


def test_groups_keep_their_ratio() -> None:
    assert all(slow == pytest.approx(0.1 * fast) for fast, slow in rates(15))


def test_what_is_left_at_the_end_is_final() -> None:
    assert rates(50, final=0.5)[-1][0] == pytest.approx(0.5, abs=0.01)


def test_one_step_and_no_warmup_work() -> None:
    assert rates(1, warmup=0.5)[0][0] == 1.0
    assert rates(3, warmup=0.0)[0][0] == 1.0


@pytest.mark.parametrize("options", [{"warmup": 1.0}, {"warmup": -0.1}, {"final": 1.5}])
def test_impossible_shares_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="is not in"):
        rates(2, **options)
