"""Results for Weights & Biases: tables, histograms, pictures, the file as an artifact, and numbers in the summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qat.report import Results
from qat.report.text.flat import numbers, plain_tables


def log_to_wandb(logger: Any, results: Results, folder: Path) -> None:
    """Log everything into the run of a WandbLogger. Nothing waits for a network: the run's own process uploads, or none."""
    import wandb

    run = logger.experiment
    shown: dict[str, Any] = {
        name: wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows], allow_mixed_types=True)
        for name, table in plain_tables(results).items()
    }
    for tensor in results.tensors:
        if tensor.counts and tensor.first is not None and tensor.last is not None:
            edges = np.linspace(tensor.first, tensor.last, len(tensor.counts) + 1)
            shown[f"histogram/{tensor.name}"] = wandb.Histogram(np_histogram=(np.array(tensor.counts), edges))
    for picture in sorted(folder.glob("*.png")):
        shown[f"plots/{picture.stem}"] = wandb.Image(str(picture))
    run.log(shown)
    run.summary.update(numbers(results))
    found = results.verification
    run.summary.update(
        {
            "verdict": results.verdict.text,
            "outcome": results.verdict.outcome,
            "verified": None if found is None else found.exact,
            "command": results.command,
        }
    )
    run.log_artifact(_artifact(wandb, run, results, folder))


def _artifact(wandb: Any, run: Any, results: Results, folder: Path) -> Any:
    """The ONNX files with what is known about them."""
    found = results.verification
    about: dict[str, Any] = {
        "recipe": results.recipe,
        "seed": results.seed,
        "verdict": results.verdict.text,
        "numbers": numbers(results),
    }
    if found is not None:
        about |= {"verified": found.exact, "hashes": dict(found.hashes)}
    made = wandb.Artifact(f"{results.recipe}-{run.id}", type="model", metadata=about)
    for path in (*sorted(folder.glob("*.onnx")), folder / "results.json", folder / "report.html"):
        if path.is_file():
            made.add_file(str(path), name=path.name)
    return made
