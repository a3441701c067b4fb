"""The contents of a library's file."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol, cast

from torch import Tensor, nn


class Peer(Protocol):
    """A module of this folder. It does not import the library before `prepare` is called."""

    PACKAGES: Sequence[str]
    """Packages that pip installs, the library itself first; empty if the environment of this program has it."""
    SETTINGS: str
    """API and options in one line, for the table."""

    def prepare(self, network: nn.Module, x: Tensor) -> nn.Module:
        """Quantize the network to W8A8, calibrated on the batch x and ready to train. May change `network` in place."""
        ...


def load_peer(name: str) -> Peer:
    """Import the file of a library."""
    return cast(Peer, importlib.import_module(f"benchmarks.peers.{name}"))
