"""The tables and sentences of the report as plain strings; `console` and `markdown` decide how they look."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from qat.report.judgement.differences import standard_error
from qat.report.results.metric import ACCURACY, MetricInfo
from qat.report.results.oscillations import OscillationResult
from qat.report.results.schema import IDENTICAL_DB, Results, Row, SiteInfo, VerificationResult
from qat.report.text_of_numbers import format_count, format_milliseconds, format_size

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


def comparison_table(
    rows: Sequence[Row], n_test: int, *, full: bool = False, metric: MetricInfo = ACCURACY
) -> TextTable:
    """Value ± its standard error, difference to float, size, latency and minutes of every model.

    Args:
        n_test: number of test samples behind each value.
        full: whether to add top-5 accuracy, calibration error and further metrics, if any row has them.
        metric: what `value` is.
    """
    float_row = next((row for row in rows if row.kind == "float"), None)
    columns: dict[str, list[str]] = {
        "model": [row.name for row in rows],
        metric.heading: [value_with_error(row, n_test, metric) for row in rows],
        "vs float": [_against(row, float_row, metric) for row in rows],
    }
    if full:
        columns |= _further_metrics(rows)
    columns |= {
        "size": [format_size(row.size_bytes) + (STORED_MARK if row.size_kind == "stored" else "") for row in rows],
        "of float": [_size_ratio(row, float_row) for row in rows],
        "ms, batch 1": [_milliseconds(row.latency_ms_batch1) for row in rows],
        "batch 32": [_milliseconds(row.latency_ms_batch32) for row in rows],
    }
    if any(row.seconds is not None for row in rows):
        columns["minutes"] = [ABSENT if row.seconds is None else f"{row.seconds / 60:.2f}" for row in rows]
    return TextTable(tuple(columns), list(zip(*columns.values(), strict=True)), text_columns=1)


def _further_metrics(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Columns of what was measured beside the metric of the run."""
    columns: dict[str, list[str]] = {}
    if any(row.top5 is not None for row in rows):
        columns["top-5 %"] = [_percent(row.top5) for row in rows]
    if any(row.calibration_error is not None for row in rows):
        columns["calibration error %"] = [_percent(row.calibration_error) for row in rows]
    for name in dict.fromkeys(name for row in rows for name in row.others):
        values = [row.others.get(name) for row in rows]
        columns[name] = [ABSENT if value is None else f"{value:.4g}" for value in values]
    return columns


def value_with_error(row: Row, n_test: int, metric: MetricInfo) -> str:
    """A value ± its standard error, if that is known.

    >>> row = Row("PTQ", "ptq", 0.9, size_bytes=1, size_kind="file")
    >>> value_with_error(row, 10_000, ACCURACY)
    '90.00 ± 0.30'
    """
    error = standard_error(row, n_test, metric)
    if error is None or not math.isfinite(row.score):
        return metric.number(row.score)
    return f"{metric.number(row.score, error)} ± {metric.number(error, error)}"


def error_words(metric: MetricInfo) -> str:
    """What ± means in tables and pictures.

    >>> error_words(ACCURACY)
    '± one standard error (binomial)'
    """
    return f"± one standard error ({metric.errors})" if metric.errors else "standard errors are not known"


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


def verification_sentence(verification: VerificationResult, classes: bool = True) -> str:
    """The verification in one line. classes: whether the largest output is an answer, so that agreement means something.

    >>> print(verification_sentence(VerificationResult(1_234_567, 0, 1.0, 0, 100, {"QLinearConv": 19, "Conv": 0})))
    0 of 1,234,567 codes differ, top-1 agreement 100 %, 19 of 19 convolutions are QLinearConv
    """
    codes = f"{verification.code_mismatches:,} of {verification.codes_compared:,} codes differ"
    if verification.code_mismatches:
        codes += f" by at most {format_count(verification.max_step_difference, 'step')}"
    agreement = [f"top-1 agreement {agreement_percent(verification.top1_agreement)}"] if classes else []
    spread = [f"{verification.propagated:,} more only because of codes before them"] if verification.propagated else []
    ties = [f"{verification.float_ties:,} ties of float sums"] if verification.float_ties else []
    operators = _operator_phrases(verification.quantized_operators)
    return ", ".join([codes, *spread, *ties, *agreement, *operators, *_exercise_phrases(verification)])


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


def facts(results: Results) -> Iterator[tuple[str, str]]:
    """(name, fact) about the data and where the run happened."""
    data, environment = results.data, results.environment
    shape = " × ".join(map(str, data.image_shape)) or "one number"
    classes = f", {data.classes} classes" if data.classes is not None else ""
    name = data.label if data.label == data.name else f"{data.label} ({data.name})"
    counts = f"{data.train:,} training, {data.val:,} validation and {data.test:,} test {data.samples}"
    yield "data", f"{name}: {counts} of {shape}{classes}. {data.note}".rstrip()
    yield "processor", f"{environment.cpu}, {format_count(environment.threads, 'thread')}"
    yield "accelerator", environment.accelerator or "none"
    yield "platform", environment.platform
    changed = " with changes" if environment.commit is not None and environment.dirty else ""
    yield "commit", (environment.commit or "not a checkout") + changed
    versions = {"python": environment.python, **environment.versions}
    yield "versions", ", ".join(f"{package} {version}" for package, version in versions.items())
    if results.timings:
        yield "time", ", ".join(f"{stage} {seconds:,.1f} s" for stage, seconds in results.timings.items())


def agreement_percent(fraction: float) -> str:
    """A fraction in percent, rounded down, so that 100 % means all of them.

    >>> agreement_percent(1.0), agreement_percent(0.99999)
    ('100 %', '99.99 %')
    """
    return "100 %" if fraction == 1.0 else f"{math.floor(10_000 * fraction) / 100:.2f} %"


def _operator_phrases(counts: Mapping[str, int]) -> list[str]:
    phrases = []
    for family, (integer, floating) in OPERATOR_FAMILIES.items():
        present = [name for name in integer if counts.get(name)] or [name for name in integer[:1] if name in counts]
        done = sum(counts.get(name, 0) for name in integer)
        total = done + sum(counts.get(name, 0) for name in floating)
        if total:
            phrases.append(f"{done} of {total} {family} are {' or '.join(present or integer[:1])}")
    return phrases


def _against(row: Row, float_row: Row | None, metric: MetricInfo) -> str:
    if float_row is None or row is float_row:
        return ABSENT
    difference = metric.scaled(row.score - float_row.score)
    if not math.isfinite(difference):
        return ABSENT
    return f"{difference:+.2f}" if metric.percent else f"{difference:+.3g}"


def _size_ratio(row: Row, float_row: Row | None) -> str:
    return ABSENT if float_row is None or not float_row.size_bytes else f"{row.size_bytes / float_row.size_bytes:.2f}×"


def _percent(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.2f}"


def _milliseconds(value: float | None) -> str:
    return ABSENT if value is None else format_milliseconds(value)
