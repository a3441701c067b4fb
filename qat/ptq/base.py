"""What a pass is, and how a list of them is applied."""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

import torch
from torch import nn

from qat.ptq.state import ProgressCallback, PTQState, nobody
from qat.transform import is_prepared
from qat.transform.policy import Policy
from qat.transform.presets import load_policy


class Stage(Enum):
    """Where in a list a pass belongs."""

    FLOAT = "before Calibrate: it changes the float network"
    CALIBRATE = "once"
    QUANTIZED = "after Calibrate: it needs quantizers with ranges"


class Pass(ABC):
    """One step of post-training quantization. Options come with `__init__`, the network with `apply`."""

    stage = Stage.QUANTIZED
    rounds_weights = False
    """Whether weights lie on their grid afterwards."""
    moves_weight_ranges = False
    """Whether it finds new ranges for weights, which would round those that lie on the old grid once more."""

    @abstractmethod
    def apply(self, state: PTQState) -> None:
        """Change `state.network`, in place or by another one."""


def apply_passes(
    passes: Sequence[Pass],
    network: nn.Module,
    policy: Policy | str,
    batches: Iterable[Any],
    seed: int = 0,
    listener: ProgressCallback = nobody,
) -> nn.Module:
    """A quantized copy of a float network, in evaluation mode; the network handed in is not changed.

    The result is a prepared network like that of `qat.prepare`: `qat.convert` makes its integers. Equal seeds give equal
    results, and all of torch's random state is afterwards as it was.

    Args:
        passes: in this order; see `check_order`.
        batches: calibration inputs, as for `qat.calibrate`.
        listener: hears how far each pass is.

    Raises:
        ValueError: the order is impossible, the network is already prepared, or there are no batches.
    """
    check_order(passes)
    if is_prepared(network):
        raise ValueError("the network already has quantizers: passes begin with the float network.")
    state = PTQState(copy.deepcopy(network).eval(), load_policy(policy), list(batches), listener)
    if not state.batches:
        raise ValueError("there is nothing to calibrate with: batches is empty.")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for step in passes:
            step.apply(state)
    return state.network


def check_order(passes: Sequence[Any]) -> None:
    """Float passes, one `Calibrate`, then the others.

    Raises:
        ValueError: something is no pass, or stands where it cannot work.
    """
    for step in passes:
        if not isinstance(step, Pass):
            raise ValueError(
                f"{step!r} is no pass: write one of qat.ptq, for example qat.ptq.AdaRound(), or a subclass of qat.ptq.Pass."
            )
    calibrations = [i for i, step in enumerate(passes) if step.stage is Stage.CALIBRATE]
    if len(calibrations) != 1:
        raise ValueError(f"a list of passes has Calibrate once, this one {len(calibrations)} times.")
    for i, step in enumerate(passes):
        wanted = (Stage.FLOAT, Stage.CALIBRATE, Stage.QUANTIZED)[(i > calibrations[0]) - (i < calibrations[0]) + 1]
        if step.stage is not wanted:
            raise ValueError(f"{type(step).__name__} belongs {step.stage.value}.")
    for before, after in itertools.combinations(passes, 2):
        if before.rounds_weights and after.moves_weight_ranges:
            raise ValueError(
                f"{type(after).__name__} belongs before {type(before).__name__}, whose rounding it would undo by other ranges."
            )
