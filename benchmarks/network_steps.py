"""The training steps of a benchmark network: in float, and quantized with each policy."""

from __future__ import annotations

import torch

import qat
from benchmarks.networks import BenchmarkNetwork
from benchmarks.training_step import TrainingStep


def training_steps(
    benchmark: BenchmarkNetwork,
    policies: list[str],
    precision: str,
    device: str,
    batch: int | None,
    layout: str = "contiguous",
) -> dict[str, TrainingStep]:
    """A step of the float network, and one of the network quantized with each policy: LSQ, every scale learned.

    Initial ranges are min-max, the quickest to observe; they do not change the cost of a step.
    """
    torch.manual_seed(0)
    x, y = benchmark.example(batch, device)
    network = benchmark.build().to(device).train()
    if layout == "channels_last":
        x, network = x.to(memory_format=torch.channels_last), network.to(memory_format=torch.channels_last)
    steps = {"float": TrainingStep(network, x, y, precision)}
    for policy in policies:
        prepared = qat.prepare(network, qat.load_policy(policy).with_parts("LSQ", "MinMax"))
        qat.calibrate(prepared, [x])
        steps[policy] = TrainingStep(prepared.train(), x, y, precision)
    return steps
