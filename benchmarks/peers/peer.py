"""What a file of a peer holds."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol, cast

from torch import Tensor, nn


class Peer(Protocol):
    """A module of this folder. Nothing of the library is imported before `prepare` is called."""

    PACKAGES: Sequence[str]
    """What pip installs, the library itself first; nothing: the environment of this program."""
    SETTINGS: str
    """API and options in one line, for the table."""

    def prepare(self, network: nn.Module, x: Tensor) -> nn.Module:
        """The network, W8A8, calibrated on the batch x, ready to train. It may change what it is given."""
        ...


def peer(name: str) -> Peer:
    """The peer's file."""
    return cast(Peer, importlib.import_module(f"benchmarks.peers.{name}"))
