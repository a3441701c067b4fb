"""Markdown tables and sentences from the recorded runs, `results/<recipe>.json`."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from benchmarks.markdown_table import count_threads, markdown_table
from qat.report import Results, Row, read_results
from qat.report.judgement.differences import binomial_error
from qat.report.text.tables import comparison_table

DATA_ORDER = ("digits", "mnist", "cifar10")
DEPLOYED = "QAT in ONNX Runtime"


def read_runs(folder: Path) -> list[Results]:
    """The recorded runs, by data set, then from many bits to few, then by seed."""
    runs = [read_results(path) for path in sorted(folder.glob("*.json"))]
    order = {name: i for i, name in enumerate(DATA_ORDER)}
    return sorted(runs, key=lambda run: (order.get(run.data.name, len(order)), _bits(run.recipe), run.seed or 0))


def _bits(recipe: str) -> tuple[int, ...]:
    return tuple(-int(bits) for bits in re.findall(r"\d+", recipe.rpartition("_")[2]))


def first_seeds(runs: list[Results]) -> list[Results]:
    """The run with the lowest seed of every recipe."""
    lowest: dict[str, int] = {}
    for run in runs:
        lowest[run.recipe] = min(run.seed or 0, lowest.get(run.recipe, run.seed or 0))
    return [run for run in runs if run.seed == lowest[run.recipe]]


def summary(runs: list[Results]) -> str:
    """One row per recipe: accuracies, codes that differ, size and latency over float; and the source of the numbers."""
    header = (
        "recipe",
        "data",
        "float",
        "PTQ min-max",
        "PTQ MSE",
        "best PTQ",
        DEPLOYED,
        "codes that differ",
        "file, of float",
        "latency, of float (batch 1, 32)",
        "minutes",
    )
    table = markdown_table(header, [_summary_row(run) for run in runs], text_columns=2)
    machines = sorted({_machine(run) for run in runs})
    commits = sorted({str(run.environment.commit)[:10] for run in runs})
    seeds = sorted({str(run.seed) for run in runs})
    source = f"Top-1 in %, seed {', '.join(seeds)}; {'; '.join(machines)}; commit {', '.join(commits)}."
    remark = (
        "The machine did other work during most runs: minutes are upper bounds, latency ratios were measured in turns."
    )
    return f"{table}\n\n{source}\n{remark}"


def _summary_row(run: Results) -> list[str]:
    float_row, deployed, best = _row(run, "float"), _row(run, DEPLOYED), _best_ptq(run)
    latencies = (
        _ratio(deployed.latency_ms_batch1, float_row.latency_ms_batch1),
        _ratio(deployed.latency_ms_batch32, float_row.latency_ms_batch32),
    )
    return [
        f"`{run.recipe}`",
        run.data.label,
        *(f"{100 * _row(run, name).score:.2f}" for name in ("float", "PTQ min-max", "PTQ MSE")),
        f"{100 * best.score:.2f} ({best.name.removeprefix('PTQ ')})",
        f"{100 * deployed.score:.2f}",
        _differing_codes(run),
        _ratio(deployed.size_bytes, float_row.size_bytes),
        ", ".join(filter(None, latencies)),
        f"{sum(run.timings.values()) / 60:.0f}" if run.timings else "",
    ]


def details(runs: list[Results]) -> str:
    """Command, verdict and comparison of every run."""
    sections = []
    for run in runs:
        table = comparison_table(run.rows, run.data.test, full=True)
        text = markdown_table(table.header, table.cells, table.text_columns)
        sections.append(f"### {run.recipe}: {run.data.label}\n\n`{run.command}`\n\n{run.verdict.text}\n\n{text}")
    return "\n\n".join(sections)


def recipe_comments(runs: list[Results]) -> tuple[str, str]:
    """The comments `# expected:` and `# takes:` of a recipe, from all its runs."""
    first = runs[0]
    top1 = {name: [100 * _row(run, name).score for run in runs] for name in (DEPLOYED, "float")}
    top1["best PTQ"] = [100 * _best_ptq(run).score for run in runs]
    if len(runs) > 1:
        texts = {name: f"{statistics.mean(v):.2f} ± {statistics.stdev(v):.2f}" for name, v in top1.items()}
        spread = f"mean ± standard deviation of {len(runs)} seeds"
    else:
        errors = {name: 100 * binomial_error(v[0] / 100, first.data.test) for name, v in top1.items()}
        texts = {name: f"{v[0]:.2f} ± {errors[name]:.2f}" for name, v in top1.items()}
        spread = "one seed, ± binomial standard error"
    deployed = texts.pop(DEPLOYED)
    others = ", ".join(f"{name} {text}" for name, text in texts.items())
    minutes = statistics.mean(sum(run.timings.values()) for run in runs) / 60
    machine = f"{count_threads(first.environment.threads)} of {first.environment.cpu}"
    return (
        f"# expected: {DEPLOYED} {deployed} % ({others}; {spread}; {first.data.label})",
        f"# takes:    {minutes:.1f} minutes on {machine}",
    )


def policy_table(runs: dict[str, Results]) -> str:
    """Accuracy, codes, size and latency of runs that differ only in their policy, policy -> run."""
    header = (
        "policy, digits",
        "float",
        DEPLOYED,
        "codes that differ",
        "file, of float",
        "latency, batch 1",
        "batch 32",
    )
    rows = []
    for policy, run in runs.items():
        float_row, deployed = _row(run, "float"), _row(run, DEPLOYED)
        rows.append(
            [
                f"`{policy}`",
                f"{100 * float_row.score:.2f}",
                f"{100 * deployed.score:.2f}",
                _differing_codes(run),
                _ratio(deployed.size_bytes, float_row.size_bytes),
                _ratio(deployed.latency_ms_batch1, float_row.latency_ms_batch1),
                _ratio(deployed.latency_ms_batch32, float_row.latency_ms_batch32),
            ]
        )
    first = next(iter(runs.values()))
    source = "; ".join(f"`{run.command}`, commit {str(run.environment.commit)[:10]}" for run in runs.values())
    about = f"{first.data.test} test images, {first.environment.cpu}"
    return f"{markdown_table(header, rows, text_columns=1)}\n\n{about}; {source}."


def _row(run: Results, name: str) -> Row:
    return next(row for row in run.rows if row.name == name)


def _best_ptq(run: Results) -> Row:
    return max((row for row in run.rows if row.kind == "ptq"), key=lambda row: row.score)


def _machine(run: Results) -> str:
    return f"{run.environment.cpu}, {count_threads(run.environment.threads)}"


def _differing_codes(run: Results) -> str:
    assert run.verification is not None
    return f"{run.verification.code_mismatches} of {run.verification.codes_compared:,}"


def _ratio(value: float | None, reference: float | None) -> str:
    return f"{value / reference:.2f}" if value and reference else ""
