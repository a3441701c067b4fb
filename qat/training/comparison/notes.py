"""The notes of single rows."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from qat.capture import copy_model
from qat.training.comparison import row_names
from qat.training.comparison.evaluate import Evaluation
from qat.training.comparison.measurements import Measurements
from qat.transform import Policy


def note_step0(policy: Policy, evaluations: Mapping[str, Evaluation]) -> dict[str, str]:
    """Compare the predictions of QAT before its first step with those of PTQ, and warn if they differ.

    QAT starts from the calibrated network. So it must predict what PTQ with the same observer predicts, unless its
    quantizers round to other levels.

    Args:
        policy: the policy of the fit.
        evaluations: by row name.

    Returns:
        Row name -> note; empty if there is nothing to compare.
    """
    tensors = [tensor for rule in policy.rules.values() for tensor in (rule.weight, rule.activation) if tensor]
    ptq_names = {row_names.ptq_row_name(tensor.observer) for tensor in tensors}
    if len(ptq_names) != 1 or not all(tensor.quantizer_class.starts_as_static for tensor in tensors):
        return {}
    ptq_name = next(iter(ptq_names))
    step0, ptq = evaluations.get(row_names.STEP0), evaluations.get(ptq_name)
    if step0 is None or ptq is None or not step0.same_samples(ptq):
        return {}
    if step0.predictions is None or ptq.predictions is None:
        return {}
    different = int((step0.predictions != ptq.predictions).sum())
    if not different:
        return {row_names.STEP0: f"predicts the same class as {ptq_name} for every test sample"}
    warning = (
        f"predicts another class than {ptq_name} for {different} of {len(step0.predictions):,} test samples, though both "
        "have the same ranges: something changed the network between calibration and the first step."
    )
    rank_zero_warn(f"QAT before its first step {warning}")
    return {row_names.STEP0: f"WARNING: {warning}"}


def note_precision(
    trainer: L.Trainer, best: nn.Module, in_float32: Evaluation, measurements: Measurements
) -> dict[str, str]:
    """Measure the best checkpoint in the precision of the fit, and note the difference to float32.

    Args:
        trainer: the Trainer of the fit.
        best: the prepared network that the fit ends with.
        in_float32: its evaluation in float32.
        measurements: those of the fit.

    Returns:
        Row name -> note; empty if the fit ran in float32.
    """
    if trainer.precision == "32-true":
        return {}
    network = copy_model(best)  # a true half precision changes its weights
    in_precision = measurements.evaluate(network, precision=trainer.precision)
    info = measurements.metric.info
    assert info is not None
    there, difference = info.number(in_precision.value), info.scaled(in_precision.value - in_float32.value)
    change = f"{difference:+.2f}" if info.percent else f"{difference:+.3g}"
    return {row_names.FAKE_QUANT: f"{there} in {trainer.precision}, as it was trained: {change} against float32"}
