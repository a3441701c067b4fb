"""The part `compare_with` of a configuration: finished runs, whose files are measured beside that of this run."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from qat.data import ImageData
from qat.report import read_results


def other_runs(config: DictConfig, data: ImageData) -> dict[str, Path]:
    """Row name -> ONNX file of each run.

    Raises:
        FileNotFoundError: a run has no results or no file.
        ValueError: it was measured on other data.
    """
    found: dict[str, Path] = {}
    for given in config.compare_with:
        folder = Path(given).expanduser()
        for name in ("results.json", "model.onnx"):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"compare_with={given} has no {name}: give the folder of a finished run that wrote one."
                )
        results = read_results(folder / "results.json")
        if (results.data.label, results.data.test) != (data.label, len(data.test)):
            raise ValueError(
                f"compare_with={given} was measured on {results.data.test:,} test images of {results.data.label}, this run has "
                f"{len(data.test):,} of {data.label}: give a run on the same data."
            )
        policy = (results.config.get("policy") or {}).get("preset") or "policy of its own"
        name = f"{results.recipe}, {policy} (other run)"
        found[name if name not in found else f"{name} {len(found) + 1}"] = folder / "model.onnx"
    return found
