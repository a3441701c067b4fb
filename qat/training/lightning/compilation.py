"""torch.compile for the network of a fit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def check_compiler(accelerator: str) -> None:
    """There is what torch.compile needs: on a CPU, a C++ compiler.

    Raises:
        ValueError: there is none.
    """
    names = (os.environ.get("CXX"), "g++", "clang++")
    if accelerator == "cpu" and not any(name and shutil.which(name) for name in names):
        raise ValueError("compile=True needs a C++ compiler, and there is none: install g++, or write compile=False.")


def compile_in_place(network: nn.Module) -> None:
    """Calls of `network` run compiled code from now on. Names in its state_dict stay; a copy of it is not compiled."""
    network.compile()


def remove_compilation(network: nn.Module) -> None:
    """What `compile_in_place` did is undone."""
    network._compiled_call_impl = None


@contextmanager
def without_compilation(network: nn.Module) -> Iterator[None]:
    """Inside the `with`, calls of `network` run its Python; afterwards compiled code again, if they did before."""
    compiled = network._compiled_call_impl
    remove_compilation(network)
    try:
        yield
    finally:
        network._compiled_call_impl = compiled
