"""Does an ExecuTorch program decide what the integer model does, in the integer kernels of XNNPACK?"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from qat.export.comparison import compare_decisions
from qat.export.executorch.program import lowered
from qat.export.executorch.runtime import ExecutorchNetwork
from qat.export.verification import Verification


def verify_executorch(
    path: str | Path,
    integer: nn.Module,
    batches: Iterable[Any],
    prepared: nn.Module | None = None,
    record: bool = False,
) -> Verification:
    """`qat.verify` for an ExecuTorch program: the class of the largest output may differ for 1 % of the samples.

    The file is compared byte by byte with the integer model written anew; every layer with codes in and out has to be in a
    delegate of XNNPACK, between quantizations. record: the file keeps no results.

    Raises:
        ValueError: this is not an integer model with a graph, there are no batches, the file is of another model or damaged.
        ImportError: ExecuTorch is not installed.
    """
    operators: dict[str, int] = {}

    def write(example: Any) -> tuple[bytes, int]:
        anew = lowered(integer, example)
        operators.update(anew.operators)
        return anew.content, anew.integer_layers

    result = compare_decisions(
        path, integer, batches, prepared, ExecutorchNetwork(path), f"ExecuTorch {version('executorch')}", write
    )
    result.operators = operators
    return result
