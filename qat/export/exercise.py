"""What the data of a verification exercised: data that reach few codes prove little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from qat.export.verification import LITTLE_EXERCISED, SiteAgreement, Verification
from qat.integer import Encoding


class Exercise:
    """Notes inputs and codes, batch by batch."""

    def __init__(self) -> None:
        self.samples = 0
        self._first: list[Tensor] = []
        self._all_zero = self._constant = self._one_image = True
        self._nan = False
        self._seen: dict[str, Tensor] = {}

    def see_inputs(self, inputs: Sequence[Tensor]) -> None:
        """Note whether these inputs are zero, constant, NaN, or one sample repeated.

        Raises:
            ValueError: there is no sample.
        """
        if not len(inputs[0]):
            raise ValueError("a batch without samples verifies nothing: leave it out.")
        self._nan = self._nan or any(x.is_floating_point() and bool(x.isnan().any()) for x in inputs)
        self.samples += len(inputs[0])
        self._first = self._first or [x[:1].clone() for x in inputs]
        for x, first in zip(inputs, self._first, strict=True):
            self._all_zero = self._all_zero and not bool(x.any())
            self._constant = self._constant and bool((x == first.flatten()[0]).all())
            self._one_image = self._one_image and x.shape[1:] == first.shape[1:] and bool((x == first).all())

    def see_codes(self, codes: Mapping[str, Tensor]) -> None:
        """Note which codes occur."""
        for name, of_site in codes.items():
            counts = torch.bincount(of_site.flatten().cpu(), minlength=256).bool()
            self._seen[name] = self._seen[name] | counts if name in self._seen else counts

    def share(self, name: str, encoding: Encoding | None) -> float | None:
        """The share of a site's range of codes that occurred; of all 256 without an encoding; None if none was seen."""
        if name not in self._seen:
            return None
        lowest, highest = (encoding.lowest, encoding.highest) if encoding else (0, 255)
        return int(self._seen[name][lowest : highest + 1].sum()) / (highest - lowest + 1)

    def record(self, result: Verification) -> None:
        """Note in a verification how many samples there were, and what they cannot show of its sites."""
        result.samples = self.samples
        result.weak_data, result.weak_inputs = self.sentences(result.sites), bool(self.weakness)

    @property
    def weakness(self) -> str:
        """Why the inputs are not data, as the beginning of a sentence; "" if they are."""
        if self._nan:
            return "Inputs have NaN, for which there is no integer"
        if self._all_zero:
            return "All inputs are zero"
        if self._constant:
            return "All inputs are one number"
        if self.samples == 1:
            return "There is only one sample"
        return f"All {self.samples:,} samples are the same" if self._one_image else ""

    def sentences(self, sites: Sequence[SiteAgreement]) -> list[str]:
        """What these data cannot show; empty for data that look like data."""
        found = []
        if self.weakness:
            found.append(
                f"{self.weakness}: what the file computes for other data was not tested; give real data, a hundred samples."
            )
        little = [s for s in sites if s.exercised is not None and s.exercised < LITTLE_EXERCISED]
        if little:
            worst = min(little, key=lambda s: s.exercised or 0.0)
            found.append(
                f"{len(little)} of {sum(s.exercised is not None for s in sites)} sites used less than "
                f"{100 * LITTLE_EXERCISED:.0f} % of their codes, least of all {worst.name} "
                f"({100 * (worst.exercised or 0):.1f} %): what lies behind them was hardly tested."
            )
        return found
