"""Does a LiteRT file decide what the integer model does, in int8 kernels?"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from qat.export.comparison import compare_decisions
from qat.export.litert.program import converted
from qat.export.litert.runtime import LitertNetwork, operators
from qat.export.verification import Verification

LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D", "BATCH_MATMUL")


def verify_litert(
    path: str | Path,
    integer: nn.Module,
    batches: Iterable[Any],
    prepared: nn.Module | None = None,
    record: bool = False,
) -> Verification:
    """`qat.verify` for a LiteRT file: the class of the largest output may differ for 1 % of the samples.

    The file is compared byte by byte with the integer model written anew; every layer with codes in and out has to be an int8
    kernel. record: the file keeps no results.

    Raises:
        ValueError: this is not an integer model with a graph, there are no batches, the file is of another model or damaged.
        ImportError: litert-torch or LiteRT is not installed.
    """
    network = LitertNetwork(path)
    found = operators(path)
    in_integers = sum(found.get(f"{layer} (int8)", 0) for layer in LAYERS)
    runtime = f"LiteRT {version('ai-edge-litert')}"
    result = compare_decisions(
        path, integer, batches, prepared, network, runtime, lambda one: (converted(integer, one), in_integers)
    )
    result.operators = found
    return result
