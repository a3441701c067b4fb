"""The results as numbers by name and as tables of plain values, for loggers."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from qat.report.judgement.objectives import OBJECTIVES
from qat.report.results.schema import Results

ROW_NUMBERS = ("value", "top5", "calibration_error", "size_bytes", "latency_ms_batch1", "latency_ms_batch32", "seconds")


class PlainTable(NamedTuple):
    """columns: their names; rows: a value for each, None where it was not measured."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def numbers(results: Results) -> dict[str, float]:
    """What was measured, by name: the objectives, every row (`PTQ MSE/size_bytes`), the verdict, the verification, seconds.

    Units are those of results.json: fractions, bytes, milliseconds, seconds.
    """
    return {name: float(value) for name, value in _numbers(results) if value is not None}


def plain_tables(results: Results) -> dict[str, PlainTable]:
    """Every row of the comparison, what is quantized to what, the verification by site, single tensors, oscillations."""
    others = list(dict.fromkeys(name for row in results.rows for name in row.others))
    comparison = ("name", "kind", *ROW_NUMBERS, "size_kind", "standard_error", "note")
    rows = [[*_fields(row, comparison), *(row.others.get(name) for name in others)] for row in results.rows]
    tables = {"comparison": PlainTable([*comparison, *others], rows)}
    found = results.verification
    for name, fields, records in (
        ("sites", ("site", "op", "weight", "activation", "note"), results.sites),
        (
            "verification",
            ("name", "codes_compared", "code_mismatches", "max_step_difference", "exercised", "sqnr_db"),
            [] if found is None else found.sites,
        ),
        ("tensors", ("name", "kind", "sqnr_db", "sensitivity_db", "clipped", "lowest", "highest"), results.tensors),
        (
            "oscillations",
            ("layer", "weights", "oscillating", "frozen"),
            [] if results.oscillations is None else results.oscillations.layers,
        ),
    ):
        if records:
            tables[name] = PlainTable(fields, [_fields(record, fields) for record in records])
    return tables


def _numbers(results: Results) -> Iterator[tuple[str, float | None]]:
    for name, meaning in OBJECTIVES.items():
        yield name, meaning.value(results)
    for row in results.rows:
        for name in ROW_NUMBERS:
            yield f"{row.name}/{name}", getattr(row, name)
        for name, value in row.others.items():
            yield f"{row.name}/{name}", value
    yield "verdict/difference", results.verdict.difference
    yield "verdict/p_value", results.verdict.p_value
    if results.verification is not None:
        yield "verification/codes_compared", results.verification.codes_compared
        yield "verification/code_mismatches", results.verification.code_mismatches
    if results.oscillations is not None:
        yield "oscillations/oscillating", results.oscillations.oscillating
        yield "oscillations/frozen", results.oscillations.frozen
    for stage, seconds in results.timings.items():
        yield f"seconds/{stage}", seconds


def _fields(record: Any, names: Sequence[str]) -> list[Any]:
    return [getattr(record, name) for name in names]
