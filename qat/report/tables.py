"""The report's tables and sentences as plain strings; the console and Markdown only decide how they look."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from qat.report.schema import OscillationResult, Row, SiteInfo, VerificationResult
from qat.report.verdicts import binomial_error

ABSENT = "–"
STORED_MARK = "†"
STORED_NOTE = f"{STORED_MARK} stored: bytes of the codes, scales and biases; the other sizes are of files on disk."

FAMILIES = {  # what is counted together, integer operators first: "19 of 19 convolutions are QLinearConv"
    "convolutions": (("QLinearConv", "ConvInteger"), ("Conv",)),
    "matrix products": (("QLinearMatMul", "QGemm", "MatMulInteger"), ("MatMul", "Gemm")),
}


class Table(NamedTuple):
    """A header, rows of as many cells, and how many leading columns are text (the others are numbers)."""

    header: tuple[str, ...]
    cells: Sequence[tuple[str, ...]]
    text_columns: int


def comparison(rows: Sequence[Row], n_test: int, *, full: bool = False) -> Table:
    """The rows side by side: accuracy ± its standard error, difference to float, size, latency, minutes to make it.

    ``full`` adds top-5 and calibration error, where any row has them.
    """
    reference = next((row for row in rows if row.kind == "float"), None)
    columns: dict[str, list[str]] = {
        "model": [row.name for row in rows],
        "top-1 %": [f"{100 * row.top1:.2f} ± {100 * binomial_error(row.top1, n_test):.2f}" for row in rows],
        "vs float": [_points(row, reference) for row in rows],
    }
    if full and any(row.top5 is not None for row in rows):
        columns["top-5 %"] = [_number(row.top5, 100) for row in rows]
    if full and any(row.calibration_error is not None for row in rows):
        columns["calibration error %"] = [_number(row.calibration_error, 100) for row in rows]
    columns |= {
        "size": [size(row.size_bytes) + (STORED_MARK if row.size_kind == "stored" else "") for row in rows],
        "of float": [_ratio(row, reference) for row in rows],
        "ms, batch 1": [_number(row.latency_ms_batch1) for row in rows],
        "batch 32": [_number(row.latency_ms_batch32) for row in rows],
    }
    if any(row.seconds is not None for row in rows):
        columns["minutes"] = [_number(None if row.seconds is None else row.seconds / 60) for row in rows]
    return Table(tuple(columns), list(zip(*columns.values(), strict=True)), text_columns=1)


def quantized_sites(sites: Sequence[SiteInfo]) -> Table:
    """What is quantized, and to what."""
    columns = {
        "site": [site.site for site in sites],
        "op": [site.op for site in sites],
        "weight": [site.weight or ABSENT for site in sites],
        "activation": [site.activation or ABSENT for site in sites],
    }
    if any(site.note for site in sites):
        columns["note"] = [site.note for site in sites]
    return Table(tuple(columns), list(zip(*columns.values(), strict=True)), text_columns=len(columns))


def verified_sites(verification: VerificationResult) -> Table:
    """The code-by-code comparison, site by site."""
    cells = [
        (
            site.name,
            " × ".join(map(str, site.shape)),
            f"{site.codes_compared:,}",
            f"{site.code_mismatches:,}",
            str(site.max_step_difference),
        )
        for site in verification.sites
    ]
    return Table(("site", "shape", "codes compared", "codes that differ", "largest difference, steps"), cells, 2)


def verification_sentence(verification: VerificationResult) -> str:
    """The whole verification in a line.

    >>> print(verification_sentence(VerificationResult(1_234_567, 0, 1.0, 0, 100, {"QLinearConv": 19, "Conv": 0})))
    0 of 1,234,567 codes differ, top-1 agreement 100 %, 19 of 19 convolutions are QLinearConv
    """
    codes = f"{verification.code_mismatches:,} of {verification.codes_compared:,} codes differ"
    if verification.code_mismatches:
        codes += f" by at most {_count(verification.max_step_difference, 'step')}"
    agreement = f"top-1 agreement {agreement_percent(verification.top1_agreement)}"
    return ", ".join([codes, agreement, *_operator_phrases(verification.quantized_operators)])


def oscillations(found: OscillationResult) -> Table:
    """The shares of every layer, the largest share of oscillating weights first."""
    layers = sorted(found.layers, key=lambda layer: -layer.oscillating / layer.weights)
    cells = [
        (
            layer.layer,
            f"{layer.weights:,}",
            f"{100 * layer.oscillating / layer.weights:.2f}",
            f"{100 * layer.frozen / layer.weights:.2f}",
        )
        for layer in layers
    ]
    return Table(("layer", "weights", "oscillating %", "frozen %"), cells, 1)


def oscillation_sentence(found: OscillationResult) -> str:
    """All layers in a line.

    >>> from qat.report import LayerOscillations
    >>> print(oscillation_sentence(OscillationResult(0.005, 0.01, [LayerOscillations("stem", 2_000, 30, 5)])))
    1.50 % of 2,000 weights oscillate (frequency above 0.005), 0.25 % are frozen
    """
    return (
        f"{100 * found.oscillating:.2f} % of {found.weights:,} weights oscillate (frequency above {found.threshold:g}), "
        f"{100 * found.frozen:.2f} % are frozen"
    )


def agreement_percent(fraction: float) -> str:
    """Rounded down, so that 100 % means all of them.

    >>> agreement_percent(1.0), agreement_percent(0.99999)
    ('100 %', '99.99 %')
    """
    return "100 %" if fraction == 1.0 else f"{math.floor(10_000 * fraction) / 100:.2f} %"


def size(n_bytes: int) -> str:
    """Decimal units, three digits.

    >>> size(950), size(273_400), size(1_093_456)
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
    for family, (integer, floating) in FAMILIES.items():
        present = [name for name in integer if counts.get(name)] or [name for name in integer[:1] if name in counts]
        done = sum(counts.get(name, 0) for name in integer)
        total = done + sum(counts.get(name, 0) for name in floating)
        if total:
            phrases.append(f"{done} of {total} {family} are {' or '.join(present or integer[:1])}")
    return phrases


def _points(row: Row, reference: Row | None) -> str:
    return ABSENT if reference is None or row is reference else f"{100 * (row.top1 - reference.top1):+.2f}"


def _ratio(row: Row, reference: Row | None) -> str:
    return ABSENT if reference is None or not reference.size_bytes else f"{row.size_bytes / reference.size_bytes:.2f}×"


def _number(value: float | None, factor: float = 1.0) -> str:
    return ABSENT if value is None else f"{factor * value:.2f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
