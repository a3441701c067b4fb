"""`qat.inspect`: the table of a prepared model, or the diagnosis of a float one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, overload

from torch import Tensor, nn

from qat.arguments import check_network
from qat.doctor.diagnosis import Diagnosis
from qat.doctor.findings import find_all
from qat.doctor.ranges import watch_ranges
from qat.doctor.sensitivity import check_loss, measure_sensitivity
from qat.integer import IntegerModel
from qat.transform import Policy, calibrate, is_prepared, load_policy, prepare
from qat.transform.batches import call_of
from qat.transform.calibrate import list_of_batches
from qat.transform.inspect import Inspection, table
from qat.transform.inspect import inspect as inspect_prepared

Loss = Callable[[Any, Any], Tensor]
"""(outputs of the model, batch) -> a number, the lower the better."""


@overload
def inspect(model: nn.Module) -> Inspection:
    """The table of a prepared model."""


@overload
def inspect(
    model: nn.Module,
    policy: Policy | str | Path | Mapping[str, Any],
    batches: Iterable[Any],
    loss: Loss | None = None,
) -> Diagnosis:
    """What a policy would do to a float model, and what it would cost."""


def inspect(
    model: nn.Module,
    policy: Policy | str | Path | Mapping[str, Any] | None = None,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
) -> Inspection | Diagnosis:
    """The table of a prepared model; or, with a policy and data, what that policy would do to a float model.

    The diagnosis prepares and calibrates a copy, and measures it on the same batches with weights alone, activations alone,
    and each tensor alone quantized. A network runs once for each of its quantizers, so a few batches are enough.

        print(qat.inspect(model, "w4a8", batches))

    Args:
        model: prepared, or float if there is a policy.
        policy: as for `qat.prepare`, or its content.
        batches: as for `qat.calibrate`; a batch may end in labels.
        loss: what a batch costs. None: cross-entropy if a batch is (inputs, classes), else how far outputs are from float's.

    Raises:
        ValueError: the model is not a network, is an integer model or is prepared already; there is a policy without batches;
            the policy does not fit; or the outputs hold no floats whose change could be measured.
    """
    check_network(model)
    if isinstance(model, IntegerModel):
        raise ValueError("the model is an integer model: inspect what qat.prepare returned, before qat.convert.")
    if policy is None:
        if batches is not None:
            raise ValueError("there are batches and no policy: write qat.inspect(model, 'w8a8', batches).")
        return inspect_prepared(model)
    if batches is None:
        raise ValueError("there is a policy and no data: write qat.inspect(model, policy, batches).")
    if is_prepared(model):
        raise ValueError("the model is prepared already: inspect the float model, or leave out the policy.")
    check_loss(loss)
    kept, chosen = list_of_batches(batches), load_policy(policy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is among the findings
        prepared = prepare(model, chosen, call_of(model, kept[0]).example_inputs).eval()
        calibrate(prepared, kept)
        inspection = table(prepared)
        ranges = watch_ranges(prepared, kept)
        sensitivity = measure_sensitivity(prepared, kept, loss)
        findings = find_all(prepared, chosen, inspection, ranges, sensitivity)
    return Diagnosis(chosen.name, inspection, sensitivity, findings)
