"""What runs ONNX files in a verification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import onnx

from qat.export.onnx.runtime import operators, session


class Session(Protocol):
    """A loaded file."""

    def run(self, names: Sequence[str] | None, inputs: Mapping[str, Any]) -> list[Any]:
        """The named outputs, all if there are no names, as arrays."""

    def get_inputs(self) -> Sequence[Any]:
        """The inputs of the file; each has a `name`."""


def never(model: onnx.ModelProto) -> bool:
    """Whether sums of the file could saturate: not in ONNX Runtime, which is told to add exactly where it would not."""
    return False


@dataclass(frozen=True)
class Engine:
    """A runtime, seen from a verification.

    Attributes:
        name: in sentences.
        package: the distribution, whose version is recorded.
        open: from the bytes of a file to a session.
        operators: from a path to how often each operator occurs in what the runtime makes of the file.
        ties: share of a site's codes that may differ by one step where all codes before it are exact; 0: none, the runtime
            computes what the integer model defines.
        ties_of_requantized: the same for a site whose codes are those of another site on another grid: one of the 256 may lie
            at a rounding edge, and is then rounded to the other side wherever it occurs.
        saturates: whether sums of a file could saturate in it, on this processor.
    """

    name: str
    package: str
    open: Callable[[bytes], Session]
    operators: Callable[[str | Path], dict[str, int]]
    ties: float = 0.0
    ties_of_requantized: float = 0.0
    saturates: Callable[[onnx.ModelProto], bool] = never

    def ties_allowed(self, requantized: bool, codes: int) -> float | None:
        """The share of a site's `codes` that may be ties, at least one code of them; None: this engine is exact."""
        share = self.ties_of_requantized if requantized else self.ties
        return max(share, 1 / codes) if self.ties and codes else None

    @property
    def version(self) -> str:
        """For records, "ONNX Runtime 1.32.0"."""
        return f"{self.name} {metadata.version(self.package)}"


ONNX_RUNTIME = Engine("ONNX Runtime", "onnxruntime", session, operators)
