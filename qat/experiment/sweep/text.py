"""`sweep.csv`, a row for each job, and `sweep.md`, a row for each group of seeds."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qat.experiment.schema.values import Objective
from qat.experiment.sweep.best_recipe import RECIPE, best_command
from qat.experiment.sweep.summary import VALUES, Entry, Group, Spread, best_groups, pareto_groups, short
from qat.report.judgement.objectives import best_ptq, float_row
from qat.report.results.metric import ACCURACY, MetricInfo
from qat.report.text.tables import ABSENT
from qat.report.text_of_numbers import format_count, format_milliseconds, format_size

_SIGNS = {"validation": "", "test": "", "over_float": "+", "over_best_ptq": "+"}
"""Values of a metric -> the sign with which positive ones are written."""


def csv_text(entries: Sequence[Entry]) -> str:
    """One row for each job: its choices, how it ended, and its numbers (fractions, bytes, milliseconds, minutes)."""
    records = job_records(entries)
    keys = list(dict.fromkeys(key for record in records for key in record["choices"]))
    columns = [column for column in records[0] if column not in ("job", "choices")] if records else []
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["job", *keys, *columns])
    for record in records:
        choices = (record["choices"].get(key) for key in keys)
        writer.writerow([record["job"], *map(_csv_cell, (*choices, *(record[column] for column in columns)))])
    return buffer.getvalue()


def job_records(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Every job as plain data: its choices, how it ended, and its numbers."""
    records = []
    for job, state in entries:
        found = state.results
        reference, ptq = (None, None) if found is None else (float_row(found), best_ptq(found))
        records.append(
            {
                "job": job.name,
                "choices": dict(job.choices),
                "status": state.status,
                **{name: None if found is None else value(found) for name, value in VALUES.items()},
                "float": None if reference is None else reference.score,
                "best_ptq": None if ptq is None else ptq.name,
                "best_ptq_value": None if ptq is None else ptq.score,
                "verdict": None if found is None else found.verdict.outcome,
                "reason": state.reason,
            }
        )
    return records


def _csv_cell(value: Any) -> Any:
    return "" if value is None else f"{value:.10g}" if isinstance(value, float | int) else value


def markdown(
    folder: Path, entries: Sequence[Entry], groups: Sequence[Group], best: Group | None, objectives: Sequence[Objective]
) -> str:
    """The whole report of the sweep."""
    done = sum(entry.state.results is not None for entry in entries)
    sections = [f"# {folder.name}", f"{done} of {len(entries)} jobs have results.", pipe_table(groups), notes(groups)]
    if best is not None:
        picture = "![accuracy against size and latency](pareto.png)"
        sections += [
            picture,
            f"## Best\n\n{_best_sentence(groups, best, objectives)}\n\n```sh\n{best_command(folder)}\n```",
        ]
    missing = [entry for entry in entries if entry.state.results is None]
    if missing:
        lines = [f"| `{job.name}` | {state.status} | {_cell(state.reason)} |" for job, state in missing]
        sections.append("\n".join(["## Without results\n", "| job | status | reason |", "| --- | --- | --- |", *lines]))
    rows = [f"| `{job.name}` | `{state.results.command}` |" for job, state in entries if state.results is not None]
    if rows:
        sections.append("\n".join(["## Each job alone\n", "| job | command |", "| --- | --- |", *rows]))
    return "\n\n".join(sections) + "\n"


def notes(groups: Sequence[Group]) -> str:
    """What the numbers are."""
    first = next((results for group in groups for results in group.results), None)
    if first is None:
        return "No job has results."
    metric = first.metric
    environment = first.environment
    outcomes = [results.verdict.outcome for group in groups for results in group.results]
    untrained = outcomes.count("float_untrained")
    runs = f"{untrained} of {format_count(len(outcomes), 'run')}"
    warning = f" The float network of {runs} was not trained: differences to it say nothing." if untrained else ""
    code = f"commit {environment.commit[:10]}" if environment.commit else f"qat {environment.versions.get('qat', '')}"
    return (
        f"Mean ± standard deviation over seeds. {metric.heading} on {first.data.test:,} test {first.data.samples}; validation: "
        f"of the epoch that was kept, on {first.data.val:,}. Differences are those within each run, to its float network and "
        f"its best PTQ row. Size of the file; milliseconds per call; minutes of the whole run. {environment.cpu}, "
        f"{format_count(environment.threads, 'thread')}, {code}."
        f"{warning}"
    )


def header_and_cells(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """The table of the groups as text."""
    keys = list(dict.fromkeys(key for group in groups for key in group.choices))
    metric = next((results.metric for group in groups for results in group.results), ACCURACY)
    header = [*keys, "seeds", "validation", f"test {metric.heading}", "vs float", "vs best PTQ", "size"]
    header += ["ms, batch 1", "batch 32", "minutes"]
    return header, [[short(group.choices.get(key, "")) for key in keys] + _numbers(group, metric) for group in groups]


def pipe_table(groups: Sequence[Group]) -> str:
    """The table of the groups in Markdown."""
    header, cells = header_and_cells(groups)
    keys = len(header) - 9
    rule = ["---"] * keys + ["---:"] * 9
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in [header, rule, *cells])


def summary_table(groups: Sequence[Group]) -> str:
    """The same for the terminal."""
    header, cells = header_and_cells(groups)
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    keys = len(header) - 9
    return "\n".join(
        "  ".join(
            c.ljust(w) if i < keys else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [header, *cells]
    )


def failure_sentence(failed: Sequence[Entry], jobs: int) -> str:
    """The last line of a sweep in which jobs failed."""
    job, state = failed[0]
    more = f" (and {len(failed) - 1} more, see sweep.md)" if len(failed) > 1 else ""
    reason = state.reason.rstrip(".")
    verb = "has" if len(failed) == 1 else "have"
    return f"{len(failed)} of {format_count(jobs, 'job')} {verb} no results: {job.name}: {reason}{more}."


def _numbers(group: Group, metric: MetricInfo) -> list[str]:
    spread = {name: group.spread(value) for name, value in VALUES.items()}
    factor = 100 if metric.percent else 1
    percent = [_text(spread[name], factor, sign) for name, sign in _SIGNS.items()]
    size = spread["size_bytes"]
    return [
        f"{len(group.results)} of {len(group.entries)}",
        *percent,
        ABSENT if size is None else format_size(round(size.mean)),
        *(_milliseconds(spread[name]) for name in ("latency_ms_batch1", "latency_ms_batch32")),
        _text(spread["minutes"]),
    ]


def _text(spread: Spread | None, factor: float = 1.0, sign: str = "") -> str:
    if spread is None:
        return ABSENT
    mean, deviation = spread.scaled(factor)
    return f"{mean:{sign}.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")


def _milliseconds(spread: Spread | None) -> str:
    if spread is None:
        return ABSENT
    mean = format_milliseconds(spread.mean)
    decimals = len(mean.partition(".")[2])
    return mean if spread.deviation is None else f"{mean} ± {spread.deviation:.{decimals}f}"


def _best_sentence(groups: Sequence[Group], best: Group, objectives: Sequence[Objective]) -> str:
    said = {"accuracy": "validation accuracy", "latency_32": "latency at batch 32"}
    names = [said.get(name, name) for name in objectives]
    equals = len(best_groups(groups, objectives[0]))
    reason = f"by the mean of its {names[0]}" + (f" and, of {equals} with the same, by its size" if equals > 1 else "")
    text = f"{best.name}, {reason}, is `{RECIPE}`:"
    if len(objectives) == 1:
        return text
    found = "\n".join(f"- {group.name}" for group in pareto_groups(groups, objectives))
    return f"On the Pareto front of {' and '.join(names)}:\n\n{found}\n\n{text}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
