"""The pass that inserts quantizers and gives them ranges."""

from __future__ import annotations

from typing import Any

from qat.capture import copy_model
from qat.nn import is_quantized, keep_weight
from qat.ptq.base import Pass, Stage
from qat.ptq.state import PTQState
from qat.quantizers import Mode
from qat.transform import calibrate, prepare, quantizers
from qat.transform.batches import call_of
from qat.transform.class_names import Part
from qat.transform.tensor_rule import TensorRule


class Calibrate(Pass):
    """Prepares the float network with the policy, with `Static` quantizers, and observes all batches in float.

    A weight that is computed in each forward (parametrized, normalized, masked) is computed a last time: a pass that rounds it
    sets it.

    Args:
        observer: of activations, and of weights unless they have their own: a class name of `qat.observers`, a class, or
            {"_target_": ..., option: value}.
        weight_observer: of weights. An observer that is made for large samples (KL) does not suit them.

    Raises:
        ValueError: there is no such observer, or it has no such option.
    """

    stage = Stage.CALIBRATE

    def __init__(self, observer: Part = "MSE", weight_observer: Part | None = None) -> None:
        weight_observer = observer if weight_observer is None else weight_observer
        # A rule checks its observer, and replaces a class by its name.
        self.observer, self.weight_observer = (
            TensorRule(bits=8, quantizer="Static", observer=part).observer for part in (observer, weight_observer)
        )

    def apply(self, state: PTQState) -> None:
        policy = state.policy.with_parts("Static", self.observer, self.weight_observer)
        network = prepare(state.network, policy, _example(state)).eval()
        for layer in network.modules():
            if is_quantized(layer):
                keep_weight(layer)
        state.on_progress("calibrate", 0, 1)
        calibrate(network, state.batches)
        state.on_progress("calibrate", 1, 1)
        state.network, state.reference = network, copy_model(network)
        for quantizer in quantizers(state.reference).values():
            quantizer.mode = Mode.OFF


def _example(state: PTQState) -> tuple[Any, ...] | dict[str, Any]:
    """Arguments of the network, for the capture of its graph."""
    args, kwargs = call_of(state.network, state.batches[0])
    return kwargs if kwargs and not args else args
