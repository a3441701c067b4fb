"""`verify` for a network without a graph: all that its file stores, bit for bit, and its outputs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qat.export.decisions import decisions
from qat.export.exercise import Exercise
from qat.export.onnx.engine import Engine
from qat.export.onnx.onnx_file import read_onnx
from qat.export.onnx.runtime import feeds, stored_codes
from qat.export.onnx.without_graph import onnx_model_without_graph
from qat.export.onnx.written_anew import compare_stored
from qat.export.outputs import named_outputs
from qat.export.prepared_agreement import PreparedAgreement
from qat.export.verification import FLOAT_TOLERANCE, OtherModelError, SiteAgreement, Verification
from qat.integer.order import OneOrder
from qat.integer.weight_only import stored_weights
from qat.torch_private import tree_leaves
from qat.transform.batches import positional_arguments


def verify_without_graph(
    path: str | Path,
    model: nn.Module,
    batches: Iterable[Any],
    prepared: nn.Module | None,
    engine: Engine,
) -> Verification:
    """Compare a file with the module that `qat.convert` made of a model without a graph.

    Args:
        path: the file.
        model: the module.
        batches: its inputs: each a tensor, or a sequence that begins with them.
        prepared: the network that was converted, to compare outputs with; None: not compared.
        engine: what runs the file.

    Raises:
        ValueError: there are no batches, or the file has other weights stored than the module.
        FileNotFoundError: there is no such file.
    """
    sites = _compare_codes(path, model)
    result: Verification | None = None
    exercise = Exercise()
    agreement = None if prepared is None else PreparedAgreement(prepared, model)
    same = answers = 0
    for batch in batches:
        inputs = positional_arguments(model, batch, labels=False)
        if result is None:
            result = compare_stored(path, partial(onnx_model_without_graph, model), inputs, stateless=False)
            if result.not_run:
                return result
            session = engine.open(read_onnx(path).SerializeToString())
        exercise.see_inputs([x for x in tree_leaves(inputs) if isinstance(x, Tensor) and x.ndim])
        with torch.no_grad(), OneOrder():
            expected = named_outputs(model.eval()(*inputs))
        if agreement is not None:
            agreement.see(inputs, {}, expected)
        outputs = [torch.from_numpy(x) for x in session.run(None, feeds(session, inputs))]
        for (name, ours), theirs in zip(expected.items(), outputs, strict=True):
            label = f"{name} (within {FLOAT_TOLERANCE:g} of the largest)"
            site = sites.setdefault(label, SiteAgreement(label, tuple(ours.shape[1:])))
            site.compare(ours.cpu(), theirs, FLOAT_TOLERANCE)
        agree = decisions(next(iter(expected.values())).cpu()) == decisions(outputs[0])
        same, answers = same + int(agree.sum()), answers + agree.numel()
    if result is None:
        raise ValueError("nothing was verified: batches is empty.")
    result.operators, result.runtime, result.exact_runtime = engine.operators(path), engine.version, not engine.ties
    result.sites = list(sites.values())
    exercise.record(result)
    result.top1_agreement = same / answers
    if agreement is not None:
        result.alarm, result.prediction_changes = agreement.alarm(), agreement.prediction_changes
    result.sum_up()
    return result


def _compare_codes(path: str | Path, model: nn.Module) -> dict[str, SiteAgreement]:
    """Compare every weight that the file stores as codes with the module's. Returns label -> what was found.

    Raises:
        OtherModelError: the file lacks one.
    """
    weights = stored_weights(model)
    found = stored_codes(path, weights)
    if missing := sorted(set(weights) - set(found)):
        raise OtherModelError(
            f"{path} has no weights of {', '.join(weights[n][0] for n in missing)}: it was written from another model."
        )
    sites: dict[str, SiteAgreement] = {}
    for name, codes in found.items():
        label, weight = weights[name]
        site = sites[label] = SiteAgreement(label, tuple(codes.shape))
        site.compare(weight.in_blocks().cpu().reshape(codes.shape).to(codes.dtype), codes)
    return sites
