"""A file that has its name only after it was verified."""

from __future__ import annotations

import shutil
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
from qat.export.verification import unverified_path
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
    """Convert, write under another name, verify, and rename if it passed. The old file of this name stays until then.

    Args:
        prepared: with ranges.
        target: how it is written and verified.
        path: the name that it gets.
        batches: to verify with.
        say: shows progress.
    """
    seconds: dict[str, float] = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    unverified = unverified_path(path)
    start = time.perf_counter()
    say("writing ...")
    integer = convert(prepared)
    target.write(integer, one_sample(batches), unverified)
    seconds["export"] = time.perf_counter() - start
    say("verifying, code by code ...")
    verification = target.verify(unverified, integer, (batch.inputs for batch in batches), prepared)
    seconds["verification"] = time.perf_counter() - start - seconds["export"]
    written = Written(unverified, integer, verification, seconds)
    if verification.passed:
        if path.is_dir():
            shutil.rmtree(path)
        unverified.replace(path)
        written.path = path
    return written


def one_sample(batches: Batches) -> Any:
    """One sample of inputs: a tensor, a tuple or a mapping."""
    inputs = cut(Batch(next(iter(batches)).inputs), 1).inputs
    return inputs if isinstance(inputs, torch.Tensor | dict) else tuple(inputs)
