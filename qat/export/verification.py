"""The result of comparing an exported file with its integer model, whatever the target."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class SiteAgreement:
    """How far one tensor of the file agrees with the integer model.

    Attributes:
        name: name of the site, output or stored weight.
        shape: shape of one sample.
        codes_compared: how many elements were compared.
        code_mismatches: how many of them differ.
        max_step_difference: largest difference: in codes; of outputs, relative to the largest output.
    """

    name: str
    shape: tuple[int, ...]
    codes_compared: int = 0
    code_mismatches: int = 0
    max_step_difference: float = 0.0

    def compare(self, ours: Tensor, theirs: Tensor, tolerance: float = 0.0) -> None:
        """Count the elements that differ. tolerance: allowed difference, relative to the largest of ours."""
        self.codes_compared += ours.numel()
        different = ours != theirs
        if tolerance:
            different = ~((ours - theirs).abs() <= tolerance * ours.abs().max())
        if bool(different.any()):
            self.code_mismatches += int(different.sum())
            distance = (ours.double() - theirs.double()).abs().max().item()
            largest = 1.0 if not ours.is_floating_point() else ours.abs().max().item() or 1.0
            self.max_step_difference = max(self.max_step_difference, distance / largest)


@dataclass
class Verification:
    """The result of `verify`.

    Sites and outputs are compared bit for bit; of layers quantized in their weight alone, the stored weight codes are. If
    such layers, dynamic layers, or a convolution whose output has no codes compute floats, outputs may differ by
    `FLOAT_TOLERANCE` of the largest; the output's name then says so.

    Attributes:
        codes_compared: elements compared, over all sites and outputs.
        code_mismatches: how many of them differ.
        top1_agreement: fraction of samples (of pixels, if there are any) whose largest output is the same.
        max_step_difference: largest difference of two codes.
        images: samples seen.
        operators: how often each operator occurs in the graph after the runtime's optimisations.
        sites: the agreement of every site, output and stored weight.
    """

    codes_compared: int = 0
    code_mismatches: int = 0
    top1_agreement: float = 0.0
    max_step_difference: float = 0.0
    images: int = 0
    operators: dict[str, int] = field(default_factory=dict)
    sites: list[SiteAgreement] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether codes were compared and none differs."""
        return self.codes_compared > 0 and self.code_mismatches == 0
