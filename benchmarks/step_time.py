"""Time of a training step, quantized over float, and of fake_quantize over `a + b`; everything takes turns in one process.

python benchmarks/step_time.py [--rounds 30] [--threads 2] [--out benchmarks/results/step_time/cpu.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat
from qat.functional import fake_quantize
from qat.models import ResNetCifar
from qat.report import Environment, write_atomically


def interleaved(work: dict[str, Callable[[], None]], rounds: int, warmup: int = 3) -> dict[str, list[float]]:
    """Seconds of every call; the candidates take turns, so that a busy machine slows all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + warmup):
        for name, call in work.items():
            start = time.perf_counter()
            call()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: dict[str, list[float]], floor: str) -> dict[str, dict[str, float]]:
    """Median seconds, and the ratio to `floor` turn by turn: median and quartiles."""
    result = {}
    for name, measured in seconds.items():
        paired = sorted(a / b for a, b in zip(measured, seconds[floor], strict=True))
        quarter = len(paired) // 4
        result[name] = {
            "seconds": statistics.median(measured),
            "ratio": statistics.median(paired),
            "ratio_lower_quartile": paired[quarter],
            "ratio_upper_quartile": paired[-1 - quarter],
        }
    return result


def training_step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """One forward, backward and SGD step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def resnet20(batch: int) -> dict[str, Callable[[], None]]:
    """Float, W8A8 and W4A4 (LSQ, weights per channel, every site learned)."""
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    network = ResNetCifar(20).train()
    work = {"float": training_step(network, x, y)}
    for policy in ("w8a8", "w4a4"):
        prepared = qat.prepare(network, policy)
        qat.calibrate(prepared, [x])
        work[policy] = training_step(prepared.train(), x, y)
    return work


def _discard(_: Tensor) -> None:
    """Let the result go."""


def operation() -> dict[str, Callable[[], None]]:
    """fake_quantize forward and backward on (128, 16, 32, 32) and on a weight, beside a + b on the same tensors."""
    x = torch.randn(128, 16, 32, 32, requires_grad=True)
    weight = torch.randn(512, 512, 3, 3, requires_grad=True)
    scale, scales = torch.tensor(0.1, requires_grad=True), torch.full((512, 1, 1, 1), 0.1, requires_grad=True)
    grad, weight_grad = torch.randn_like(x), torch.randn_like(weight)
    plain, plain_weight = x.detach(), weight.detach()

    def per_tensor() -> None:
        fake_quantize(x, scale, 0, 0, 15).backward(grad)
        x.grad = scale.grad = None

    def per_channel() -> None:
        fake_quantize(weight, scales, 0, -7, 7).backward(weight_grad)
        weight.grad = scales.grad = None

    return {
        "a + b": lambda: _discard(torch.add(plain, grad)),
        "per tensor": per_tensor,
        "a + b, weight": lambda: _discard(torch.add(plain_weight, weight_grad)),
        "per channel, weight": per_channel,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/step_time/cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    steps = ratios(interleaved(resnet20(options.batch), options.rounds), "float")
    measured = interleaved(operation(), options.rounds)
    tensors = ratios({k: measured[k] for k in ("a + b", "per tensor")}, "a + b")
    weights = ratios({k: measured[k] for k in ("a + b, weight", "per channel, weight")}, "a + b, weight")
    found = {"resnet20_step": steps, "operation": tensors | weights}
    record = {
        "command": f"python benchmarks/step_time.py --rounds {options.rounds} --batch {options.batch}",
        "environment": Environment.collect(threads=options.threads).to_dict(),
        **found,
    }
    write_atomically(options.out, json.dumps(record, indent=2) + "\n")
    for group, rows in found.items():
        for name, row in rows.items():
            print(f"{group:14} {name:20} {1000 * row['seconds']:9.2f} ms   {row['ratio']:5.2f} x")


if __name__ == "__main__":
    main()
