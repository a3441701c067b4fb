"""Checks of the options of `Report`, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Integral
from types import NoneType
from typing import Any

from qat.arguments import check_kind
from qat.export.file_network import written_file
from qat.report import Data
from qat.search import Allocation
from qat.training.comparison.row_names import check_row_name

TEXT = (str, NoneType)
LOGGED = "the name under which the LightningModule logs it"


def check_report(options: Mapping[str, Any]) -> None:
    """Check what kind of thing each option of `Report` is. Its metric and mode are checked by `ReportMetric`.

    Raises:
        FileNotFoundError: a file of another run does not exist.
        ValueError: one is of another kind, or a row has the name of another one.
    """
    for name in ("top5", "calibration_error", "val_metric"):
        check_kind(name, options[name], TEXT, LOGGED)
    for name in ("val_loss", "train_loss"):
        check_kind(name, options[name], (str,), LOGGED)
    for name in ("name", "metric_name", "unit"):
        check_kind(name, options[name], TEXT, "a text")
    check_kind("command", options["command"], (str,), "a text")
    check_kind("seed", options["seed"], (Integral, NoneType), "a whole number, as 0")
    check_kind("data", options["data"], (Data, NoneType), "a qat.report.Data")
    check_kind("targets", options["targets"], (Callable, NoneType), "a function from a batch to its targets")
    check_kind("allocation", options["allocation"], (Allocation, NoneType), "what qat.search.allocate returned")
    for name, content in (("config", "key: value"), ("timings", "stage: seconds"), ("other_runs", "row: ONNX file")):
        check_kind(name, options[name], (Mapping, NoneType), f"a dict, {{{content}}}")
    for name, file in (options["other_runs"] or {}).items():
        check_row_name(str(name), "other runs")
        written_file(file)
