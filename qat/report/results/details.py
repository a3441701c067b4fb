"""What a report shows of single tensors: distributions, errors, and how scales and codes moved during the training."""

from dataclasses import dataclass, field
from typing import Literal

from qat.report.results.json_records import Record

TensorKind = Literal["weight", "activation"]


@dataclass(frozen=True)
class TensorDetail(Record):
    """One quantized tensor at the end of the training, measured on a few training samples.

    `sqnr_db` compares it with its own float values; `sensitivity_db` is the signal to noise of the network's output if this
    tensor alone is quantized. The histogram is in steps of the scale: `counts` of equal bins from `first` to `last`, values
    outside of them in the outermost; codes are the whole numbers from `lowest` to `highest`, and `levels` those that exist.
    """

    name: str
    kind: TensorKind
    sqnr_db: float | None
    sensitivity_db: float | None
    clipped: float | None = None
    lowest: int | None = None
    highest: int | None = None
    levels: list[float] = field(default_factory=list)
    first: float | None = None
    last: float | None = None
    counts: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Trajectory(Record):
    """How one quantizer moved: its mean scale, and the share of its values outside of the range, at each recorded step."""

    name: str
    kind: TensorKind
    scales: list[float | None] = field(default_factory=list)
    clipped: list[float | None] = field(default_factory=list)


@dataclass(frozen=True)
class Trajectories(Record):
    """The quantizers during the training, at `steps`."""

    steps: list[int]
    tensors: list[Trajectory]


@dataclass(frozen=True)
class Confusion(Record):
    """How often samples of a class (row) were decided as a class (column), by the model `row`."""

    row: str
    counts: list[list[int]]
