"""What a search for bits under a budget found, as the report shows it."""

from dataclasses import dataclass, field

from qat.report.results.json_records import Record


@dataclass(frozen=True)
class LayerBits(Record):
    """The bits of one layer: None where the tensor stays in float. `kept`: they are the policy's own, and were not searched.

    `harm` is what its weight and its input do to the outputs at these bits, each alone; `shares` names the first of the layers
    that share its input or its weight, "" if it is alone.
    """

    layer: str
    weights: int
    multiply_adds: int
    weight_bits: int | None
    activation_bits: int | None
    kept: bool
    harm: float | None = None
    shares: str = ""


@dataclass(frozen=True)
class TensorHarm(Record):
    """What one tensor, quantized alone to `bits`, does to the outputs. tensor: "weight" or "activation"."""

    layer: str
    tensor: str
    bits: int
    harm: float


@dataclass(frozen=True)
class CostRange(Record):
    """One cost: of the chosen bits, its limit (None: none was set), of the fewest bits, of the most bits, and in float."""

    name: str
    unit: str
    value: float
    limit: float | None
    lowest: float
    highest: float
    in_float: float


@dataclass(frozen=True)
class BitsPoint(Record):
    """One choice of bits: its cost, the sum of its harms, and the harm of the whole network, measured without training.

    `mixed` is false for the same bits in all layers, of which `name` says how many; `chosen` marks the policy of the run.
    """

    name: str
    mixed: bool
    chosen: bool
    cost: float
    predicted: float
    measured: float | None = None


@dataclass(frozen=True)
class AllocationResult(Record):
    """The bits of every layer, and how they were found.

    `method` says what harm is. `points` are the Pareto front of the first cost, and the uniform choices.
    """

    method: str
    costs: list[CostRange]
    layers: list[LayerBits]
    harms: list[TensorHarm] = field(default_factory=list)
    points: list[BitsPoint] = field(default_factory=list)
    seconds: float | None = None


@dataclass(frozen=True)
class OtherRun(Record):
    """The model of this run, `row`, against that of another run, `other`, on the same samples.

    `difference` is the value of `row` minus that of `other`, with its paired standard error; `better` is whether `row` wins by
    at least two of them, and with a p-value below 0.05. All are None if nothing tells.
    """

    row: str
    other: str
    difference: float | None
    standard_error: float | None
    better: bool | None
    size_bytes: int
    other_size_bytes: int
    p_value: float | None = None
