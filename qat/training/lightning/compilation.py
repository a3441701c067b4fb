"""torch.compile for the network of a fit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from qat.training.lightning.private_api import get_compiled_call, set_compiled_call


def check_compiler(accelerator: str) -> None:
    """Check that torch.compile has what it needs: on a CPU, a C++ compiler.

    Raises:
        ValueError: there is none.
    """
    names = (os.environ.get("CXX"), "g++", "clang++")
    if accelerator == "cpu" and not any(name and shutil.which(name) for name in names):
        raise ValueError("compile=True needs a C++ compiler, and there is none: install g++, or write compile=False.")


def compile_in_place(network: nn.Module) -> None:
    """Make calls of `network` run compiled code. Names in its state_dict stay; a copy of it is not compiled."""
    network.compile()


def remove_compilation(network: nn.Module) -> None:
    """Undo `compile_in_place`."""
    set_compiled_call(network, None)


@contextmanager
def without_compilation(network: nn.Module) -> Iterator[None]:
    """Inside the `with` block, calls of `network` run its Python code."""
    compiled = get_compiled_call(network)
    remove_compilation(network)
    try:
        yield
    finally:
        set_compiled_call(network, compiled)
