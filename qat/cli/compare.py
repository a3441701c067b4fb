"""`qat compare`: the results of several runs beside each other."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qat.cli import arguments
from qat.cli.errors import GOOD, UsageError, usage_errors
from qat.report.judgement.objectives import ARTEFACT_FIRST

if TYPE_CHECKING:
    from qat.report import Results, Row

BEST_FIRST = (*ARTEFACT_FIRST, "ptq", "outside", "float")
"""Which row of a run stands for it: the one that is nearest to what is deployed."""


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    made = arguments.make_parser(
        "compare",
        "Compare the results of runs: of qat train, qat quantize, or any fit with the callback Report. The first run is what\n"
        "the others are compared with. Only runs on the same data and metric can be.",
        """examples:
  qat compare outputs/digits_w8a8/2026-01-02_03-04-05 outputs/digits_w4a8/2026-01-02_03-09-10
  qat compare a/results.json b/results.json --json""",
    )
    made.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="folder of a run, or its results.json")
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def run(given: list[str]) -> int:
    """Run the command. Returns the exit status."""
    options = parser().parse_args(given)
    if len(options.runs) < 2:
        raise UsageError(f"{options.runs[0]} is one run: give two or more.")
    from qat.report import read_results

    with usage_errors():
        found = {str(path): read_results(_results_file(path)) for path in options.runs}
    _check_each_once(options.runs)
    record = [_described(name, results) for name, results in found.items()]
    differing = _differing_settings(list(found.values()))
    warning = _not_comparable(list(found.values()))
    if options.json:
        arguments.print_json({"runs": record, "settings": differing, "warning": warning})
        return GOOD
    _print(record, differing, warning)
    return GOOD


def _results_file(path: Path) -> Path:
    file = path / "results.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{file} does not exist: give the folder of a run that has ended, or its results.json.")
    return file


def _check_each_once(runs: list[Path]) -> None:
    """Refuse a run that is given twice, whatever its path: two runs never write the same results, if only for their times."""
    seen: dict[bytes, Path] = {}
    for path in runs:
        first = seen.setdefault(_results_file(path).read_bytes(), path)
        if first is not path:
            raise UsageError(f"{first} and {path} are one run: leave one out.")


def _described(name: str, results: Results) -> dict[str, Any]:
    """The row that stands for a run, and what the run says of it."""
    row = _representative(results)
    reference = next((r for r in results.rows if r.kind == "float"), None)
    verification = results.verification
    return {
        "run": name,
        "recipe": results.recipe,
        "model": row.name,
        "value": _score(row),
        "float": None if reference is None else _score(reference),
        "size_bytes": row.size_bytes,
        "latency_ms": {"1": row.latency_ms_batch1, "32": row.latency_ms_batch32},
        "latency_of_float": {"1": _ratio(row, reference, 1), "32": _ratio(row, reference, 32)},
        "minutes": None if row.seconds is None else row.seconds / 60,
        "verified": None if verification is None else verification.exact,
        "verdict": results.verdict.text,
        "test_samples": results.data.test,
    }


def _representative(results: Results) -> Row:
    if not results.rows:
        raise UsageError(f"the results of {results.recipe} have no rows: repeat the run.")
    return min(results.rows, key=lambda row: BEST_FIRST.index(row.kind) if row.kind in BEST_FIRST else len(BEST_FIRST))


def _score(row: Row) -> float | None:
    return getattr(row, "value", None) if row.top1 is None else row.top1


def _ratio(row: Row, reference: Row | None, batch: int) -> float | None:
    mine, theirs = (getattr(r, f"latency_ms_batch{batch}", None) for r in (row, reference))
    return mine / theirs if mine and theirs else None


def _not_comparable(found: list[Results]) -> str:
    """A sentence if the runs were measured on different things."""
    measured = {(r.data.label, r.data.test, getattr(getattr(r, "metric", None), "name", "top-1")) for r in found}
    if len(measured) == 1:
        return ""
    texts = ", ".join(f"{metric} on {samples:,} of {label}" for label, samples, metric in sorted(measured))
    return f"These runs were not measured on the same samples ({texts}): their values cannot be compared."


def _differing_settings(found: list[Results]) -> dict[str, list[Any]]:
    """Keys of the configuration in which the runs differ -> the value of each."""
    flat = [dict(_flattened(r.config)) for r in found]
    keys = dict.fromkeys(key for config in flat for key in config)
    return {key: [c.get(key) for c in flat] for key in keys if len({repr(c.get(key)) for c in flat}) > 1}


def _flattened(config: Any, prefix: str = "") -> Any:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _print(record: list[dict[str, Any]], differing: dict[str, list[Any]], warning: str) -> None:
    from qat.report.text_of_numbers import format_size

    first = record[0]
    header = (
        "run",
        "model",
        "value",
        "vs first",
        "float",
        "size",
        "of float, 1",
        "of float, 32",
        "minutes",
        "verified",
    )
    rows = []
    for r in record:
        difference = (
            "-" if warning or r["value"] is None or first["value"] is None else f"{r['value'] - first['value']:+.4f}"
        )
        ratios = ["-" if r["latency_of_float"][b] is None else f"{r['latency_of_float'][b]:.2f}" for b in ("1", "32")]
        minutes = "-" if r["minutes"] is None else f"{r['minutes']:.1f}"
        verified = {True: "yes", False: "NO", None: "-"}[r["verified"]]
        rows.append(
            (
                r["run"],
                r["model"],
                _number(r["value"]),
                difference,
                _number(r["float"]),
                format_size(r["size_bytes"]),
                *ratios,
                minutes,
                verified,
            )
        )
    print(arguments.text_table(header, rows, text_columns=2))
    for r in record:
        print(f"\n{r['run']}: {r['verdict']}")
    if differing:
        print("\nsettings that differ:")
        for key, values in differing.items():
            print(f"  {key}: {' | '.join(str(value) for value in values)}")
    if warning:
        print(f"\n{warning}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
