"""Does an ONNX file store and compute what the integer model does, and that what was trained?"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qat.export.decisions import decisions
from qat.export.exercise import Exercise
from qat.export.onnx.dialect import dialect_of_file
from qat.export.onnx.engine import ONNX_RUNTIME, Engine
from qat.export.onnx.export import onnx_model
from qat.export.onnx.onnx_file import read_onnx
from qat.export.onnx.proof import record_verification
from qat.export.onnx.runtime import refusals, stored_codes
from qat.export.onnx.site_session import SiteSession
from qat.export.onnx.verify_without_graph import verify_without_graph
from qat.export.onnx.without_graph import is_converted_without_graph
from qat.export.onnx.written_anew import compare_stored
from qat.export.outputs import named_outputs
from qat.export.prepared_agreement import PreparedAgreement
from qat.export.verification import (
    FLOAT_TOLERANCE,
    TIES_ALLOWED,
    DamagedFileError,
    OtherModelError,
    SiteAgreement,
    Verification,
    differing,
)
from qat.integer import IntegerModel
from qat.integer.layers import DynamicLayer, IntegerConv
from qat.integer.modules import DynamicQuantize, IntegerModule, Quantize, Requantize
from qat.integer.weight_only import StoredWeight, stored_weights
from qat.operations import Role, describe_graph
from qat.torch_private import tree_leaves
from qat.transform.batches import positional_arguments


def verify_onnx(
    path: str | Path,
    integer: nn.Module,
    batches: Iterable[Any],
    prepared: nn.Module | None = None,
    record: bool = False,
    engine: Engine = ONNX_RUNTIME,
) -> Verification:
    """`qat.verify` for an ONNX file in ONNX Runtime, or another engine.

    Raises:
        ValueError: this is not an integer model, there are no batches, the file's sites are not those of the model, or it is
            damaged.
    """
    if isinstance(integer, IntegerModel):
        result = _compare(path, integer.eval(), batches, prepared, engine)
    elif is_converted_without_graph(integer):
        with refusals(path):
            result = verify_without_graph(path, integer, batches, prepared, engine)
    else:
        raise ValueError(f"{type(integer).__name__} is not an integer model: pass the result of qat.convert(prepared).")
    if record:
        record_verification(path, result)
    return result


def _compare(
    path: str | Path, integer: IntegerModel, batches: Iterable[Any], prepared: nn.Module | None, engine: Engine
) -> Verification:
    run: _Run | None = None
    inputs: tuple[Any, ...] = ()
    try:
        for batch in batches:
            inputs = positional_arguments(integer, batch)
            if run is None:
                run = _Run(path, integer, inputs, prepared, engine)
                if run.of_file.not_run:
                    return run.of_file
            run.see(inputs)
        if run is None:
            raise ValueError("nothing was verified: batches is empty.")
        return run.result()
    except (OtherModelError, DamagedFileError):
        raise
    except Exception as error:  # a runtime refuses a changed file, or the data do not fit the model
        with suppress(Exception):
            if stored := compare_stored(path, partial(onnx_model, integer), inputs).stored:
                what = f"its {stored[0].name} {stored[0].text}"
                error = DamagedFileError(f"{path} cannot run as the integer model does ({what}): {error}")
        raise error


class _Run:
    """Compares batch after batch."""

    def __init__(
        self,
        path: str | Path,
        integer: IntegerModel,
        examples: tuple[Any, ...],
        prepared: nn.Module | None,
        engine: Engine = ONNX_RUNTIME,
    ) -> None:
        self.path, self.integer, self.engine = path, integer, engine
        self.session = _open(path, integer, engine)
        self.exact = not engine.ties and dialect_of_file(path, self.session.model).exact
        self.sites: dict[str, SiteAgreement] = {}
        self.exercise = Exercise()
        self.prepared = None if prepared is None else PreparedAgreement(prepared, integer)
        in_float = any(_computes_in_float(m) for m in integer.modules()) or _ends_in_float(integer)
        self.tolerance = FLOAT_TOLERANCE if in_float or not self.exact else 0.0
        self.within = f" (within {self.tolerance:g} of the largest)" if self.tolerance else ""
        self.of_file = compare_stored(path, partial(onnx_model, integer), examples)
        self.same_answers = self.answers = 0
        weights = stored_weights(integer)
        for name, stored in stored_codes(path, weights).items():
            label, weight = weights[name]
            ours = weight.in_blocks().reshape(stored.shape).cpu()
            self._site(label, ours).compare(ours, stored)

    def see(self, inputs: tuple[Tensor, ...]) -> None:
        """One batch through the integer model, the file and, if there is one, the prepared network."""
        self.exercise.see_inputs([x for x in tree_leaves(inputs) if isinstance(x, Tensor) and x.ndim])
        dynamic: dict[str, Tensor] = {}
        with torch.no_grad():
            returned, codes = self.integer.codes(*inputs, values=dynamic)
        expected = dict(zip(self.session.outputs, named_outputs(returned).values(), strict=True))
        if self.prepared is not None:
            self.prepared.see(inputs, codes, expected, dynamic)
        ours = {name: x.cpu() for name, x in (codes | expected).items()}
        self.exercise.see_codes({name: ours[name] for name in codes})
        outputs, its_codes = self.session(*inputs)
        theirs = its_codes | dict(zip(expected, outputs, strict=True))
        self._compare(inputs, ours, theirs, set(codes))
        same = decisions(ours[next(iter(expected))]) == decisions(outputs[0])
        self.same_answers, self.answers = self.same_answers + int(same.sum()), self.answers + same.numel()

    def _compare(
        self, inputs: tuple[Tensor, ...], ours: dict[str, Tensor], theirs: dict[str, Tensor], sites: set[str]
    ) -> None:
        """Count what differs, in the sites that begin to differ and in those that inherit it."""
        samples = next(len(x) for x in tree_leaves(inputs) if isinstance(x, Tensor) and x.ndim)
        tolerance = {name: 0.0 if name in sites else self.tolerance for name in ours}
        different = {name: differing(x, theirs[name], tolerance[name]) for name, x in ours.items()}
        again = None
        for name, x in ours.items():
            site = self._site(name if name in sites else name + self.within, x)
            site.count_compared(x, theirs[name])
            inherits = self.session.inherits(name, different, samples)
            if not bool(different[name].any() | inherits.any()):
                continue
            ties = name in sites and self._rounds_floats(name)
            own = different[name] & ~inherits
            site.count_mismatches(x, theirs[name], own, ties)
            if bool(inherits.any()):
                if again is None:
                    outputs, codes = self.session.restarted({n: ours[n] for n in sites}, *inputs)
                    again = codes | dict(zip((n for n in ours if n not in sites), outputs, strict=True))
                local = differing(x, again[name], tolerance[name]) & inherits
                site.count_mismatches(x, again[name], local, ties)
                site.propagated += int((different[name] & inherits & ~local).sum())

    def _site(self, name: str, x: Tensor) -> SiteAgreement:
        return self.sites.setdefault(name, SiteAgreement(name, tuple(x.shape[1:])))

    def _rounds_floats(self, name: str) -> bool:
        if not self.exact:
            return True
        is_quantize = isinstance(self.integer.get_submodule(name), Quantize | DynamicQuantize)
        return is_quantize and self.session.rounds_floats(name)

    def result(self) -> Verification:
        """All that was found in the batches that were seen."""
        result = self.of_file
        result.operators = self.engine.operators(self.path)
        result.runtime, result.exact_runtime = self.engine.version, self.exact
        result.ties_allowed = self.engine.ties or TIES_ALLOWED
        result.saturates = self.engine.saturates(read_onnx(self.path))
        result.sites = list(self.sites.values())
        for site in result.sites:
            module = dict(self.integer.named_modules()).get(site.name)
            site.exercised = self.exercise.share(site.name, getattr(module, "output", None))
            site.ties_allowed = self.engine.ties_allowed(isinstance(module, Requantize), site.codes_compared)
        self.exercise.record(result)
        result.nothing_quantized = not self.session.sites and not stored_weights(self.integer)
        result.top1_agreement = self.same_answers / self.answers
        if self.prepared is not None:
            decibels = self.prepared.sqnr_db()
            for site in result.sites:
                site.sqnr_db = decibels.get(site.name.removesuffix(self.within))
            result.alarm, result.prediction_changes = self.prepared.alarm(), self.prepared.prediction_changes
        result.sum_up()
        return result


def _open(path: str | Path, integer: IntegerModel, engine: Engine) -> SiteSession:
    """A session that also returns the codes of every site of the model."""
    sites = {n: m for n, m in integer.named_modules() if isinstance(m, IntegerModule) and m.makes_codes}
    session = SiteSession(
        path, list(sites), {n: m.output.zero_point for n, m in sites.items() if m.output is not None}, engine
    )
    if missing := sorted(set(sites) - set(session.sites)):
        raise OtherModelError(
            f"{path} has no tensor for the sites {', '.join(missing)}: it was written from another model."
        )
    return session


def _computes_in_float(module: nn.Module) -> bool:
    """Whether the runtime computes this layer as float sums: it has no integer kernel for a convolution with float output."""
    unfused = isinstance(module, IntegerConv) and module.output is None
    return unfused or isinstance(module, StoredWeight | DynamicLayer)


def _ends_in_float(model: IntegerModel) -> bool:
    """Whether an output of the network comes from an operation that was left in float."""
    results = [n for node in model.graph.nodes if node.op == "output" for n in node.all_input_nodes]
    operations = describe_graph(model, model.graph)
    while moved := [n for n in results if operations[n].role is Role.MOVE]:
        results = [n for n in results if n not in moved] + [n.all_input_nodes[0] for n in moved]
    return not all(
        n.op == "call_module" and isinstance(model.get_submodule(str(n.target)), IntegerModule) for n in results
    )
