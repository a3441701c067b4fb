"""Which images train, validate and test. The split has its own seed and never depends on the global random state."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from qat.arguments import check_kind, is_number, is_whole_number
from qat.messages import shown


@dataclass(frozen=True)
class Split:
    """Indices of the train, validation and test images.

    A limited split is a subset of the unlimited one: an image that validates in a short run never trains in a long one.

    Args:
        val_fraction: share of the training images used for validation, in [0, 1); 0 trains on all of them.
        seed: seed of the split; nothing else influences it.
        limit_train: largest number of training images (validation shrinks in proportion); None: no limit.
        limit_test: largest number of test images; None: no limit.

    Raises:
        ValueError: a value is of another kind, or outside its range.

    >>> train, val = Split(val_fraction=0.25).train_val(8)
    >>> sorted([*train.tolist(), *val.tolist()]), len(val)
    ([0, 1, 2, 3, 4, 5, 6, 7], 2)
    """

    val_fraction: float = 0.1
    seed: int = 0
    limit_train: int | None = None
    limit_test: int | None = None

    def __post_init__(self) -> None:
        if not (is_number(self.val_fraction) and 0 <= self.val_fraction < 1):
            raise ValueError(
                f"val_fraction={shown(self.val_fraction)} is not in [0, 1): write the share that validates, as 0.1."
            )
        check_kind("split_seed", self.seed, (Integral,), "a whole number, as 0")
        for name, limit in {"limit_train": self.limit_train, "limit_test": self.limit_test}.items():
            if limit is not None and not is_whole_number(limit):
                raise ValueError(
                    f"{name}={shown(limit)} leaves no images: write a positive number, or null for all of them."
                )

    def train_val(self, n: int) -> tuple[Tensor, Tensor]:
        """Sorted indices into `n` training images: int64 (n_train,) and int64 (n_val,), disjoint.

        Raises:
            ValueError: nothing would be left to train on.
        """
        n_val = max(1, round(n * self.val_fraction)) if self.val_fraction else 0
        if n_val >= n:
            raise ValueError(
                f"val_fraction={self.val_fraction} leaves none of {n} training images to train on: "
                "write a smaller share, or add images."
            )
        order = self._order(n)
        val, train = order[:n_val], order[n_val:]
        if self.limit_train is not None and self.limit_train < len(train):
            n_val = max(1, round(n_val * self.limit_train / len(train))) if n_val else 0
            val, train = val[:n_val], train[: self.limit_train]
        return train.sort().values, val.sort().values

    def test(self, n: int) -> Tensor:
        """Sorted indices into `n` test images: int64 (min(n, limit_test),)."""
        return self._order(n)[: self.limit_test].sort().values

    def _order(self, n: int) -> Tensor:
        return torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))
