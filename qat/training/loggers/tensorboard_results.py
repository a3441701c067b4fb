"""Results for TensorBoard: hyperparameters beside numbers, tables as text, histograms and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qat.report import Results
from qat.report.results.details import TensorDetail
from qat.report.text.flat import PlainTable, numbers, plain_tables


def log_to_tensorboard(logger: Any, results: Results, folder: Path) -> None:
    """Write the configuration with the numbers as its results (HPARAMS), and the rest under the step of the last update."""
    step = results.training.steps if results.training else 0
    logger.log_hyperparams(results.config, metrics=numbers(results), step=step)
    writer = logger.experiment
    writer.add_text("verdict", results.verdict.text, step)
    for name, table in plain_tables(results).items():
        writer.add_text(name, _markdown(table), step)
    for tensor in results.tensors:
        if tensor.counts and tensor.first is not None and tensor.last is not None:
            writer.add_histogram_raw(f"histogram/{tensor.name}", **_histogram(tensor), global_step=step)
    for picture in sorted(folder.glob("*.png")):
        pixels = np.asarray(Image.open(picture).convert("RGB"))
        writer.add_image(f"plots/{picture.stem}", pixels, step, dataformats="HWC")
    writer.flush()


def _histogram(tensor: TensorDetail) -> dict[str, Any]:
    """The arguments of add_histogram_raw; values are in steps of the scale."""
    edges = np.linspace(tensor.first or 0.0, tensor.last or 0.0, len(tensor.counts) + 1)
    counts, middles = np.array(tensor.counts, dtype=np.float64), (edges[1:] + edges[:-1]) / 2
    return {
        "min": float(edges[0]),
        "max": float(edges[-1]),
        "num": float(counts.sum()),
        "sum": float((counts * middles).sum()),
        "sum_squares": float((counts * middles**2).sum()),
        "bucket_limits": edges[1:].tolist(),
        "bucket_counts": counts.tolist(),
    }


def _markdown(table: PlainTable) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join('' if cell is None else str(cell) for cell in line)} |" for line in lines)
