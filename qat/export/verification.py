"""The result of comparing an exported file with its integer model, whatever the target."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

TIES_ALLOWED = 0.01
"""Share of a site's codes that may differ by one step where floats are rounded: their sums are added in another order."""
FLOAT_TOLERANCE = 1e-5
"""Allowed difference of float sums in another order, relative to the largest output."""
SQNR_ALARM = 20.0
"""Decibels. Below this the integer model computes something else than the prepared network."""
NOTHING_QUANTIZED = (
    "Nothing is quantized: the model has no integer code, so only floats were compared, and nothing is proven."
)
LITTLE_EXERCISED = 0.1
"""A site whose data used a smaller share of its codes is named."""


class VerificationError(RuntimeError):
    """A file is not what was trained, or nothing shows that it is. The message names the file and what was found."""


class OtherModelError(ValueError):
    """A file was written from another model than the one that it is compared with."""


class DamagedFileError(ValueError):
    """A file is damaged, or is not of the format that it should be."""


class StoredDifference(NamedTuple):
    """Something in the file that is not what the integer model holds.

    Attributes:
        name: the tensor, or the file.
        elements: how many of its elements differ; 1 for an operation.
        text: what differs, as a clause that follows the name.
        only_values: whether all tensors have the same shapes all the same. A file with another difference is not run: it
            could ask for any amount of memory.
    """

    name: str
    elements: int
    text: str
    only_values: bool = False


@dataclass
class SiteAgreement:
    """How far one tensor of the file agrees with the integer model.

    Attributes:
        name: name of the site, output or stored weight.
        shape: shape of one sample.
        codes_compared: how many elements were compared.
        code_mismatches: how many differ although the runtime was given the integer model's own codes in front of them.
        max_step_difference: largest of these differences: in codes; of outputs, relative to the largest output.
        propagated: how many more differ in the whole run, because sites before them do.
        float_ties: how many differ by one step where floats are rounded; no mismatches up to `TIES_ALLOWED`.
        not_a_number: how many are NaN in both; not mismatches, but never right.
        exercised: share of the codes of its range that the data used; None for floats.
        sqnr_db: signal to noise of the integer model's values against the prepared network's, in dB; None: not compared.
        ties_allowed: share of codes that may be `float_ties`; None: that of the verification.
    """

    name: str
    shape: tuple[int, ...]
    codes_compared: int = 0
    code_mismatches: int = 0
    max_step_difference: float = 0.0
    propagated: int = 0
    float_ties: int = 0
    not_a_number: int = 0
    exercised: float | None = None
    sqnr_db: float | None = None
    ties_allowed: float | None = None

    def compare(self, ours: Tensor, theirs: Tensor, tolerance: float = 0.0) -> None:
        """Count the elements that differ. tolerance: allowed difference, relative to the largest of ours."""
        self.count_compared(ours, theirs)
        self.count_mismatches(ours, theirs, differing(ours, theirs, tolerance))

    def count_compared(self, ours: Tensor, theirs: Tensor) -> None:
        """Count what is compared, and what is NaN in both."""
        self.codes_compared += ours.numel()
        if ours.is_floating_point():
            self.not_a_number += int((ours.isnan() & theirs.isnan()).sum())

    def count_mismatches(self, ours: Tensor, theirs: Tensor, different: Tensor, ties_allowed: bool = False) -> None:
        """Count the elements in the mask `different`. ties_allowed: those by one step are `float_ties`."""
        if not bool(different.any()):
            return
        distance = (ours.double() - theirs.double()).abs()[different]
        largest = _largest(ours) if ours.is_floating_point() else 1.0
        ties = int((distance <= 1).sum()) if ties_allowed else 0
        self.float_ties += ties
        self.code_mismatches += int(different.sum()) - ties
        self.max_step_difference = max(self.max_step_difference, distance.nan_to_num(torch.inf).max().item() / largest)

    def refuse_many_ties(self, allowed: float) -> None:
        """Turn ties into mismatches if they are more than the allowed share."""
        if self.float_ties > allowed * self.codes_compared:
            self.code_mismatches, self.float_ties = self.code_mismatches + self.float_ties, 0


def differing(ours: Tensor, theirs: Tensor, tolerance: float = 0.0) -> Tensor:
    """Which elements differ; equal infinities and two NaN do not. tolerance: relative to the largest finite one of ours."""
    different = ours != theirs
    if not ours.is_floating_point():
        return different
    different &= ~(ours.isnan() & theirs.isnan())
    if tolerance:
        different &= ~((ours - theirs).abs() <= tolerance * _largest(ours))
    return different


def _largest(x: Tensor) -> float:
    """The largest finite magnitude; 1 if there is none but zero."""
    finite = torch.nan_to_num(x.detach(), 0.0, 0.0, 0.0).abs()
    return float(finite.max()) or 1.0 if x.numel() else 1.0


@dataclass
class Verification:
    """The result of `verify`.

    Three comparisons. The file is compared with the integer model as it is stored (every constant, operation and connection:
    no data can hide a difference) and as it runs (every site and output, bit for bit). The integer model is compared with the
    prepared network, if there is one (in decibels: rounding differs).

    A site that differs only because a site before it differs is not a mismatch but `propagated`: it agrees when the runtime
    starts again from the integer model's codes. If layers quantized in their weight alone, dynamic layers, or a convolution
    whose output has no codes compute floats, outputs may differ by `FLOAT_TOLERANCE` of the largest; the output's name then
    says so.

    Attributes:
        codes_compared: elements compared, over all sites and outputs.
        code_mismatches: how many of them differ on their own account, and how many stored elements do.
        top1_agreement: fraction of samples (of pixels, if there are any) whose largest output is the same.
        max_step_difference: largest difference of two codes.
        samples: how many were compared.
        operators: how often each operator occurs in the graph after the runtime's optimisations.
        sites: the agreement of every site, output and stored weight.
        constants_compared: numbers stored in the file, each compared with the integer model's.
        stored: what is stored differently.
        propagated: elements that differ in the whole run because others before them do.
        float_ties: codes that differ by one step where float sums are rounded; at most `TIES_ALLOWED` of a site.
        prediction_changes: fraction of samples for which integer model and prepared network decide differently; None: not
            compared.
        alarm: a sentence if the integer model computes something else than the prepared network; else "".
        weak_data: sentences about what the data could not show.
        weak_inputs: whether the inputs were not data at all: zeros, one number, or one sample.
        nothing_quantized: whether the model has no codes, neither of activations nor of weights: only floats were compared.
        runtime: what ran the file, with its version.
        exact_runtime: whether that computes what the integer model defines. Otherwise the codes of every site may be ties.
        ties_allowed: share of a site's codes.
        saturates: whether sums of the file could saturate in this runtime, on this processor.
    """

    codes_compared: int = 0
    code_mismatches: int = 0
    top1_agreement: float = 0.0
    max_step_difference: float = 0.0
    samples: int = 0
    operators: dict[str, int] = field(default_factory=dict)
    sites: list[SiteAgreement] = field(default_factory=list)
    constants_compared: int = 0
    stored: list[StoredDifference] = field(default_factory=list)
    propagated: int = 0
    float_ties: int = 0
    prediction_changes: float | None = None
    alarm: str = ""
    weak_data: list[str] = field(default_factory=list)
    weak_inputs: bool = False
    nothing_quantized: bool = False
    runtime: str = ""
    exact_runtime: bool = True
    ties_allowed: float = TIES_ALLOWED
    saturates: bool = False

    @property
    def exact(self) -> bool:
        """Whether codes were compared, nothing differs on its own account, and no number is NaN.

        `float_ties` and what they propagate are not faults; an `alarm` is not about the file.
        """
        compared = self.codes_compared > 0 and not self.nothing_quantized
        return compared and self.code_mismatches == 0 and not any(s.not_a_number for s in self.sites)

    @property
    def not_run(self) -> bool:
        """Whether what is stored differs so much that the file was not run."""
        return not all(difference.only_values for difference in self.stored)

    @property
    def passed(self) -> bool:
        """Whether the file may be deployed: it is `exact`, and the integer model is what was trained (no `alarm`)."""
        return self.exact and not self.alarm

    def failure(self, path: str | Path) -> str:
        """Why the file may not be deployed, in one sentence that names it; "" if it passed."""
        if self.passed:
            return ""
        first, *others = self.sentences
        more = f" {others[0]}" if others and not self.alarm and not self.nothing_quantized else ""
        return f"NOT VERIFIED, do not deploy {path}: {first}{more}"

    def sum_up(self) -> None:
        """Set the sums from `sites` and `stored`."""
        for site in self.sites:
            site.refuse_many_ties(self.ties_allowed if site.ties_allowed is None else site.ties_allowed)
        self.codes_compared = sum(s.codes_compared for s in self.sites)
        stored = sum(s.elements for s in self.stored)
        self.code_mismatches = sum(s.code_mismatches for s in self.sites) + stored
        self.propagated = sum(s.propagated for s in self.sites)
        self.float_ties = sum(s.float_ties for s in self.sites)
        self.max_step_difference = max((s.max_step_difference for s in self.sites), default=0.0)

    @property
    def sentences(self) -> list[str]:
        """What was found, worst first; never empty."""
        over = (
            f"{self.samples:,} sample{'s' * (self.samples != 1)}{'' if self.exact_runtime else f' in {self.runtime}'}"
        )
        first = (
            f"{self.code_mismatches:,} of {self.codes_compared:,} codes and {self.constants_compared:,} stored numbers differ "
            f"from the integer model, over {over}."
        )
        if self.not_run:
            first = "The file was not run: it was changed, or written from another model or by another version of qat."
        found = [self.alarm] if self.alarm else []
        if self.nothing_quantized:
            found.append(NOTHING_QUANTIZED)
        found.append(first)
        if self.saturates and self.code_mismatches:
            found.append(
                f"{self.runtime} adds products of 8-bit numbers in 16 bits on this processor, which has no VNNI, and such sums "
                "saturate: write policy.reduce_range=true (preset w7a8), or verify on a processor with VNNI."
            )
        found += [f"The file's {d.name} {d.text}." for d in self.stored]
        for s in self.sites:
            if s.not_a_number:
                found.append(f"{s.name} has {s.not_a_number:,} NaN, in the file and in the integer model.")
            if s.code_mismatches:
                found.append(f"{s.name} differs in {s.code_mismatches:,} of {s.codes_compared:,} codes.")
        ties = [s for s in self.sites if s.float_ties]
        if ties:
            worst = max(ties, key=lambda s: s.float_ties / s.codes_compared)
            why = "behind float operations " if self.exact_runtime else ""
            sites = f"{len(ties)} site{'s' * (len(ties) != 1)}"
            found.append(
                f"{self.float_ties:,} codes {why}in {sites} are rounded to the next code, most in "
                f"{worst.name} ({100 * worst.float_ties / worst.codes_compared:.4f} %): float operations in another order."
            )
        if self.propagated:
            found.append(f"{self.propagated:,} more differ only because of those before them.")
        if not self.exact_runtime and not self.not_run:
            found.append(f"File and integer model decide alike in {100 * self.top1_agreement:.2f} % of the samples.")
        return found + self.weak_data

    def __str__(self) -> str:
        return "\n".join(self.sentences)
