"""A file that has its name only after it was verified."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qat.cli.sources.data import Batch, Batches, cut
from qat.export import Verification
from qat.export.targets import Target
from qat.export.unverified import named_when_verified
from qat.integer import convert


@dataclass
class Written:
    """A file, the integer model that it was written from, and what the verification found. seconds: of each stage."""

    path: Path
    integer: nn.Module
    verification: Verification
    seconds: dict[str, float] = field(default_factory=dict)


def write_verified(
    prepared: nn.Module, target: Target, path: Path, batches: Batches, say: Callable[[str], None]
) -> Written:
    """Convert, write, verify, and give the file its name if it passed. The old file of this name stays until then.

    Args:
        prepared: with ranges.
        target: how it is written and verified.
        path: the name that it gets.
        batches: to verify with.
        say: shows progress.
    """
    start = time.perf_counter()
    say("writing ...")
    integer = convert(prepared)
    with named_when_verified(path) as file:
        target.write(integer, one_sample(batches), file.path)
        exported = time.perf_counter()
        say("verifying, code by code ...")
        verification = target.verify(file.path, integer, (batch.inputs for batch in batches), prepared)
        file.passed = verification.passed
    seconds = {"export": exported - start, "verification": time.perf_counter() - exported}
    return Written(file.path, integer, verification, seconds)


def one_sample(batches: Batches) -> Any:
    """One sample of inputs: a tensor, a tuple or a mapping."""
    inputs = cut(Batch(next(iter(batches)).inputs), 1).inputs
    return inputs if isinstance(inputs, torch.Tensor | dict) else tuple(inputs)
