"""Tables of what the programs measured, from their results files. What was not measured says so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.peers import NAMES

NOT_MEASURED = "not measured"
NETWORKS = ("ResNet-20", "ResNet-18", "ViT-tiny")
PRECISIONS = ("float32", "bfloat16")
MODES = ("eager", "compiled")

Record = Mapping[str, Any]


def load(path: Path) -> Record | None:
    """A results file, or None where there is none."""
    return json.loads(path.read_text()) if path.is_file() else None


def step_time(record: Record | None) -> str:
    """A row for every network, precision and mode, and each policy in it."""
    cases = {(c["network"], c["mode"], c["precision"]): c for c in record["cases"]} if record else {}
    rows = []
    for mode in MODES:
        for network in NETWORKS:
            for precision in PRECISIONS:
                rows += _case(cases.get((network, mode, precision)), network, precision, mode)
    header = ("network", "precision", "mode", "policy", "step, of float", "peak memory, of float", "graph breaks")
    return _with_machine(table(header, rows, text=4), record)


def _case(case: Record | None, network: str, precision: str, mode: str) -> list[list[str]]:
    if case is None:
        return [[network, precision, mode, "", NOT_MEASURED, "", ""]]
    named = [f"{network}, batch {case['batch']}", precision, mode]
    if "error" in case:
        return [[*named, "", f"fails: {_cell(case['error'])}", "", ""]]
    return [
        [*named, policy, spread(row), f"{row['memory_ratio']:.2f}", str(row.get("graph_breaks", ""))]
        for policy, row in case["steps"].items()
        if policy != "float"
    ]


def operation(record: Record | None) -> str:
    """Forward and backward of one fake-quantize, over `a + b` on the same tensor."""
    if record is None:
        return NOT_MEASURED
    rows = []
    for case in record["cases"]:
        shape = " × ".join(map(str, case["shape"]))
        for name, row in case["operations"].items():
            rows.append([case["kind"], shape, case["mode"], name, f"{1000 * row['seconds']:.2f}", spread(row)])
        for name, error in case["errors"].items():
            rows.append([case["kind"], shape, case["mode"], name, "", f"fails: {_cell(error)}"])
    header = ("scales", "tensor", "mode", "operation", "ms", "of `a + b`")
    return _with_machine(table(header, rows, text=4), record)


def peers(record: Record | None) -> str:
    """A row for every library, eager and compiled beside each other."""
    found = record["peers"] if record else {}
    rows = []
    for name in NAMES:
        one = found.get(name)
        if one is None:
            rows.append([name, NOT_MEASURED, *[""] * 6])
        elif "error" in one:
            rows.append([name, f"fails: {_cell(one['error'])}", *[""] * 5, _cell(one["settings"])])
        else:
            version = next(iter(one["versions"].values()))
            label = name if name in ("qat", "torch_ao") else f"{name} {version}"
            eager, compiled = _mode(one, name, "eager"), _mode(one, name, "compiled")
            rows.append([label, *eager[:2], *compiled, str(one.get("parameters", "")), _cell(one["settings"])])
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
    return _with_machine(table(header, rows, text=1), record)


def speed(record: Record | None) -> str:
    """For README.md: what a step costs in every library that was measured, the cheapest first."""
    if record is None:
        return NOT_MEASURED
    rows: list[tuple[float, list[str]]] = []
    for name, one in record["peers"].items():
        if "steps" not in one.get("eager", {}):
            continue
        eager, compiled = one["eager"]["steps"][name], _mode(one, name, "compiled")
        label = "**qat**, every scale learned" if name == "qat" else f"{name} {next(iter(one['versions'].values()))}"
        said = "fails" if compiled[0].startswith("fails") else compiled[0]
        rows.append((eager["ratio"], [label, spread(eager), f"{eager['memory_ratio']:.2f}", said]))
    header = ("", "eager step, of float", "peak memory, of float", "compiled step, of compiled float")
    return _with_machine(table(header, [cells for _, cells in sorted(rows)], text=1), record)


def _mode(one: Record, name: str, mode: str) -> list[str]:
    case = one.get(mode)
    if case is None:
        return [NOT_MEASURED, "", ""]
    if "error" in case:
        return [f"fails: {_cell(case['error'])}", "", ""]
    row = case["steps"][name]
    return [spread(row), f"{row['memory_ratio']:.2f}", str(row.get("graph_breaks", ""))]


def candidates(record: Record | None, floor: str) -> str:
    """Seconds of each candidate, and its ratio to the floor."""
    if record is None:
        return NOT_MEASURED
    rows = [[name, f"{1000 * row['seconds']:.1f}", spread(row, 3)] for name, row in record["candidates"].items()]
    return _with_machine(table(("", "ms", f"of {floor}"), rows, text=1), record)


def profile(record: Record | None, top: int = 8) -> str:
    """The longest operations of a quantized step, with what the float step spends on them."""
    if record is None:
        return NOT_MEASURED
    floats = {row["operation"]: row["milliseconds"] for row in record["steps"]["float"]}
    (quantized,) = (steps for name, steps in record["steps"].items() if name != "float")
    rows = [
        [
            f"`{_cell(row['operation'])}`",
            f"{row['calls']:.0f}",
            f"{row['milliseconds']:.1f}",
            f"{100 * row['share']:.1f}",
            f"{floats[row['operation']]:.1f}" if row["operation"] in floats else "",
        ]
        for row in quantized[:top]
    ]
    return _with_machine(
        table(("operation", "calls", "ms", "% of the step", "ms in the float step"), rows, text=1), record
    )


def latency(record: Record | None) -> str:
    """Each recorded file over its float file in ONNX Runtime."""
    if record is None:
        return NOT_MEASURED
    sizes = list(next(iter(record["latency"].values()))["ratio"])
    rows = [[f"`{name}`", *(f"{run['ratio'][s]:.2f}" for s in sizes)] for name, run in record["latency"].items()]
    return _with_machine(table(("recipe", *(f"int8 of float, batch {s}" for s in sizes)), rows, text=1), record)


def menu(records: Sequence[Record], policies: Sequence[str]) -> str:
    """Top-1 of every row of `benchmarks.menu`: mean ± standard deviation over its seeds."""
    if not records:
        return NOT_MEASURED
    rows = []
    for record in records:
        cells = [_over_seeds(record, policy) for policy in policies]
        cells.append(", ".join(sorted({str(cell["commit"])[:7] for cell in record["cells"].values()})))
        rows.append([record["row"] if record["row"].startswith("PTQ") else f"`{record['row']}`", *cells])
    data = sorted({f"{r['data']}, {r['test']:,} test images, float {100 * r['float']:.2f}" for r in records})
    machines = sorted({r["environment"]["cpu"] for r in records})
    source = f"Top-1 in %; {'; '.join(data)}; `python -m benchmarks.menu`; {'; '.join(machines)}."
    return f"{table(('', *map(str.upper, policies), 'commit'), rows, text=1)}\n\n{source}"


def _over_seeds(record: Record, policy: str) -> str:
    found = [cell["top1"] for name, cell in record["cells"].items() if name.startswith(f"{policy}, ")]
    if not found:
        return ""
    said = _percent(found)
    return said if len(found) == 3 else f"{said} ({len(found)} seed{'s' if len(found) > 1 else ''})"


def oscillation(record: Record | None) -> str:
    """Each way to treat oscillating weights: mean ± standard deviation over the seeds, in %."""
    if record is None:
        return NOT_MEASURED
    columns = {
        "oscillating": "oscillating",
        "oscillating_depthwise": "of depthwise",
        "frozen": "frozen",
        "frozen_depthwise": "of depthwise",
        "top1": "top-1",
        "top1_after_estimation": "top-1, BatchNorm estimated anew",
    }
    rows = [
        [name, str(len(runs)), *(_percent([run[key] for run in runs]) for key in columns)]
        for name, runs in record["controls"].items()
        if runs
    ]
    about = (
        f"In %, mean ± standard deviation over the seeds. {record['policy']}, {record['data']}: {record['steps']} steps of "
        f"{record['batch']} images, {record['test_images']:,} test images; float {100 * record['float_top1']:.2f} %."
    )
    return f"{_with_machine(table(('', 'seeds', *columns.values()), rows, text=1), record)}\n\n{about}"


def _percent(values: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.2f}{spread}"


def spread(row: Record, digits: int = 2) -> str:
    """The median ratio with its quartiles.

    >>> spread({"ratio": 1.5, "ratio_lower_quartile": 1.4, "ratio_upper_quartile": 1.75})
    '1.50 [1.40, 1.75]'
    """
    ratio, lower, upper = (row[key] for key in ("ratio", "ratio_lower_quartile", "ratio_upper_quartile"))
    return f"{ratio:.{digits}f} [{lower:.{digits}f}, {upper:.{digits}f}]"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text: int) -> str:
    """Markdown; the first `text` columns are left-aligned, the others hold numbers."""
    rule = ["---"] * text + ["---:"] * (len(header) - text)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))


def _with_machine(text: str, record: Record | None) -> str:
    if record is None:
        return text
    where = record["environment"]
    machine = where["accelerator"] or f"{where['cpu']}, {where['threads']} threads"
    source = f"torch {where['versions']['torch']}; commit {str(where['commit'])[:10]}"
    return f"{text}\n\n`{record['command']}`; {machine}; {source}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
