"""Write the tables of README.md and benchmarks/README.md from benchmarks/results/*.json; nothing in them is typed.

python -m benchmarks.tables            # after copying a run's results.json to benchmarks/results/<recipe>.json
python -m benchmarks.tables --check    # fails if a table is out of date
"""

from __future__ import annotations

import argparse
import re
import statistics
from pathlib import Path

from benchmarks import measured
from benchmarks.menu import LADDER, POLICIES, ROWS
from benchmarks.record import RESULTS
from qat.report import Results, Row, read_results
from qat.report.tables import comparison
from qat.report.verdicts import binomial_error

ROOT = Path(__file__).parent.parent
ORDER = ("digits", "mnist", "cifar10")


def load() -> list[Results]:
    """The recorded runs, by data set, then from many bits to few, then by seed."""
    found = [read_results(path) for path in sorted(RESULTS.glob("*.json"))]
    order = {name: i for i, name in enumerate(ORDER)}
    return sorted(found, key=lambda r: (order.get(r.data.name, len(order)), _bits(r.recipe), r.seed or 0))


def _bits(recipe: str) -> tuple[int, ...]:
    return tuple(-int(b) for b in re.findall(r"\d+", recipe.rpartition("_")[2]))


def _row(results: Results, *names: str) -> Row:
    return next(row for row in results.rows if row.name in names)


def _best_ptq(results: Results) -> Row:
    return max((row for row in results.rows if row.kind == "ptq"), key=lambda row: row.top1)


def summary(runs: list[Results]) -> str:
    """One line a recipe: accuracies, the verdict, codes that differ, size and latency against float."""
    lines = [
        "| recipe | data | float | PTQ min-max | PTQ MSE | best PTQ | QAT in ONNX Runtime | codes that differ | file, of float "
        "| latency, of float (batch 1, 32) | minutes |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for run in runs:
        reference, deployed = _row(run, "float"), _row(run, "QAT in ONNX Runtime")
        best = _best_ptq(run)
        accuracies = [f"{100 * _row(run, name).top1:.2f}" for name in ("float", "PTQ min-max", "PTQ MSE")]
        accuracies += [f"{100 * best.top1:.2f} ({best.name.removeprefix('PTQ ')})", f"{100 * deployed.top1:.2f}"]
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
            *accuracies,
            f"{check.code_mismatches} of {check.codes_compared:,}",
            f"{deployed.size_bytes / reference.size_bytes:.2f}",
            ", ".join(ratios),
            f"{sum(run.timings.values()) / 60:.0f}" if run.timings else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    machines = sorted({f"{r.environment.cpu}, {_threads(r)}" for r in runs})
    commits = sorted({str(r.environment.commit)[:10] for r in runs})
    seeds = sorted({str(r.seed) for r in runs})
    lines += ["", f"Top-1 in %, seed {', '.join(seeds)}; {'; '.join(machines)}; commit {', '.join(commits)}."]
    lines += [
        "The machine did other work beside most runs: minutes are upper bounds, latency ratios were measured in turns."
    ]
    return "\n".join(lines)


def _threads(run: Results) -> str:
    return f"{run.environment.threads} thread{'s' if run.environment.threads > 1 else ''}"


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


def headers(runs: list[Results], check: bool) -> None:
    """The lines `expected:` and `takes:` of every recipe that was run."""
    for recipe in sorted({run.recipe for run in runs}):
        same = [run for run in runs if run.recipe == recipe]
        first = same[0]
        top1 = {name: [100 * _row(run, name).top1 for run in same] for name in ("QAT in ONNX Runtime", "float")}
        top1["best PTQ"] = [100 * _best_ptq(run).top1 for run in same]
        if len(same) > 1:
            said = {name: f"{statistics.mean(v):.2f} ± {statistics.stdev(v):.2f}" for name, v in top1.items()}
            spread = f"mean ± standard deviation of {len(same)} seeds"
        else:
            errors = {name: 100 * binomial_error(v[0] / 100, first.data.test) for name, v in top1.items()}
            said = {name: f"{v[0]:.2f} ± {errors[name]:.2f}" for name, v in top1.items()}
            spread = "one seed, ± binomial standard error"
        ours = said.pop("QAT in ONNX Runtime")
        others = ", ".join(f"{name} {text}" for name, text in said.items())
        minutes = statistics.mean(sum(run.timings.values()) for run in same) / 60
        machine = f"{_threads(first)} of {first.environment.cpu}"
        expected = f"# expected: QAT in ONNX Runtime {ours} % ({others}; {spread}; {first.data.label})"
        takes = f"# takes:    {minutes:.1f} minutes on {machine}"
        path = ROOT / "recipes" / f"{recipe}.yaml"
        text = re.sub(r"^# expected:.*$", expected, path.read_text(), flags=re.MULTILINE)
        _write(path, re.sub(r"^# takes:.*$", takes, text, flags=re.MULTILINE), check)


def measurements(results: Path) -> dict[str, str]:
    """The tables of the programs beside this one, each under the name of its markers in README.md."""
    found = {}
    for device in ("cpu", "cuda"):
        found[f"step time, {device}"] = measured.step_time(measured.load(results / f"step_time/{device}.json"))
        found[f"operation, {device}"] = measured.operation(measured.load(results / f"operation/{device}.json"))
        pipeline = measured.load(results / f"pipeline/{device}.json")
        found[f"profile, {device}"] = measured.profile(measured.load(results / f"profile/{device}.json"))
        found[f"pipeline, {device}"] = measured.candidates(pipeline, "a float step")
    found["peers"] = measured.peers(measured.load(results / "peers/cpu.json"))
    artefact = measured.load(results / "artefact_time/cpu.json")
    found["artefact"] = measured.candidates(artefact, "the float export")
    found["oscillation"] = measured.oscillation(measured.load(results / "oscillation/cpu.json"))
    found["latency"] = measured.latency(measured.load(results / "latency/cpu.json"))
    return found


def policies(results: Path) -> str:
    """Policies that leave float between layers, beside the recipe's own: accuracy, codes, size and latency of the file."""
    found = [("w8a8", results / "digits_w8a8.json")]
    found += [(name, results / f"policies/digits_{name}.json") for name in ("w4", "w8_dynamic")]
    rows, runs = [], [(name, read_results(path)) for name, path in found]
    for name, run in runs:
        reference, deployed, check = _row(run, "float"), _row(run, "QAT in ONNX Runtime"), run.verification
        assert check is not None
        cells = [f"{100 * row.top1:.2f}" for row in (reference, deployed)]
        cells += [
            f"{check.code_mismatches} of {check.codes_compared:,}",
            _ratio(deployed.size_bytes, reference.size_bytes),
        ]
        cells += [
            _ratio(deployed.latency_ms_batch1, reference.latency_ms_batch1),
            _ratio(deployed.latency_ms_batch32, reference.latency_ms_batch32),
        ]
        rows.append([f"`{name}`", *cells])
    header = (
        "policy, digits",
        "float",
        "QAT in ONNX Runtime",
        "codes that differ",
        "file, of float",
        "latency, batch 1",
        "batch 32",
    )
    source = "; ".join(f"`{run.command}`, commit {str(run.environment.commit)[:10]}" for _, run in runs)
    about = f"{runs[0][1].data.test} test images, {runs[0][1].environment.cpu}"
    return f"{measured.table(header, rows, text=1)}\n\n{about}; {source}."


def _ratio(ours: float | None, theirs: float | None) -> str:
    return f"{ours / theirs:.2f}" if ours and theirs else ""


def menu(results: Path) -> str:
    """What each quantizer reaches, and the post-training passes."""
    found = [r for path in sorted((results / "menu").glob("*.json")) if (r := measured.load(path)) is not None]
    order = {name: i for i, name in enumerate([*LADDER, *ROWS])}
    return measured.menu(sorted(found, key=lambda record: order[record["row"]]), POLICIES)


def fill(path: Path, marker: str, text: str, check: bool) -> None:
    """Replace what stands between the markers of a file."""
    start, end = f"<!-- {marker} -->", f"<!-- end of {marker} -->"
    if start not in path.read_text() or end not in path.read_text():
        raise SystemExit(f"{path.name} has no place for {marker!r}: write {start} and {end}, each on its line.")
    after = re.sub(f"{start}.*?{end}", lambda _: f"{start}\n{text}\n{end}", path.read_text(), flags=re.DOTALL)
    _write(path, after, check)


def _write(path: Path, after: str, check: bool) -> None:
    if after == path.read_text():
        return
    if check:
        raise SystemExit(f"{path.relative_to(ROOT)} is out of date: run python -m benchmarks.tables.")
    path.write_text(after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check: bool = parser.parse_args().check
    runs = load()
    headers(runs, check)
    first_seeds = [run for run in runs if run.seed == min(r.seed or 0 for r in runs if r.recipe == run.recipe)]
    fill(ROOT / "README.md", "results", summary(first_seeds), check)
    fill(ROOT / "benchmarks/README.md", "results", f"{summary(first_seeds)}\n\n{details(first_seeds)}", check)
    fill(ROOT / "README.md", "speed", measured.speed(measured.load(RESULTS / "peers/cpu.json")), check)
    fill(ROOT / "docs/integer_arithmetic.md", "policies", policies(RESULTS), check)
    fill(ROOT / "docs/quantizers.md", "menu", menu(RESULTS), check)
    for marker, text in measurements(RESULTS).items():
        fill(ROOT / "benchmarks/README.md", marker, text, check)
    fill(ROOT / "docs/oscillations.md", "oscillation", measurements(RESULTS)["oscillation"], check)


if __name__ == "__main__":
    main()
