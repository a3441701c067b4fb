"""The base class of passes, and how a list of them is applied."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

import torch
from torch import nn

from qat.arguments import check_network
from qat.capture import copy_model
from qat.messages import type_of
from qat.ptq.state import ProgressCallback, PTQState, ignore_progress
from qat.transform import is_prepared
from qat.transform.calibrate import check_batches
from qat.transform.policy import Policy
from qat.transform.presets import load_policy


class Stage(Enum):
    """The place of a pass in a list."""

    FLOAT = "before Calibrate: it changes the float network"
    CALIBRATE = "once"
    QUANTIZED = "after Calibrate: it needs quantizers with ranges"


class Pass(ABC):
    """One step of post-training quantization. Options come with `__init__`, the network with `apply`."""

    stage = Stage.QUANTIZED
    rounds_weights = False
    """Whether the weights lie on their grid after this pass."""
    moves_weight_ranges = False
    """Whether it sets new ranges of weights, which would round weights on the old grid a second time."""

    @abstractmethod
    def apply(self, state: PTQState) -> None:
        """Change `state.network` in place, or replace it."""


def apply_passes(
    passes: Sequence[Pass],
    network: nn.Module,
    policy: Policy | str,
    batches: Iterable[Any],
    seed: int = 0,
    on_progress: ProgressCallback = ignore_progress,
) -> nn.Module:
    """A quantized copy of a float network, in evaluation mode; the network handed in is not changed.

    The result is a prepared network like that of `qat.prepare`: `qat.convert` makes its integers. Equal seeds give equal
    results. torch's random state is restored afterwards.

    Args:
        passes: applied in this order; see `check_order`.
        network: the float network.
        policy: a Policy, the name of a preset or the path of a YAML file.
        batches: calibration inputs, as for `qat.calibrate`.
        seed: of all random numbers.
        on_progress: called with the progress of each pass.

    Raises:
        ValueError: the order is impossible, the network is none or is prepared, or `batches` is empty or no list of batches.
    """
    check_order(passes)
    check_network(network, "network")
    check_batches(batches)
    if is_prepared(network):
        raise ValueError("the network already has quantizers: apply passes to the float network.")
    state = PTQState(copy_model(network).eval(), load_policy(policy), list(batches), on_progress)
    if not state.batches:
        raise ValueError("batches is empty: passes need calibration inputs.")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for step in passes:
            step.apply(state)
            _check_left(step, state.network)
    return state.network.eval()


def _check_left(step: Pass, network: object) -> None:
    """Refuse what a pass of somebody else's may leave behind."""
    wants_quantizers = step.stage is not Stage.FLOAT
    if not isinstance(network, nn.Module) or is_prepared(network) != wants_quantizers:
        wanted = "the network with its quantizers" if wants_quantizers else "a float network"
        raise ValueError(f"{type(step).__name__}.apply left {type_of(network)} as state.network: leave {wanted} there.")


def check_order(passes: Sequence[Any]) -> None:
    """Check that float passes come first, then one `Calibrate`, then the others.

    Raises:
        ValueError: it is not a list, an element is not a pass, or one stands where it cannot work.
    """
    if not isinstance(passes, Sequence) or isinstance(passes, str):
        raise ValueError(f"passes={passes!r} is not a list of passes: write [qat.ptq.Calibrate(), ...].")
    for step in passes:
        if not isinstance(step, Pass):
            raise ValueError(
                f"{step!r} is not a pass: write one of qat.ptq, for example qat.ptq.AdaRound(), or a subclass of qat.ptq.Pass."
            )
        if not isinstance(step.stage, Stage):
            stages = ", ".join(f"qat.ptq.Stage.{stage.name}" for stage in Stage)
            raise ValueError(f"{type(step).__name__}.stage={step.stage!r} is no stage: write one of {stages}.")
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
