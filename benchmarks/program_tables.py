"""Markdown tables from the results files of the programs. A missing file gives "not measured"."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.markdown_table import count_threads, markdown_table
from benchmarks.networks import networks_for
from benchmarks.peers import NAMES
from benchmarks.step_time import MODES
from benchmarks.training_step import PRECISIONS

NOT_MEASURED = "not measured"
Measurement = Mapping[str, Any]


def read_measurement(path: Path) -> Measurement | None:
    """Read a results file; None if it does not exist."""
    return json.loads(path.read_text()) if path.is_file() else None


def step_time_table(measurement: Measurement | None, device: str = "cpu") -> str:
    """Rows for every network of the device, precision, mode and policy."""
    cases = {(c["network"], c["mode"], c["precision"]): c for c in measurement["cases"]} if measurement else {}
    rows = []
    for mode in MODES:
        for network in networks_for(device):
            for precision in PRECISIONS:
                rows += _step_time_rows(cases.get((network, mode, precision)), network, precision, mode)
    header = ("network", "precision", "mode", "policy", "step, of float", "peak memory, of float", "graph breaks")
    return with_source(markdown_table(header, rows, text_columns=4), measurement)


def _step_time_rows(case: Measurement | None, network: str, precision: str, mode: str) -> list[list[str]]:
    if case is None:
        return [[network, precision, mode, "", NOT_MEASURED, "", ""]]
    named = [f"{network}, batch {case['batch']}", precision, mode]
    if "error" in case:
        return [[*named, "", f"fails: {_escape(case['error'])}", "", ""]]
    return [
        [*named, policy, ratio_text(row), f"{row['memory_ratio']:.2f}", str(row.get("graph_breaks", ""))]
        for policy, row in case["steps"].items()
        if policy != "float"
    ]


def operation_table(measurement: Measurement | None) -> str:
    """Forward and backward of one fake-quantize operation, over `a + b` on the same tensor."""
    if measurement is None:
        return NOT_MEASURED
    rows = []
    for case in measurement["cases"]:
        shape = " × ".join(map(str, case["shape"]))
        for name, row in case["operations"].items():
            milliseconds = f"{1000 * row['seconds']:.2f}"
            rows.append([case["kind"], shape, case["mode"], name, milliseconds, ratio_text(row)])
        for name, error in case["errors"].items():
            rows.append([case["kind"], shape, case["mode"], name, "", f"fails: {_escape(error)}"])
    header = ("scales", "tensor", "mode", "operation", "ms", "of `a + b`")
    return with_source(markdown_table(header, rows, text_columns=4), measurement)


def peer_table(measurement: Measurement | None) -> str:
    """A row for every library, with eager and compiled side by side."""
    libraries = measurement["peers"] if measurement else {}
    rows = []
    for name in NAMES:
        library = libraries.get(name)
        if library is None:
            rows.append([name, NOT_MEASURED, *[""] * 6])
        elif "error" in library:
            rows.append([name, f"fails: {_escape(library['error'])}", *[""] * 5, _escape(library["settings"])])
        else:
            label = name if name in ("qat", "torch_ao") else _with_version(name, library)
            eager, compiled = _mode_cells(library, name, "eager"), _mode_cells(library, name, "compiled")
            rows.append(
                [label, *eager[:2], *compiled, str(library.get("parameters", "")), _escape(library["settings"])]
            )
    header = (
        "library",
        "eager step, of float",
        "memory",
        "compiled step, of compiled float",
        "memory",
        "graph breaks",
        "parameters",
        "what it does",
    )
    return with_source(markdown_table(header, rows, text_columns=1), measurement)


def speed_table(measurement: Measurement | None) -> str:
    """For docs/results.md: the cost of a step in every library that was measured, the cheapest first."""
    if measurement is None:
        return NOT_MEASURED
    rows: list[tuple[float, list[str]]] = []
    for name, library in measurement["peers"].items():
        if "steps" not in library.get("eager", {}):
            continue
        eager, compiled = library["eager"]["steps"][name], _mode_cells(library, name, "compiled")
        label = "**qat**, every scale learned" if name == "qat" else _with_version(name, library)
        compiled_ratio = "fails" if compiled[0].startswith("fails") else compiled[0]
        rows.append((eager["ratio"], [label, ratio_text(eager), f"{eager['memory_ratio']:.2f}", compiled_ratio]))
    header = ("", "eager step, of float", "peak memory, of float", "compiled step, of compiled float")
    return with_source(markdown_table(header, [cells for _, cells in sorted(rows)], text_columns=1), measurement)


def _with_version(name: str, library: Measurement) -> str:
    return f"{name} {next(iter(library['versions'].values()))}"


def _mode_cells(library: Measurement, name: str, mode: str) -> list[str]:
    case = library.get(mode)
    if case is None:
        return [NOT_MEASURED, "", ""]
    if "error" in case:
        return [f"fails: {_escape(case['error'])}", "", ""]
    row = case["steps"][name]
    return [ratio_text(row), f"{row['memory_ratio']:.2f}", str(row.get("graph_breaks", ""))]


def candidate_table(measurement: Measurement | None, baseline: str) -> str:
    """Milliseconds of each candidate, and the ratio to the baseline."""
    if measurement is None:
        return NOT_MEASURED
    rows = [
        [name, f"{1000 * row['seconds']:.1f}", ratio_text(row, 3)] for name, row in measurement["candidates"].items()
    ]
    return with_source(markdown_table(("", "ms", f"of {baseline}"), rows, text_columns=1), measurement)


def profile_table(measurement: Measurement | None, top: int = 8) -> str:
    """The longest operations of a quantized step, with the time that the float step spends on them."""
    if measurement is None:
        return NOT_MEASURED
    floats = {row["operation"]: row["milliseconds"] for row in measurement["steps"]["float"]}
    (quantized,) = (steps for name, steps in measurement["steps"].items() if name != "float")
    rows = [
        [
            f"`{_escape(row['operation'])}`",
            f"{row['calls']:.0f}",
            f"{row['milliseconds']:.1f}",
            f"{100 * row['share']:.1f}",
            f"{floats[row['operation']]:.1f}" if row["operation"] in floats else "",
        ]
        for row in quantized[:top]
    ]
    header = ("operation", "calls", "ms", "% of the step", "ms in the float step")
    return with_source(markdown_table(header, rows, text_columns=1), measurement)


def latency_table(measurement: Measurement | None) -> str:
    """Latency of each int8 file over its float file in ONNX Runtime."""
    if measurement is None:
        return NOT_MEASURED
    rows = []
    for name, run in measurement["latency"].items():
        for policy, ratios in run["ratio"].items():
            slowest = ", ".join(f"{operator} {share:.0%}" for operator, share in run["slowest"][policy].items())
            cells = [f"{ratios[size]:.2f}" if size in ratios else "–" for size in ("1", "32")]
            rows.append([f"`{name}`", f"`{policy}`", slowest, *cells])
    header = ("network", "file", "operators that take most time", "of float, batch 1", "batch 32")
    return with_source(markdown_table(header, rows, text_columns=3), measurement)


def menu_table(measurements: Sequence[Measurement], policies: Sequence[str]) -> str:
    """Top-1 of every row of `benchmarks.menu`: mean ± standard deviation over its seeds."""
    if not measurements:
        return NOT_MEASURED
    rows = []
    for measurement in measurements:
        cells = [_over_seeds(measurement, policy) for policy in policies]
        cells.append(", ".join(sorted({str(cell["commit"])[:7] for cell in measurement["cells"].values()})))
        rows.append([measurement["row"] if measurement["row"].startswith("PTQ") else f"`{measurement['row']}`", *cells])
    data = sorted({f"{r['data']}, {r['test']:,} test images, float {100 * r['float']:.2f}" for r in measurements})
    machines = sorted({r["environment"]["cpu"] for r in measurements})
    source = f"Top-1 in %; {'; '.join(data)}; `python -m benchmarks.menu`; {'; '.join(machines)}."
    return f"{markdown_table(('', *map(str.upper, policies), 'commit'), rows, text_columns=1)}\n\n{source}"


def _over_seeds(measurement: Measurement, policy: str) -> str:
    accuracies = [cell["top1"] for name, cell in measurement["cells"].items() if name.startswith(f"{policy}, ")]
    if not accuracies:
        return ""
    text = _percent(accuracies)
    return text if len(accuracies) == 3 else f"{text} ({len(accuracies)} seed{'s' if len(accuracies) > 1 else ''})"


def oscillation_table(measurement: Measurement | None) -> str:
    """A row for each way to treat oscillating weights: mean ± standard deviation over the seeds, in %."""
    if measurement is None:
        return NOT_MEASURED
    columns = {
        "oscillating": "oscillating",
        "oscillating_depthwise": "of depthwise",
        "frozen": "frozen",
        "frozen_depthwise": "of depthwise",
        "top1": "top-1",
        "top1_after_estimation": "top-1, BatchNorm re-estimated",
    }
    rows = [
        [name, str(len(runs)), *(_percent([run[key] for run in runs]) for key in columns)]
        for name, runs in measurement["controls"].items()
        if runs
    ]
    about = (
        f"In %, mean ± standard deviation over the seeds. {measurement['policy']}, {measurement['data']}: "
        f"{measurement['steps']} steps of {measurement['batch']} images, {measurement['test_images']:,} test images; "
        f"float {100 * measurement['float_top1']:.2f} %."
    )
    table = markdown_table(("", "seeds", *columns.values()), rows, text_columns=1)
    return f"{with_source(table, measurement)}\n\n{about}"


def _percent(values: Sequence[float]) -> str:
    deviation = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.2f}{deviation}"


def ratio_text(row: Measurement, digits: int = 2) -> str:
    """The median ratio with its quartiles.

    >>> ratio_text({"ratio": 1.5, "ratio_lower_quartile": 1.4, "ratio_upper_quartile": 1.75})
    '1.50 [1.40, 1.75]'
    """
    ratio, lower, upper = (row[key] for key in ("ratio", "ratio_lower_quartile", "ratio_upper_quartile"))
    return f"{ratio:.{digits}f} [{lower:.{digits}f}, {upper:.{digits}f}]"


def language_model_table(measurement: Measurement | None) -> str:
    """A row for every format and method: loss over float's, mean ± standard deviation over the seeds, and a verdict."""
    if measurement is None:
        return NOT_MEASURED
    seeds = measurement["seeds"]
    rows, verdicts = [], []
    for name in measurement["settings"]["formats"]:
        found = [seed["formats"][name] for seed in seeds]
        kilobytes = f"{mean(f['bytes'] for f in found) / 1000:.0f} kB"
        for row in found[0]["rows"]:
            losses = [f["rows"][row] for f in found]
            above = [loss - seed["float"] for loss, seed in zip(losses, seeds, strict=True)]
            rows.append([name, row, _spread(losses), _spread(above), kilobytes])
        verdicts.append(_verdict(name, [f["rows"] for f in found]))
    parameters, text = measurement["network"]["parameters"], measurement["text"]
    rows.insert(0, ["float32", "", _spread([seed["float"] for seed in seeds]), "", f"{4 * parameters / 1000:.0f} kB"])
    measured = min(text["held_out"], 128 * measurement["settings"]["pieces"])
    header = ("weights", "method", "held-out loss", "above float", "weights in the file")
    about = (
        f"{' '.join(verdicts)}\n\nNats per character, {len(seeds)} seeds, mean ± standard deviation; {parameters:,} weights; "
        f"text: docstrings of the standard library of Python {text['python']}, {text['characters']:,} characters, and "
        f"{measured:,} held out and measured; {measurement['processor_seconds'] / 60:.1f} minutes of processor time."
    )
    return f"{with_source(markdown_table(header, rows, text_columns=2), measurement)} {about}"


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.4f} ± {stdev(values):.4f}" if len(values) > 1 else f"{values[0]:.4f}"


def _verdict(name: str, seeds: Sequence[Mapping[str, float]]) -> str:
    """Who won, by the paired difference of QAT and the best PTQ row of each seed."""
    ptq = [row for row in seeds[0] if row.startswith("PTQ")]
    (qat,) = (row for row in seeds[0] if row.startswith("QAT"))
    best = min(ptq, key=lambda row: mean(losses[row] for losses in seeds))
    differences = [losses[qat] - losses[best] for losses in seeds]
    average = mean(differences)
    error = stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("inf")
    measured = f"{average:+.4f} nats against {best}, paired standard error {error:.4f}"
    if abs(average) < 2 * error:
        return f"{name}: **no measurable difference** between QAT and PTQ ({measured})."
    return f"{name}: QAT is **{'better' if average < 0 else 'WORSE'}** than PTQ ({measured})."


def with_source(text: str, measurement: Measurement | None) -> str:
    if measurement is None:
        return text
    environment = measurement["environment"]
    machine = environment["accelerator"] or f"{environment['cpu']}, {count_threads(environment['threads'])}"
    source = f"torch {environment['versions']['torch']}; commit {str(environment['commit'])[:10]}"
    return f"{text}\n\n`{measurement['command']}`; {machine}; {source}."


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
