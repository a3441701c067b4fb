"""A network to measure, and its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Inputs = Callable[[int], tuple[Any, ...]]
"""Batch size -> arguments of forward, from torch's own generator."""


@dataclass(frozen=True)
class Case:
    """A network with random weights.

    Args:
        name: "SOURCE/NETWORK".
        build: makes the network.
        inputs: makes arguments of forward for a batch.
        needs: the package to import, if it is an optional one.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    needs: str = ""

    @property
    def source(self) -> str:
        """Where the network comes from: the first part of its name."""
        return self.name.partition("/")[0]


def images(size: int = 64, channels: int = 3) -> Inputs:
    """Noise (N, channels, size, size)."""
    return noise(channels, size, size)


def noise(*shape: int) -> Inputs:
    """Noise (N, *shape)."""
    return lambda n: (torch.randn(n, *shape),)


def tokens(length: int = 16, vocabulary: int = 99) -> Inputs:
    """Random indices (N, length)."""
    return lambda n: (torch.randint(vocabulary, (n, length)),)


def tokens_and_mask(length: int = 16, vocabulary: int = 99) -> Inputs:
    """Random indices (N, length), and a mask (N, length) that hides the end of every second sample."""

    def make(n: int) -> tuple[Any, ...]:
        mask = torch.ones(n, length, dtype=torch.long)
        mask[::2, length * 3 // 4 :] = 0
        return torch.randint(vocabulary, (n, length)), mask

    return make
