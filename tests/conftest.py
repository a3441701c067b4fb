"""Every test starts from the same random numbers, on one thread: small tensors wait longer for threads than they compute."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)
