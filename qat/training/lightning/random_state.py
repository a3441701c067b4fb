"""All random state that a training step can see: read, kept in a checkpoint, and restored."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class RandomState:
    """The global random state of torch, its CUDA devices, numpy and Python, and that of some generators, at one moment."""

    torch: Tensor
    cuda: list[Tensor]
    numpy: tuple[Any, ...]
    python: tuple[Any, ...]
    generators: list[Tensor]

    @classmethod
    def current(cls, generators: Sequence[Generator] = ()) -> RandomState:
        """The state of this moment; that of CUDA only if this process uses it, as reading it would start CUDA."""
        return cls(
            torch=torch.get_rng_state(),
            cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            numpy=tuple(np.random.get_state()),  # noqa: NPY002 (datasets augment with the global state)
            python=random.getstate(),
            generators=[generator.get_state() for generator in generators],
        )

    def restore(self, generators: Sequence[Generator] = ()) -> None:
        """Restore this state. CUDA devices or generators keep theirs if their number has changed."""
        torch.set_rng_state(self.torch)
        if self.cuda and len(self.cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(self.cuda)
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)
        if len(generators) == len(self.generators):
            for generator, state in zip(generators, self.generators, strict=True):
                generator.set_state(state)

    def to_plain(self) -> dict[str, Any]:
        """The state as tensors and plain values, which `torch.load(weights_only=True)` accepts."""
        kind, keys, *rest = self.numpy
        version, words, gauss = self.python
        return {
            "torch": self.torch,
            "cuda": list(self.cuda),
            "numpy": [kind, torch.tensor(keys.astype(np.int64)), *rest],
            "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
            "generators": list(self.generators),
        }

    @classmethod
    def from_plain(cls, record: Mapping[str, Any]) -> RandomState:
        """Counterpart of `to_plain`."""
        kind, keys, *rest = record["numpy"]
        version, words, gauss = record["python"]
        return cls(
            torch=record["torch"].cpu(),
            cuda=[state.cpu() for state in record["cuda"]],
            numpy=(kind, keys.cpu().numpy().astype(np.uint32), *rest),
            python=(version, tuple(words.tolist()), gauss),
            generators=[state.cpu() for state in record["generators"]],
        )
