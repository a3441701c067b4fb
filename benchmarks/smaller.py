"""Tables of docs/mixed_precision.md and docs/pruning.md, from recorded runs.

    for seed in 0 1 2; do
      python train.py recipe=digits_mixed budget.size=null seed=$seed hydra.run.dir=outputs/digits_uniform.seed$seed
      python train.py recipe=digits_mixed "compare_with=[outputs/digits_uniform.seed$seed]" seed=$seed
    done
    python train.py recipe=digits_w4a8 trainer.max_epochs=20 distillation.weight=0.5 hydra.run.dir=outputs/dense.seed0
    python train.py recipe=digits_pruned_w4a8 "compare_with=[outputs/dense.seed0]"

Their results.json are results/digits_mixed*.json, results/mixed_precision/digits_uniform*.json, results/digits_pruned_w4a8.json
and results/pruning/digits_w4a8_dense.json.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.markdown_table import markdown_table
from benchmarks.program_tables import Measurement
from qat.report import Results, Row, read_results
from qat.report.text_of_numbers import format_size

DEPLOYED, INTEGER, FLOAT = "QAT in ONNX Runtime", "QAT integer", "float"
CERTAIN = 2.0


def mixed_table(results: Path) -> str:
    """Mixed against uniform bits of the same size, seed by seed, and whether mixed ones won."""
    pairs = [
        (read_results(path), read_results(results / "mixed_precision" / path.name.replace("mixed", "uniform")))
        for path in sorted(results.glob("digits_mixed*.json"))
    ]
    if not pairs:
        return "not measured"
    header = ("seed", FLOAT, "uniform W3A3", "mixed", "difference", "stored (uniform, mixed)", "ONNX file", "zipped")
    rows = [_mixed_row(mixed, uniform) for mixed, uniform in pairs]
    differences = [100 * (run.other_runs[0].difference or 0.0) for run, _ in pairs]
    won = sum(bool(run.other_runs[0].better) for run, _ in pairs)
    mean, error = statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5
    verdict = (
        f"The mixed network beat the uniform one of the same size by at least two paired standard errors on {won} of "
        f"{len(pairs)} seeds. Its mean advantage is {mean:+.2f} ± {error:.2f} points (standard error over {len(pairs)} "
        "seeds, with the same test images)."
    )
    first = pairs[0][0]
    bits = (
        ", ".join(f"{layer.layer} {layer.weight_bits}" for layer in first.allocation.layers) if first.allocation else ""
    )
    return f"{markdown_table(header, rows, text_columns=1)}\n\n{verdict} Bits of seed {first.seed}: {bits}.\n{_source(first)}"


def without_training_table(measurement: Measurement | None) -> str:
    """ResNet-20 on CIFAR-10: what the choice of bits alone brings, before any training."""
    if measurement is None:
        return "not measured"
    top1, stored, found = (measurement[key] for key in ("top1", "stored_bytes", "difference"))
    header = ("ResNet-20, without training", "top-1 %", "stored")
    names = {"float": FLOAT, "uniform": f"uniform {measurement['policy'].upper()}", "mixed": "mixed"}
    rows = [
        [said, f"{100 * top1[name]:.2f}", f"{stored[name]:,} B" if name in stored else ""]
        for name, said in names.items()
    ]
    wins = found["difference"] >= CERTAIN * found["standard_error"]
    verdict = (
        f"Mixed minus uniform on the same {measurement['test']:,} test images: {100 * found['difference']:+.2f} ± "
        f"{100 * found['standard_error']:.2f} points ({'' if wins else 'not '}at least two paired standard errors). "
        f"The search took {measurement['search_seconds']:.0f} s."
    )
    bits = ", ".join(f"{layer} {width}" for layer, width in measurement["bits"].items())
    environment = measurement["environment"]
    source = (
        f"{measurement['data']}; ranges of the MSE observer; {environment['cpu']}, {environment['threads']} thread; commit "
        f"{str(environment['commit'])[:10]}; `{measurement['command']}`."
    )
    return f"{markdown_table(header, rows, text_columns=1)}\n\n{verdict} Bits: {bits}.\n{source}"


def pruning_table(results: Path) -> str:
    """A pruned network beside the same one without pruning."""
    dense = read_results(results / "pruning" / "digits_w4a8_dense.json")
    pruned = read_results(results / "digits_pruned_w4a8.json")
    header = ("W4A8, ResNet-8", "top-1 %", "zeros", "ONNX file", "zipped", "packed folder", "zipped")
    rows = [_pruning_row("dense", dense), _pruning_row("70 % pruned", pruned)]
    other = pruned.other_runs[0]
    difference, error = 100 * (other.difference or 0.0), 100 * (other.standard_error or 0.0)
    assert pruned.pruning is not None
    masked = sum(layer.masked for layer in pruned.pruning.layers)
    wrong = sum(layer.masked_not_zero for layer in pruned.pruning.layers)
    said = (
        f"Pruned minus dense, on the same test images: {difference:+.2f} ± {error:.2f} points. {masked:,} weights were pruned, "
        f"and the codes of {wrong} of them are not zero in the verified file."
    )
    return f"{markdown_table(header, rows, text_columns=1)}\n\n{said}\n{_source(pruned)}"


def _mixed_row(mixed: Results, uniform: Results) -> list[str]:
    other = mixed.other_runs[0]
    difference, error = 100 * (other.difference or 0.0), 100 * (other.standard_error or 0.0)
    files = [{file.name: file for file in run.files}["model.onnx"] for run in (uniform, mixed)]
    return [
        str(mixed.seed),
        f"{100 * _row(mixed, FLOAT).score:.2f}",
        f"{100 * _row(uniform, DEPLOYED).score:.2f}",
        f"{100 * _row(mixed, DEPLOYED).score:.2f}",
        f"{difference:+.2f} ± {error:.2f}",
        ", ".join(f"{_row(run, INTEGER).size_bytes:,} B" for run in (uniform, mixed)),
        ", ".join(format_size(file.size_bytes) for file in files),
        ", ".join(format_size(file.zipped_bytes) for file in files),
    ]


def _pruning_row(name: str, run: Results) -> list[str]:
    files = {file.name: file for file in run.files}
    zeros = "not counted"
    if run.pruning is not None:
        zeros = f"{100 * sum(x.zeros for x in run.pruning.layers) / sum(x.weights for x in run.pruning.layers):.1f} %"
    sizes = [
        size for key in ("model.onnx", "packed folder") for size in (files[key].size_bytes, files[key].zipped_bytes)
    ]
    return [name, f"{100 * _row(run, DEPLOYED).score:.2f}", zeros, *map(format_size, sizes)]


def _row(run: Results, name: str) -> Row:
    return next(row for row in run.rows if row.name == name)


def _source(run: Results) -> str:
    environment = run.environment
    return (
        f"{run.data.test} test images of {run.data.label}; {environment.cpu}, {environment.threads} thread; commit "
        f"{str(environment.commit)[:10]}; `python -m benchmarks.tables`."
    )
