"""The names of the report's rows."""

from __future__ import annotations

from typing import Any

FLOAT = "float"
STEP0 = "QAT step 0"
FAKE_QUANT = "QAT fake-quant"
INTEGER = "QAT integer"
ONNX_RUNTIME = "QAT in ONNX Runtime"

OURS = (FLOAT, "QAT")
"""First words of the names of the other rows."""

OBSERVER_LABELS = {
    "MinMax": "min-max",
    "MovingAverage": "moving average",
    "Percentile": "percentile",
    "MeanAbs": "mean-abs",
}
"""Class name -> label, for observers whose label is not their class name."""


def ptq_row_name(observer: Any) -> str:
    """The name of the row of PTQ with this observer: a class name or {"_target_": ..., option: value}.

    >>> ptq_row_name("MinMax")
    'PTQ min-max'
    """
    return f"PTQ {observer_label(observer)}"


def check_row_name(name: str, of: str = "PTQ") -> None:
    """Check that the name of a row of somebody else's cannot be taken for that of the float network or of QAT.

    of: what the row is of, for the sentence.

    Raises:
        ValueError: it can.
    """
    if not name.strip() or name.partition(" ")[0].lower() in [word.lower() for word in OURS]:
        raise ValueError(f"the name {name!r} of a row of {of} is that of another row: write for example '{of} {name}'.")


def target_row_name(target: str) -> str:
    """The name of the row of the file for a further target."""
    return f"QAT for {target}"


def observer_label(observer: Any) -> str:
    """The label of an observer in tables: a class name or {"_target_": ..., option: value}.

    >>> observer_label("MinMax"), observer_label({"_target_": "qat.observers.Percentile", "percentile": 99.9})
    ('min-max', 'percentile percentile=99.9')
    """
    options = {} if isinstance(observer, str) else dict(observer)
    name = str(observer if isinstance(observer, str) else options.pop("_target_", "")).rpartition(".")[2]
    return " ".join([OBSERVER_LABELS.get(name, name), *(f"{key}={value}" for key, value in options.items())])
