"""Write the tables of README.md and benchmarks/README.md from benchmarks/results/*.json; nothing in them is typed.

python benchmarks/tables.py            # after copying a run's results.json to benchmarks/results/<recipe>.json
python benchmarks/tables.py --check    # fails if a table is out of date
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from qat.report import Results, Row, read_results
from qat.report.tables import comparison

ROOT = Path(__file__).parent.parent
ORDER = ("digits", "mnist", "cifar10")


def load() -> list[Results]:
    """The recorded runs, by data set and then from many bits to few."""
    found = [read_results(path) for path in sorted((ROOT / "benchmarks/results").glob("*.json"))]
    order = {name: i for i, name in enumerate(ORDER)}
    return sorted(found, key=lambda r: (order.get(r.data.name, len(order)), _bits(r.recipe)))


def _bits(recipe: str) -> tuple[int, ...]:
    return tuple(-int(b) for b in re.findall(r"\d+", recipe.rpartition("_")[2]))


def _row(results: Results, *names: str) -> Row:
    return next(row for row in results.rows if row.name in names)


def summary(runs: list[Results]) -> str:
    """One line a recipe: accuracies, the verdict, codes that differ, size and latency against float."""
    lines = [
        "| recipe | data | float | PTQ min-max | PTQ MSE | QAT in ONNX Runtime | codes that differ | file, of float "
        "| latency, of float (batch 1, 32) | minutes |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for run in runs:
        reference, deployed = _row(run, "float"), _row(run, "QAT in ONNX Runtime")
        accuracies = [_row(run, name).top1 for name in ("float", "PTQ min-max", "PTQ MSE", "QAT in ONNX Runtime")]
        check = run.verification
        assert check is not None
        ratios = [
            f"{ours / theirs:.2f}"
            for ours, theirs in (
                (deployed.latency_ms_batch1, reference.latency_ms_batch1),
                (deployed.latency_ms_batch32, reference.latency_ms_batch32),
            )
            if ours and theirs
        ]
        cells = [
            f"`{run.recipe}`",
            run.data.label,
            *(f"{100 * a:.2f}" for a in accuracies),
            f"{check.code_mismatches} of {check.codes_compared:,}",
            f"{deployed.size_bytes / reference.size_bytes:.2f}",
            ", ".join(ratios),
            f"{sum(run.timings.values()) / 60:.0f}" if run.timings else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    machines = sorted({f"{r.environment.cpu}, {r.environment.threads} threads" for r in runs})
    commits = sorted({str(r.environment.commit)[:10] for r in runs})
    seeds = sorted({str(r.seed) for r in runs})
    lines += ["", f"Top-1 in %, seed {', '.join(seeds)}; {'; '.join(machines)}; commit {', '.join(commits)}."]
    return "\n".join(lines)


def details(runs: list[Results]) -> str:
    """Every run's command, verdict and comparison."""
    parts = []
    for run in runs:
        table = comparison(run.rows, run.data.test, full=True)
        rule = ["---"] * table.text_columns + ["---:"] * (len(table.header) - table.text_columns)
        rows = [table.header, tuple(rule), *table.cells]
        body = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        parts.append(f"### {run.recipe}: {run.data.label}\n\n`{run.command}`\n\n{run.verdict.text}\n\n{body}")
    return "\n\n".join(parts)


def fill(path: Path, marker: str, text: str, check: bool) -> None:
    """Replace what stands between the markers of a file."""
    before = path.read_text()
    start, end = f"<!-- {marker} -->", f"<!-- end of {marker} -->"
    after = re.sub(f"{start}.*?{end}", lambda _: f"{start}\n{text}\n{end}", before, flags=re.DOTALL)
    if check and after != before:
        raise SystemExit(f"the table in {path.name} is out of date: run python benchmarks/tables.py.")
    path.write_text(after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check: bool = parser.parse_args().check
    runs = load()
    fill(ROOT / "README.md", "results", summary(runs), check)
    fill(ROOT / "benchmarks/README.md", "results", f"{summary(runs)}\n\n{details(runs)}", check)


if __name__ == "__main__":
    main()
