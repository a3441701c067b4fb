"""Results for MLflow: numbers as metrics, and the files of the run as artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qat.report import Results
from qat.report.text.flat import numbers

FILES = ("results.json", "report.html", "report.md", "*.png", "*.onnx")


def log_to_mlflow(logger: Any, results: Results, folder: Path) -> None:
    """Log into the run of an MLFlowLogger."""
    logger.log_metrics(numbers(results), step=results.training.steps if results.training else 0)
    client, run = logger.experiment, logger.run_id
    client.set_tag(run, "verdict", results.verdict.text)
    client.set_tag(run, "recipe", results.recipe)
    for pattern in FILES:
        for path in sorted(folder.glob(pattern)):
            client.log_artifact(run, str(path))
