"""Turns, ratios and bytes compared with numbers that are known in advance."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from benchmarks import timing
from benchmarks.failure import failure_line
from benchmarks.memory import peak_bytes
from benchmarks.networks import NETWORKS
from benchmarks.step_comparison import compare_steps
from benchmarks.timing import ratios_to, time_in_turns
from benchmarks.training_step import TrainingStep

MIB = 1 << 20


def test_candidates_take_turns_and_the_first_turns_do_not_count():
    calls: list[str] = []
    seconds = time_in_turns({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=4)
    assert calls == ["a", "b"] * (4 + timing.WARMUP)
    assert {name: len(measured) for name, measured in seconds.items()} == {"a": 4, "b": 4}


def test_the_time_limit_leaves_enough_turns():
    seconds = time_in_turns({"a": lambda: None}, rounds=50, limit=0.0)
    assert len(seconds["a"]) == timing.MIN_TURNS


def test_ratios_are_taken_within_a_turn():
    # A machine that becomes ten times slower in the last turns changes the medians of seconds, not the ratio.
    result = ratios_to("float", {"float": [1, 1, 1, 10, 10], "quantized": [1.5, 1.5, 2, 20, 12]})
    assert result["float"]["ratio"] == 1
    assert result["quantized"] == {
        "seconds": 2,
        "turns": 5,
        "ratio": 1.5,
        "ratio_lower_quartile": 1.5,
        "ratio_upper_quartile": 2.0,
    }


def test_an_error_is_failure_line():
    assert failure_line(RuntimeError("\n  first\nsecond")) == "RuntimeError: first"


class Widen(nn.Module):
    """x (N, 8) -> 3 tensors as large as x that live at the same time, then logits (N, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        kept = x * self.factor  # saves x
        kept = kept.exp()  # saves its result
        kept = kept.exp()  # saves its result
        return kept.sigmoid()  # saves its result


def test_peak_memory_counts_what_lives_at_once():
    rows = 4 * MIB // 32  # x has 4 MiB
    x = torch.zeros(rows, 8)
    step = TrainingStep(Widen(), x, torch.zeros(rows, dtype=torch.int64))
    step()
    labels = rows * 8
    resident = x.nbytes + labels + 2 * 32  # the batch; the factor and its momentum
    step.optimizer.zero_grad()
    assert step.resident_bytes() == resident
    # Backward begins: three saved results and log_softmax's are alive, and its gradient and that of the sigmoid are made.
    peak = peak_bytes(step) - resident
    assert 5 * x.nbytes <= peak <= 6.1 * x.nbytes
    assert peak_bytes(step) == resident + peak, "the same step has the same peak"


@pytest.mark.slow
def test_a_network_beside_itself_costs_nothing():
    x, y = NETWORKS["ResNet-20"].example(batch=2)
    network = NETWORKS["ResNet-20"].build()
    steps = {name: TrainingStep(network, x, y) for name in ("float", "same")}
    result = compare_steps(steps, rounds=1)
    assert result["same"]["memory_ratio"] == pytest.approx(1, abs=0.001)
    assert json.loads(json.dumps(result)) == result


def test_bfloat16_is_autocast():
    seen = []

    class Spy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(super().forward(x).dtype)
            return super().forward(x)

    x, y = torch.randn(2, 4), torch.tensor([0, 1])
    for precision in ("float32", "bfloat16"):
        TrainingStep(Spy(4, 2), x, y, precision)()
    assert seen == [torch.float32, torch.bfloat16]
    with pytest.raises(ValueError, match="write one of float32, bfloat16"):
        TrainingStep(Spy(4, 2), x, y, "half")


def test_vit_tiny_has_the_published_size():
    # timm's vit_tiny_patch16_224 has 5,717,416; this one lacks the class token and its position, 2 x 192.
    assert sum(p.numel() for p in NETWORKS["ViT-tiny"].build().parameters()) == 5_717_416 - 2 * 192
