"""The tables of docs/models.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.coverage.judge import ENOUGH, falsely_alarmed, faults, right, silently_wrong, stage_reached, trains
from benchmarks.markdown_table import count_threads, markdown_table
from benchmarks.program_tables import NOT_MEASURED, Measurement

Records = Mapping[str, dict[str, Any]]


def page(measurement: Measurement | None) -> str:
    """Everything between the markers: how many networks got how far, what the others miss, and each network's numbers."""
    if measurement is None or not measurement["networks"]:
        return NOT_MEASURED
    networks: Records = measurement["networks"]
    parts = ["## How many", summary(networks), "## What has no right file", failures(networks), "## Every network"]
    return "\n\n".join([*parts, details(networks), _source(measurement)])


def summary(networks: Records) -> str:
    """A row for each source of networks: how many of them get how far."""
    by_source: dict[str, list[dict[str, Any]]] = {}
    for name, record in networks.items():
        by_source.setdefault(name.partition("/")[0], []).append(record)
    rows = [_summary_row(source, records) for source, records in by_source.items()]
    rows.append(_summary_row("**all**", list(networks.values())))
    header = ("from", "networks", "prepared", "of them not layer by layer", "off, float to the bit", "train", "exported",
              "right file", f"at least {ENOUGH:.0%} in integers", "silently wrong", "false alarm")  # fmt: skip
    return markdown_table(header, rows, text_columns=1)


def _summary_row(source: str, records: list[dict[str, Any]]) -> list[str]:
    counts = (
        sum("captured" in r for r in records),
        sum(r.get("captured", "layer by layer") != "layer by layer" for r in records),
        sum(bool(r.get("off_equal")) for r in records),
        sum(map(trains, records)),
        sum(bool(r.get("exported")) for r in records),
        sum(map(right, records)),
        sum((r.get("integer_share") or 0) >= ENOUGH for r in records),
    )
    n, alarms = len(records), (sum(map(silently_wrong, records)), sum(map(falsely_alarmed, records)))
    return [source, str(n), *(f"{c} ({c / n:.0%})" for c in counts), *map(str, alarms)]


def failures(networks: Records) -> str:
    """A row for every network without a right file: how far it came, and what it misses."""
    rows = [[name, stage_reached(r), _escape("; ".join(faults(r)))] for name, r in networks.items() if not right(r)]
    return (
        markdown_table(("network", "ends at", "what was said or found"), rows, text_columns=3) if rows else "Nothing."
    )


def details(networks: Records) -> str:
    """A row for every network."""
    header = ("network", "captured", "right", "trains", "multiply-adds in integers", "weights in integers",
              "codes that differ locally", "worst segment, dB", "file, dB", "itself with noise, dB", "same predictions",
              "processor seconds")  # fmt: skip
    return markdown_table(header, [_details_row(name, r) for name, r in networks.items()], text_columns=4)


def _details_row(name: str, record: dict[str, Any]) -> list[str]:
    differ = f"{record['local_mismatches']:,} of {record['codes']:,}" if "codes" in record else ""
    numbers = [_number(record.get(key), ".0%") for key in ("integer_share", "weights_in_integers")]
    decibels = [_number(record.get(key), ".0f") for key in ("segment_db", "file_db", "sensitivity_db")]
    same = _number(record.get("file_predictions"), ".0%")
    seconds = f"{sum(record.get('seconds', {}).values()):.0f}"
    judgements = ["yes" if judge(record) else "no" for judge in (right, trains)]
    return [name, record.get("captured", ""), *judgements, *numbers, differ, *decibels, same, seconds]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _source(measurement: Measurement) -> str:
    machine = measurement["environment"]
    versions = ", ".join(
        f"{k} {v}" for k, v in machine["versions"].items() if k in ("torch", "torchvision", "onnxruntime")
    )
    packages = "".join(f", {k} {v}" for k, v in measurement.get("packages", {}).items())
    threads = count_threads(measurement["limits"]["threads"])
    commits = _commits(r.get("commit") for r in measurement["networks"].values())
    return f"`{measurement['command']}`; {machine['cpu']}, {threads}; {versions}{packages}; commit {commits}."


def _commits(commits: Iterable[str | None]) -> str:
    return ", ".join(sorted({(commit or "unknown")[:10] for commit in commits}))
