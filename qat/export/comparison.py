"""Compare any runtime with the integer model: one that shows its sites site by site, another by its outputs and decisions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from qat.export.decisions import decisions
from qat.export.exercise import Exercise
from qat.export.outputs import named_outputs
from qat.export.prepared_agreement import PreparedAgreement
from qat.export.verification import FLOAT_TOLERANCE, OtherModelError, SiteAgreement, Verification, differing
from qat.integer import IntegerModel
from qat.integer.layers import IntegerLayer
from qat.integer.modules import IntegerModule
from qat.integer.weight_only import StoredWeight
from qat.torch_private import tree_leaves
from qat.transform.batches import positional_arguments

DECISIONS = "the class of the largest output"
"""What is compared of a runtime that shows no sites: at most `TIES_ALLOWED` of them may differ."""
ERROR = 0.3
"""Allowed error of the outputs of such a runtime, relative to how far they lie from their mean over the samples. Codes that
differ by one step, and what follows from them, stay far below; a layer that does not compute is at 1."""


class FileOutputs(NamedTuple):
    """One batch in a runtime: its outputs, and the uint8 codes of the sites that it shows."""

    outputs: list[Tensor]
    codes: dict[str, Tensor]


class FileRunner(Protocol):
    """A file in its runtime."""

    def __call__(self, inputs: tuple[Any, ...], codes: Mapping[str, Tensor] | None = None) -> FileOutputs:
        """One batch. With codes, each site that the runtime shows is computed from these codes in front of it."""


def compare(
    integer: IntegerModel,
    batches: Iterable[Any],
    prepared: nn.Module | None,
    run: FileRunner,
    runtime: str,
    sites: Iterable[str] = (),
) -> Verification:
    """Run a file beside the integer model, and that beside the prepared network.

    A code may differ by one step where the runtime rounds a float sum, in up to `TIES_ALLOWED` of a site.

    Args:
        integer: what the file was written from.
        batches: inputs.
        prepared: the network that was converted, if it is to be compared, too.
        run: runs the file in its runtime.
        runtime: its name and version.
        sites: whose codes the runtime shows. If there are none, decisions are compared.

    Returns:
        What was found, of the running file: nothing is known of what it stores.

    Raises:
        ValueError: there are no batches, or the file has outputs of other shapes.
    """
    comparison = _Comparison(integer.eval(), prepared, run, list(sites))
    for batch in batches:
        comparison.see(positional_arguments(integer, batch))
    result = comparison.result()
    result.runtime, result.exact_runtime = runtime, False
    return result


class _Comparison:
    def __init__(self, integer: IntegerModel, prepared: nn.Module | None, run: FileRunner, sites: list[str]) -> None:
        self.integer, self.run, self.shown = integer, run, sites
        self.prepared = None if prepared is None else PreparedAgreement(prepared, integer)
        self.exercise = Exercise()
        self.sites: dict[str, SiteAgreement] = {}
        self.errors: dict[str, _OutputError] = {}
        self.same_answers = self.answers = 0

    def see(self, inputs: tuple[Any, ...]) -> None:
        """One batch through all of them."""
        self.exercise.see_inputs([x for x in tree_leaves(inputs) if isinstance(x, Tensor) and x.ndim])
        dynamic: dict[str, Tensor] = {}
        with torch.no_grad():
            returned, codes = self.integer.codes(*inputs, values=dynamic)
        expected = named_outputs(returned)
        if self.prepared is not None:
            self.prepared.see(inputs, codes, expected, dynamic)
        self.exercise.see_codes(codes)
        whole = self.run(inputs)
        self._check_shapes(expected, whole.outputs)
        if self.shown:
            self._compare_sites(inputs, {name: codes[name] for name in self.shown}, expected, whole)
        ours, theirs = decisions(next(iter(expected.values()))), decisions(whole.outputs[0])
        if not self.shown:
            self._site(DECISIONS, ours).count_compared(ours, theirs)
            self._site(DECISIONS, ours).float_ties += int((ours != theirs).sum())
            for (name, x), y in zip(expected.items(), whole.outputs, strict=True):
                self.errors.setdefault(name, _OutputError()).see(x, y)
        self.same_answers, self.answers = self.same_answers + int((ours == theirs).sum()), self.answers + ours.numel()

    def _compare_sites(
        self, inputs: tuple[Any, ...], codes: dict[str, Tensor], expected: dict[str, Tensor], whole: FileOutputs
    ) -> None:
        """Compare each site, computed from the integer model's own codes; what else differs in the whole run is inherited."""
        local = self.run(inputs, codes)
        for name, ours in codes.items():
            site, different = self._site(name, ours), differing(ours, local.codes[name])
            site.count_compared(ours, local.codes[name])
            site.count_mismatches(ours, local.codes[name], different, ties_allowed=True)
            site.propagated += int((differing(ours, whole.codes[name]) & ~different).sum())
        for (name, ours), theirs in zip(expected.items(), local.outputs, strict=True):
            self._site(f"{name} (within {FLOAT_TOLERANCE:g} of the largest)", ours).compare(
                ours, theirs, FLOAT_TOLERANCE
            )

    def _check_shapes(self, expected: Mapping[str, Tensor], outputs: list[Tensor]) -> None:
        ours, theirs = ([tuple(x.shape) for x in values] for values in (expected.values(), outputs))
        if ours != theirs:
            raise OtherModelError(
                f"the file's outputs have the shapes {theirs}, those of the integer model {ours}: it was written from another "
                "model."
            )

    def _site(self, name: str, x: Tensor) -> SiteAgreement:
        return self.sites.setdefault(name, SiteAgreement(name, tuple(x.shape[1:])))

    def result(self) -> Verification:
        """All that was found."""
        if not self.exercise.samples:
            raise ValueError("nothing was verified: batches is empty.")
        errors = [error.agreement(name) for name, error in self.errors.items()]
        result = Verification(sites=[*self.sites.values(), *errors])
        for site in result.sites:
            module = dict(self.integer.named_modules()).get(site.name)
            site.exercised = self.exercise.share(site.name, getattr(module, "output", None))
        self.exercise.record(result)
        result.nothing_quantized = not any(
            isinstance(m, IntegerModule | IntegerLayer | StoredWeight) for m in self.integer.modules()
        )
        result.top1_agreement = self.same_answers / self.answers
        if self.prepared is not None:
            decibels = self.prepared.sqnr_db()
            for site in result.sites:
                site.sqnr_db = decibels.get(site.name.split(" (")[0])
            result.alarm, result.prediction_changes = self.prepared.alarm(), self.prepared.prediction_changes
        return result


class _OutputError:
    """The power of the errors of one output, and of what it says: how far it lies from its mean over the samples of a batch."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.elements = 0
        self.error = self.signal = 0.0

    def see(self, ours: Tensor, theirs: Tensor) -> None:
        """One batch."""
        ours, theirs = ours.detach().cpu().double(), theirs.cpu().double()
        same = (ours == theirs) | (ours.isnan() & theirs.isnan())
        mean = ours.mean(0, keepdim=True) if ours.ndim and len(ours) > 1 else ours.mean()
        self.error += float(torch.where(same, 0.0, ours - theirs).square().sum())
        self.signal += float((ours - mean).nan_to_num(0.0, 0.0, 0.0).square().sum())
        self.shape, self.elements = tuple(ours.shape[1:]), self.elements + ours.numel()

    def agreement(self, name: str) -> SiteAgreement:
        """All of its elements differ, or none does."""
        wrong = not self.error <= ERROR**2 * self.signal
        text = f"{name} (an error of {ERROR:.0%} of its spread allowed)"
        return SiteAgreement(text, self.shape, self.elements, self.elements if wrong else 0)


def with_graph(integer: nn.Module) -> IntegerModel:
    """The model itself, if it has a graph of integer modules.

    Raises:
        ValueError: it has none.
    """
    if not isinstance(integer, IntegerModel):
        raise ValueError(
            f"{type(integer).__name__} has no graph of integer modules: pass the result of qat.convert(prepared), of a network "
            "that qat.prepare could capture."
        )
    return integer


def static_sites(integer: IntegerModel) -> list[str]:
    """The sites whose codes have a grid that is known beforehand."""
    return [n for n, m in integer.named_modules() if isinstance(m, IntegerModule) and m.output is not None]
