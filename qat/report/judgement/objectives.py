"""What a run is judged by: names for numbers in its results, which way is better, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from qat.report.results.schema import Results, Row

ARTEFACT_FIRST = ("qat_onnxruntime", "qat_integer", "qat_fake_quant")
"""The kinds of rows of the trained network; the one that is nearest to what is deployed comes first."""


class Meaning(NamedTuple):
    """value: of the results; None if it was not measured. higher: whether more is better."""

    value: Callable[[Results], float | None]
    higher: bool


def trained_row(results: Results) -> Row | None:
    """The row of the trained network that is nearest to what is deployed."""
    rows = {row.kind: row for row in reversed(results.rows)}
    return next((rows[kind] for kind in ARTEFACT_FIRST if kind in rows), None)


def best_ptq(results: Results) -> Row | None:
    """The best row of post-training quantization."""
    rows = [row for row in results.rows if row.kind == "ptq"]
    return max(rows, key=lambda row: results.metric.rank(row.score), default=None)


def float_row(results: Results) -> Row | None:
    """The row of the float network."""
    return next((row for row in results.rows if row.kind == "float"), None)


def minutes(results: Results) -> float:
    """How long the whole run took, in minutes."""
    return sum(results.timings.values()) / 60


def validation_value(results: Results) -> float | None:
    """The validation metric of the epoch whose weights were kept. Choosing by test values would make these too good."""
    training = results.training
    if training is None or not 1 <= training.best_epoch <= len(training.curve):
        return None
    return training.curve[training.best_epoch - 1]


def of_row(name: str) -> Callable[[Results], float | None]:
    """A number of the trained network's row, by the name of its field."""

    def value(results: Results) -> float | None:
        row = trained_row(results)
        return None if row is None else getattr(row, name)

    return value


OBJECTIVES: dict[str, Meaning] = {
    "accuracy": Meaning(validation_value, True),
    "size": Meaning(of_row("size_bytes"), False),
    "latency": Meaning(of_row("latency_ms_batch1"), False),
    "latency_32": Meaning(of_row("latency_ms_batch32"), False),
    "minutes": Meaning(minutes, False),
}


def objective_values(names: str | Sequence[str], results: Results) -> float | tuple[float | None, ...] | None:
    """What a sweeper gets: one number, or one for each name; None for what was not measured."""
    return _value(names, results) if isinstance(names, str) else tuple(_value(name, results) for name in names)


def _value(name: str, results: Results) -> float | None:
    value = OBJECTIVES[name].value(results)
    return float(value) if value is not None and math.isfinite(value) else None
