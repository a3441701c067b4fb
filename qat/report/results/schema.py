"""The results of one run, documented field by field in `docs/results_schema.md`.

Units: accuracies and agreements are fractions in [0, 1], other metrics are in their own unit, sizes are bytes, latencies
milliseconds per call, durations seconds. None means "not measured".
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qat.report.results.allocation import AllocationResult, OtherRun
from qat.report.results.details import Confusion, TensorDetail, Trajectories
from qat.report.results.environment import Environment
from qat.report.results.json_records import Record, SchemaError
from qat.report.results.metric import ACCURACY, MetricInfo
from qat.report.results.oscillations import OscillationResult
from qat.report.results.pruning import FileSize, PruningResult

SCHEMA_VERSION = 1
IDENTICAL_DB = 999.0
"""`SiteResult.sqnr_db` of a tensor without any error, because JSON has no infinity."""

RowKind = Literal[
    "float", "ptq", "outside", "other_run", "step0", "qat_fake_quant", "qat_integer", "qat_onnxruntime", "qat_target"
]
SHIPPABLE: tuple[RowKind, ...] = (
    *("float", "ptq", "outside", "other_run"),
    *("qat_integer", "qat_onnxruntime", "qat_target"),
)
"""Models, and not simulations of one."""
SizeKind = Literal["file", "stored"]
Outcome = Literal[
    "qat_won", "no_difference", "qat_lost", "undecided", "float_untrained", "diverged", "not_verified", "verified"
]


@dataclass(frozen=True)
class Row(Record):
    """One model of the comparison, measured on the whole test set.

    `value` is that of the run's metric; of an accuracy it is `top1`. `others` are further metrics by name.

    >>> Row("MSE", "ptq", top1=91.2, size_bytes=280_000, size_kind="stored")
    Traceback (most recent call last):
    qat.report.results.json_records.SchemaError: Row 'MSE': top1=91.2 is not a fraction in [0, 1]; for 91.2 % write top1=0.912
    """

    name: str
    kind: RowKind
    top1: float | None = None
    top5: float | None = None
    calibration_error: float | None = None
    size_bytes: int = field(kw_only=True)
    size_kind: SizeKind = field(kw_only=True)
    latency_ms_batch1: float | None = None
    latency_ms_batch32: float | None = None
    seconds: float | None = None
    note: str = ""
    value: float | None = field(default=None, kw_only=True)
    standard_error: float | None = field(default=None, kw_only=True)
    others: dict[str, float | None] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        if self.value is None:
            object.__setattr__(self, "value", self.top1)
        for name in ("top1", "top5", "calibration_error"):
            _check_fraction(f"Row {self.name!r}", name, getattr(self, name))
        if self.size_bytes < 1:
            raise SchemaError(
                f"Row {self.name!r}: size_bytes={self.size_bytes}; give the model's size, at least 1 byte"
            )

    @property
    def score(self) -> float:
        """The value of the run's metric; NaN if it is not a finite number, as a results file has it."""
        return math.nan if self.value is None or not math.isfinite(self.value) else self.value


@dataclass(frozen=True)
class Verdict(Record):
    """QAT compared with the best PTQ row; made by `qat.report.verdict`.

    `difference` is QAT minus PTQ in the unit of the metric, with its standard error, 95 % interval and p-value;
    `difference_points` and `standard_error_points` are the same in percentage points, of an accuracy.
    """

    outcome: Outcome
    text: str
    qat: str | None = None
    ptq: str | None = None
    difference_points: float | None = None
    standard_error_points: float | None = None
    difference: float | None = None
    standard_error: float | None = None
    interval: list[float] | None = None
    p_value: float | None = None
    method: str = ""


@dataclass(frozen=True)
class SiteResult(Record):
    """Comparison of one site: how many integer codes the artefact's runtime computed differently from the integer model.

    `code_mismatches` begin at this site; `propagated` differences come from sites before it; `float_ties` are roundings of
    float sums. `exercised` is the share of its codes that the data used, `sqnr_db` compares it with the prepared network.
    """

    name: str
    shape: tuple[int, ...]
    codes_compared: int
    code_mismatches: int
    max_step_difference: int
    propagated: int = 0
    float_ties: int = 0
    exercised: float | None = None
    sqnr_db: float | None = None


@dataclass(frozen=True)
class VerificationResult(Record):
    """Code-by-code comparison of the written artefact, run in its own runtime, with the integer model.

    `quantized_operators` counts the artefact's operators by type, e.g. `{"QLinearConv": 19, "Conv": 0}`. `file` is its name,
    `hashes` and `versions` are those that the file carries, and the hash of the whole file. `latency_shares`: operator -> its
    share of the time of a call.
    """

    codes_compared: int
    code_mismatches: int
    top1_agreement: float
    max_step_difference: int
    images: int
    quantized_operators: dict[str, int] = field(default_factory=dict)
    sites: list[SiteResult] = field(default_factory=list)
    constants_compared: int = 0
    propagated: int = 0
    float_ties: int = 0
    not_a_number: int = 0
    prediction_changes: float | None = None
    alarm: str = ""
    notes: list[str] = field(default_factory=list)
    file: str = ""
    hashes: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    weak_inputs: bool = False
    latency_shares: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_fraction("VerificationResult", "top1_agreement", self.top1_agreement)
        _check_fraction("VerificationResult", "prediction_changes", self.prediction_changes)

    @property
    def exact(self) -> bool:
        """Whether something was compared, nothing differs but ties of float sums, and it is what was trained."""
        return not self.failure

    @property
    def failure(self) -> str:
        """Why the file is not what was trained, in a sentence; "" if it is."""
        clean = self.code_mismatches == 0 and self.not_a_number == 0 and self.codes_compared > 0
        differ = f"{self.code_mismatches:,} of {self.codes_compared:,} codes and stored numbers differ from the integer model"
        return self.alarm or ("" if clean else f"{differ}.")


@dataclass(frozen=True)
class Data(Record):
    """The data set of the run; `test` is the number of samples behind every value in `rows`. `samples`: what they are."""

    name: str
    label: str
    train: int
    val: int
    test: int
    image_shape: tuple[int, ...]
    classes: int | None
    note: str = ""
    samples: str = "images"


@dataclass(frozen=True)
class SiteInfo(Record):
    """The formats that one site is quantized to; `weight` is None if the operator has no weight."""

    site: str
    op: str
    weight: str | None
    activation: str | None
    note: str = ""


@dataclass(frozen=True)
class Training(Record):
    """The QAT training. Curves hold one value per epoch, None where it was not finite.

    `best_epoch` counts from 1; 0 if no epoch was validated. `val_values` is the curve of a metric that is not an accuracy.
    """

    epochs: int
    steps: int
    seconds: float | None
    best_epoch: int
    val_top1: list[float | None] = field(default_factory=list)
    val_loss: list[float | None] = field(default_factory=list)
    train_loss: list[float | None] = field(default_factory=list)
    val_values: list[float | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        for value in self.val_top1:
            _check_fraction("Training", "val_top1", value)

    @property
    def curve(self) -> list[float | None]:
        """The run's metric on the validation data, after each epoch."""
        return self.val_top1 or self.val_values


@dataclass(frozen=True, kw_only=True)
class Results(Record):
    """All results of one run; the console output, Markdown and pictures depend on nothing else."""

    schema_version: int = SCHEMA_VERSION
    recipe: str
    command: str
    seed: int | None
    config: dict[str, Any]
    data: Data
    rows: list[Row]
    verdict: Verdict
    metric: MetricInfo = ACCURACY
    verification: VerificationResult | None = None
    ptq_verification: VerificationResult | None = None
    target_verifications: list[VerificationResult] = field(default_factory=list)
    environment: Environment
    sites: list[SiteInfo] = field(default_factory=list)
    float_edges: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    training: Training | None = None
    oscillations: OscillationResult | None = None
    allocation: AllocationResult | None = None
    other_runs: list[OtherRun] = field(default_factory=list)
    pruning: PruningResult | None = None
    files: list[FileSize] = field(default_factory=list)
    tensors: list[TensorDetail] = field(default_factory=list)
    trajectories: Trajectories | None = None
    confusion: Confusion | None = None
    timings: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise SchemaError(f"Results.rows has two rows named {twice!r}; give each its own name")

    @property
    def verifications(self) -> list[VerificationResult]:
        """The verifications of all files that were written."""
        return [v for v in (self.verification, *self.target_verifications, self.ptq_verification) if v]


def timing_free(results: Mapping[str, Any]) -> dict[str, Any]:
    """`Results.to_dict()` without the values that may differ between two repetitions of the same run.

    Seconds, latencies and timings are removed, the text of the verdict, which names minutes, and the parts of the environment
    that describe the processor or the checkout. `config` stays as it is, whatever its keys are called.

    >>> timing_free({"seed": 1, "timings": {"ptq": 2.5}, "rows": [{"top1": 0.9, "seconds": 3.0}]})
    {'seed': 1, 'rows': [{'top1': 0.9}]}
    """
    kept = {key: value if key == "config" else _without_timing(value) for key, value in results.items()}
    kept.pop("timings", None)
    kept.get("verdict", {}).pop("text", None)
    if "environment" in kept:
        kept["environment"] = {key: kept["environment"][key] for key in ("python", "versions")}
    return kept


def _without_timing(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_timing(item) for key, item in value.items() if not _is_timing(key)}
    return [_without_timing(item) for item in value] if isinstance(value, list) else value


def _is_timing(key: str) -> bool:
    return key == "seconds" or key.startswith("latency_")


def _check_fraction(owner: str, name: str, value: float | None) -> None:
    if value is None or 0.0 <= value <= 1.0:
        return
    hint = f"; for {value} % write {name}={value / 100:.6g}" if 1.0 < value <= 100.0 else ""
    raise SchemaError(f"{owner}: {name}={value} is not a fraction in [0, 1]{hint}")
