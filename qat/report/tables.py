"""The tables and sentences of the report as plain strings; `console` and `markdown` decide how they look."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from qat.report.schema import IDENTICAL_DB, OscillationResult, Row, SiteInfo, VerificationResult
from qat.report.verdicts import binomial_error

ABSENT = "–"
STORED_MARK = "†"
STORED_NOTE = f"{STORED_MARK} stored: bytes of the codes, scales and biases; the other sizes are of files on disk."

# name -> (integer operators, float operators), counted together: "19 of 19 convolutions are QLinearConv"
OPERATOR_FAMILIES = {
    "convolutions": (("QLinearConv", "ConvInteger"), ("Conv",)),
    "matrix products": (("QLinearMatMul", "QGemm", "MatMulInteger"), ("MatMul", "Gemm")),
}


class TextTable(NamedTuple):
    """A header, rows with one cell per column, and the number of leading columns that hold text (the others hold numbers)."""

    header: tuple[str, ...]
    cells: Sequence[tuple[str, ...]]
    text_columns: int


def comparison_table(rows: Sequence[Row], n_test: int, *, full: bool = False) -> TextTable:
    """Accuracy ± its standard error, difference to float, size, latency and minutes of every model.

    Args:
        n_test: number of test images behind each accuracy.
        full: whether to add top-5 accuracy and calibration error, if any row has them.
    """
    float_row = next((row for row in rows if row.kind == "float"), None)
    columns: dict[str, list[str]] = {
        "model": [row.name for row in rows],
        "top-1 %": [f"{100 * row.top1:.2f} ± {100 * binomial_error(row.top1, n_test):.2f}" for row in rows],
        "vs float": [_points(row, float_row) for row in rows],
    }
    if full and any(row.top5 is not None for row in rows):
        columns["top-5 %"] = [_number(row.top5, 100) for row in rows]
    if full and any(row.calibration_error is not None for row in rows):
        columns["calibration error %"] = [_number(row.calibration_error, 100) for row in rows]
    columns |= {
        "size": [format_size(row.size_bytes) + (STORED_MARK if row.size_kind == "stored" else "") for row in rows],
        "of float": [_size_ratio(row, float_row) for row in rows],
        "ms, batch 1": [_number(row.latency_ms_batch1) for row in rows],
        "batch 32": [_number(row.latency_ms_batch32) for row in rows],
    }
    if any(row.seconds is not None for row in rows):
        columns["minutes"] = [_number(None if row.seconds is None else row.seconds / 60) for row in rows]
    return TextTable(tuple(columns), list(zip(*columns.values(), strict=True)), text_columns=1)


def site_table(sites: Sequence[SiteInfo]) -> TextTable:
    """The quantized sites and their formats."""
    columns = {
        "site": [site.site for site in sites],
        "op": [site.op for site in sites],
        "weight": [site.weight or ABSENT for site in sites],
        "activation": [site.activation or ABSENT for site in sites],
    }
    if any(site.note for site in sites):
        columns["note"] = [site.note for site in sites]
    return TextTable(tuple(columns), list(zip(*columns.values(), strict=True)), text_columns=len(columns))


def verification_table(verification: VerificationResult) -> TextTable:
    """The code-by-code comparison of every site, with the columns that were measured."""
    sites = verification.sites
    columns = {
        "site": [site.name for site in sites],
        "shape": [" × ".join(map(str, site.shape)) for site in sites],
        "codes compared": [f"{site.codes_compared:,}" for site in sites],
        "codes that differ": [f"{site.code_mismatches:,}" for site in sites],
        "largest difference, steps": [str(site.max_step_difference) for site in sites],
    }
    if any(site.float_ties for site in sites):
        columns["ties of float sums"] = [f"{site.float_ties:,}" for site in sites]
    if any(site.propagated for site in sites):
        columns["differ because of sites before"] = [f"{site.propagated:,}" for site in sites]
    if any(site.exercised is not None for site in sites):
        columns["codes used %"] = [ABSENT if s.exercised is None else f"{100 * s.exercised:.0f}" for s in sites]
    if any(site.sqnr_db is not None for site in sites):
        columns["dB to fake-quant"] = [_decibels(site.sqnr_db) for site in sites]
    return TextTable(tuple(columns), list(zip(*columns.values(), strict=True)), text_columns=2)


def _decibels(value: float | None) -> str:
    return ABSENT if value is None else "identical" if value >= IDENTICAL_DB else f"{value:.1f}"


def verification_sentence(verification: VerificationResult) -> str:
    """The verification in one line.

    >>> print(verification_sentence(VerificationResult(1_234_567, 0, 1.0, 0, 100, {"QLinearConv": 19, "Conv": 0})))
    0 of 1,234,567 codes differ, top-1 agreement 100 %, 19 of 19 convolutions are QLinearConv
    """
    codes = f"{verification.code_mismatches:,} of {verification.codes_compared:,} codes differ"
    if verification.code_mismatches:
        codes += f" by at most {_count(verification.max_step_difference, 'step')}"
    agreement = f"top-1 agreement {agreement_percent(verification.top1_agreement)}"
    spread = [f"{verification.propagated:,} more only because of codes before them"] if verification.propagated else []
    ties = [f"{verification.float_ties:,} ties of float sums"] if verification.float_ties else []
    operators = _operator_phrases(verification.quantized_operators)
    return ", ".join([codes, *spread, *ties, agreement, *operators, *_exercise_phrases(verification)])


def _exercise_phrases(verification: VerificationResult) -> list[str]:
    """Over how much of their codes the data exercised the sites."""
    shares = sorted(s.exercised for s in verification.sites if s.exercised is not None)
    weak = ["WEAK DATA, no proof of what other data give"] if verification.weak_inputs else []
    if not shares:
        return weak
    return [*weak, f"sites used {100 * shares[0]:.0f} to {100 * shares[-1]:.0f} % of their codes"]


def oscillation_table(oscillations: OscillationResult) -> TextTable:
    """The shares of every layer; the largest share of oscillating weights comes first."""
    layers = sorted(oscillations.layers, key=lambda layer: -layer.oscillating / layer.weights)
    cells = [
        (
            layer.layer,
            f"{layer.weights:,}",
            f"{100 * layer.oscillating / layer.weights:.2f}",
            f"{100 * layer.frozen / layer.weights:.2f}",
        )
        for layer in layers
    ]
    return TextTable(("layer", "weights", "oscillating %", "frozen %"), cells, text_columns=1)


def oscillation_sentence(oscillations: OscillationResult) -> str:
    """The shares of all layers together in one line.

    >>> from qat.report import LayerOscillations
    >>> print(oscillation_sentence(OscillationResult(0.005, 0.01, [LayerOscillations("stem", 2_000, 30, 5)])))
    1.50 % of 2,000 weights oscillate (frequency above 0.005), 0.25 % are frozen
    """
    return (
        f"{100 * oscillations.oscillating:.2f} % of {oscillations.weights:,} weights oscillate "
        f"(frequency above {oscillations.threshold:g}), {100 * oscillations.frozen:.2f} % are frozen"
    )


def agreement_percent(fraction: float) -> str:
    """A fraction in percent, rounded down, so that 100 % means all of them.

    >>> agreement_percent(1.0), agreement_percent(0.99999)
    ('100 %', '99.99 %')
    """
    return "100 %" if fraction == 1.0 else f"{math.floor(10_000 * fraction) / 100:.2f} %"


def format_size(n_bytes: int) -> str:
    """A size in decimal units, with three digits.

    >>> format_size(950), format_size(273_400), format_size(1_093_456)
    ('950 B', '273 kB', '1.09 MB')
    """
    value, unit = float(n_bytes), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            break
        value /= 1000
    digits = 0 if unit == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def _operator_phrases(counts: Mapping[str, int]) -> list[str]:
    phrases = []
    for family, (integer, floating) in OPERATOR_FAMILIES.items():
        present = [name for name in integer if counts.get(name)] or [name for name in integer[:1] if name in counts]
        done = sum(counts.get(name, 0) for name in integer)
        total = done + sum(counts.get(name, 0) for name in floating)
        if total:
            phrases.append(f"{done} of {total} {family} are {' or '.join(present or integer[:1])}")
    return phrases


def _points(row: Row, float_row: Row | None) -> str:
    return ABSENT if float_row is None or row is float_row else f"{100 * (row.top1 - float_row.top1):+.2f}"


def _size_ratio(row: Row, float_row: Row | None) -> str:
    return ABSENT if float_row is None or not float_row.size_bytes else f"{row.size_bytes / float_row.size_bytes:.2f}×"


def _number(value: float | None, factor: float = 1.0) -> str:
    return ABSENT if value is None else f"{factor * value:.2f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
