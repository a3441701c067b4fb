"""A model that FSDP2 has split is refused in a sentence, in one process as in many."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist
from torch import nn

import qat


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_a_model_that_is_split_among_processes_is_refused() -> None:
    fully_shard = pytest.importorskip("torch.distributed.fsdp").fully_shard
    model = nn.Sequential(nn.Linear(4, 4))
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (1,)))
    with pytest.raises(
        ValueError, match=r"^0\.weight is split among processes .* train it with DistributedDataParallel\.$"
    ):
        qat.prepare(model, "w8a8")
