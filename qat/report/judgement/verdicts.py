"""The verdict: whether QAT beats post-training quantization, in words that cannot be misread."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from qat.report.judgement.paired import LEVEL, PairedDifference
from qat.report.results.metric import ACCURACY, MetricInfo
from qat.report.results.schema import Outcome, Row, Verdict, VerificationResult
from qat.report.text_of_numbers import format_size

NEAREST_TO_ARTEFACT_FIRST = ("qat_onnxruntime", "qat_integer", "qat_fake_quant")
CERTAIN = 3.0
"""Standard errors by which QAT must beat float before the float network is called untrained."""
Comparison = Callable[[str, str], PairedDifference | None]
"""From the names of two rows to the difference of the first from the second, on the same samples."""


def binomial_error(fraction: float, n: int) -> float:
    """Standard error of an accuracy measured on `n` samples, as a fraction.

    >>> round(binomial_error(0.9, 10_000), 4)
    0.003
    """
    return math.sqrt(fraction * (1.0 - fraction) / n)


def standard_error(row: Row, n_test: int, metric: MetricInfo) -> float | None:
    """The standard error of a row's value; that of a proportion if the metric is an accuracy and the row has none."""
    if row.standard_error is not None:
        return row.standard_error
    is_proportion = metric.errors == "binomial" and metric.percent and 0 <= row.score <= 1
    return binomial_error(row.score, n_test) if is_proportion else None


def verdict(
    rows: Sequence[Row],
    n_test: int,
    metric: MetricInfo = ACCURACY,
    samples: str = "images",
    comparison: Comparison | None = None,
) -> Verdict:
    """Compare QAT with the best PTQ row.

    QAT is represented by the row nearest to the artefact: ONNX Runtime, else the integer model, else fake-quant. Taking
    the best of several PTQ rows favours PTQ, which is the safe side to err on. A difference counts if its p-value is below
    0.05. A float network that is no better than chance, or that QAT beats by far, was not trained: then nothing is won.

    Args:
        rows: the models that were compared.
        n_test: number of test samples behind each value.
        metric: what was measured.
        samples: what the samples are called.
        comparison: compares two rows on the same samples. None, or without a result: they count as measured on different
            samples, which is cautious, if their standard errors are known.

    Raises:
        ValueError: `n_test` is less than 1.

    >>> size = {"size_bytes": 280_000, "size_kind": "stored"}
    >>> rows = [Row("PTQ MSE", "ptq", 0.90, **size), Row("QAT integer", "qat_integer", 0.92, **size)]
    >>> print(verdict(rows, n_test=10_000).text[:80])
    QAT WON: QAT integer is 2.00 points above PTQ MSE (92.00 % against 90.00 % top-1
    """
    if n_test < 1:
        raise ValueError(f"n_test={n_test}: give the number of test samples behind the rows, at least 1")
    qat = max(rows, key=lambda row: (_artefact_rank(row), metric.rank(row.score)), default=None)
    ptq = max((row for row in rows if row.kind == "ptq"), key=lambda row: metric.rank(row.score), default=None)
    if qat is None or not _artefact_rank(qat):
        return Verdict("undecided", "Undecided: no QAT row was measured.", ptq=ptq.name if ptq else None)
    untrained = _untrained_float(rows, qat, n_test, metric, comparison)
    if untrained:
        return Verdict("float_untrained", untrained, qat.name, ptq.name if ptq else None)
    if ptq is None:
        return Verdict("undecided", "Undecided: no PTQ row to compare QAT with.", qat=qat.name)
    found = _difference(qat, ptq, n_test, metric, comparison)
    return _judge(qat, ptq, n_test, metric, samples, found, _cost(qat, ptq, rows))


def _judge(
    qat: Row, ptq: Row, n_test: int, metric: MetricInfo, samples: str, found: PairedDifference | None, cost: str
) -> Verdict:
    """The verdict on two rows."""
    difference = qat.score - ptq.score
    outcome = _outcome(qat.score, ptq.score, metric, found)
    close = abs(difference) if abs(difference) < 0.01 * abs(qat.score) else None  # then four digits hide it
    values = f"{metric.text(qat.score, close)} against {metric.text(ptq.score, close)} {metric.name}"
    evidence = f"{values}, {_chance_words(found, metric)}{n_test:,} test {samples}"
    head, tail = (
        _sentences(outcome, qat, ptq, metric) if math.isfinite(difference) else _without_numbers(outcome, qat, ptq)
    )
    if outcome == "undecided" and n_test == 1:
        tail = "Test on more samples: one tells nothing."
    error, known = found.standard_error if found else None, math.isfinite(difference)
    return Verdict(
        outcome,
        f"{head} ({evidence}). {cost} {tail}",
        qat.name,
        ptq.name,
        difference_points=100 * difference if metric.percent and known else None,
        standard_error_points=100 * error if metric.percent and error is not None else None,
        difference=difference if known else None,
        standard_error=error,
        interval=None if found is None else [found.low, found.high],
        p_value=None if found is None else found.p_value,
        method="" if found is None else found.method,
    )


def _outcome(qat: float, ptq: float, metric: MetricInfo, found: PairedDifference | None) -> Outcome:
    if not (math.isfinite(qat) or math.isfinite(ptq)):
        return "undecided"
    if qat == ptq or (found is not None and found.p_value >= LEVEL):
        return "no_difference"
    if found is None and math.isfinite(qat - ptq):
        return "undecided"
    return "qat_won" if metric.better(qat, ptq) else "qat_lost"


def _sentences(outcome: Outcome, qat: Row, ptq: Row, metric: MetricInfo) -> tuple[str, str]:
    """What was found, and what follows from it."""
    difference = qat.score - ptq.score
    place, by = _place(difference, metric), metric.difference(abs(difference))
    if outcome == "qat_won":
        return f"QAT WON: {qat.name} is {place} {ptq.name}", (
            f"Ship the QAT model if this is worth its training; if not, {ptq.name}."
        )
    if outcome == "qat_lost":
        return f"QAT LOST to {ptq.name} by {by}: ship the PTQ model, not {qat.name}", (
            "QAT is worth another try only with more steps, another learning rate, or fewer bits."
        )
    if outcome == "no_difference":
        is_cheaper = qat.seconds is None or ptq.seconds is None or ptq.seconds <= qat.seconds
        why = "the cheaper one" if is_cheaper else "which needs no training"
        return f"No measurable difference: {qat.name} is {place} {ptq.name}", (
            f"Ship {ptq.name}, {why}; or train QAT longer and test on "
            "more samples, if less than this interval matters to you."
        )
    word = "better" if metric.better(qat.score, ptq.score) else "worse"
    return f"Undecided: {qat.name} is {word}, {place} {ptq.name}, and how much of that is chance is not known", (
        "Give Report a torchmetrics object or a function of (outputs, targets), which tell."
    )


def _without_numbers(outcome: Outcome, qat: Row, ptq: Row) -> tuple[str, str]:
    """The same of two values of which one is not a number or infinite."""
    broken = [row for row in (qat, ptq) if not math.isfinite(row.score)]
    names = " and ".join(row.name for row in broken)
    if len(broken) == 2:
        return f"Undecided: {names} have no value that can be compared", "Ship neither before it is known why."
    head = f"QAT WON: {names} has no value" if outcome == "qat_won" else f"QAT LOST to {ptq.name}: {names} has no value"
    return head, f"Find out why before {'it is called a baseline' if broken[0] is ptq else 'QAT is tried again'}."


def _difference(
    first: Row, second: Row, n_test: int, metric: MetricInfo, comparison: Comparison | None
) -> PairedDifference | None:
    """The difference of two rows with its uncertainty: paired if possible, else as of independent samples."""
    paired = comparison(first.name, second.name) if comparison is not None else None
    if not math.isfinite(first.score - second.score):
        return None
    if n_test == 1 and metric.errors != "binomial":  # whatever is drawn from one sample is that sample
        return None
    errors = [standard_error(row, n_test, metric) for row in (first, second)]
    if paired is not None or errors[0] is None or errors[1] is None:
        return paired
    difference, error = first.score - second.score, math.hypot(errors[0], errors[1])
    if not math.isfinite(error):
        return None
    middle = difference
    if error == 0 and first.standard_error is second.standard_error is None:  # all right, or all wrong
        middle, error = _with_two_more_samples(first.score, second.score, n_test)
    p_value = math.erfc(abs(middle) / error / math.sqrt(2)) if error else float(difference == 0)
    low, high = middle - 1.96 * error, middle + 1.96 * error
    if metric.percent:
        low, high = max(low, -1.0), min(high, 1.0)
    return PairedDifference(difference, error, low, high, p_value, "as if of independent samples")


def _with_two_more_samples(first: float, second: float, n_test: int) -> tuple[float, float]:
    """The difference of two proportions and its standard error, as far as so many samples tell, also where both are 0 or 1.

    With one more success and one more failure in each (Agresti and Caffo 2000): one right against one wrong proves nothing.
    """
    adjusted = [(n_test * fraction + 1) / (n_test + 2) for fraction in (first, second)]
    error = math.hypot(*(binomial_error(fraction, n_test + 2) for fraction in adjusted))
    return adjusted[0] - adjusted[1], error


def _untrained_float(
    rows: Sequence[Row], qat: Row, n_test: int, metric: MetricInfo, comparison: Comparison | None
) -> str:
    """A sentence if the float network was not trained; else ""."""
    row = next((row for row in rows if row.kind == "float"), None)
    if row is None:
        return ""
    head = "NO VERDICT, the float network was not trained: "
    tail = " Train it first; what QAT learned beyond it says nothing about quantization."
    error = standard_error(row, n_test, metric) or 0.0
    if math.isnan(row.score):
        return f"{head}its {metric.name} is not a finite number.{tail}"
    if metric.chance is not None and not metric.better(row.score, _worse_by(metric, metric.chance, -CERTAIN * error)):
        chance = metric.text(metric.chance)
        return (
            f"{head}{metric.text(row.score)} {metric.name} on {n_test:,} test samples is not clearly better than the "
            f"{chance} that its outputs reach in random order.{tail}"
        )
    found = _difference(qat, row, n_test, metric, comparison)
    far = _is_far(row.score, qat.score, metric)
    if far and (found is None or abs(found.difference) > CERTAIN * found.standard_error):
        by = metric.difference(abs(qat.score - row.score))
        values = f"{metric.text(qat.score)} against {metric.text(row.score)} {metric.name}"
        return f"{head}QAT, which continues from it, beats it by {by} ({values}).{tail}"
    return ""


def _worse_by(metric: MetricInfo, value: float, amount: float) -> float:
    return value + amount if metric.mode == "min" else value - amount


def _is_far(float_value: float, qat_value: float, metric: MetricInfo) -> bool:
    """Whether QAT is so much better than float that float was not finished: 5 points, or half of what was wrong."""
    if not metric.better(qat_value, float_value):
        return False
    if metric.percent:
        wrong, left = 1 - float_value, 1 - qat_value
        return qat_value - float_value >= 0.05 or (left < 0.5 * wrong and qat_value - float_value >= 0.01)
    if metric.mode == "min":
        return float_value > 0 and qat_value < 0.5 * float_value
    if qat_value <= 1:  # of a score that ends at 1, such as R2 or IoU
        return 1 - qat_value < 0.5 * (1 - float_value) or (float_value <= 0 and qat_value >= 0.05)
    return qat_value > 2 * max(float_value, 0)


def _place(difference: float, metric: MetricInfo) -> str:
    if not math.isfinite(difference):
        return "not comparable in numbers with"
    if difference == 0:
        return "level with"
    place = f"{metric.difference(abs(difference))} {'above' if difference > 0 else 'below'}"
    return place if metric.mode == "max" else f"{place} (lower is better)"


def _chance_words(found: PairedDifference | None, metric: MetricInfo) -> str:
    if found is None:
        return ""
    low, high = (
        f"{metric.scaled(x):+.{2 if metric.percent else 4}{'f' if metric.percent else 'g'}}"
        for x in (found.low, found.high)
    )
    p_value = "p < 0.0001" if found.p_value < 0.0001 else f"p = {found.p_value:.2g}"
    return f"95 % interval of the difference {low} to {high}, {p_value}, {found.method}, "


def _cost(qat: Row, ptq: Row, rows: Sequence[Row]) -> str:
    """What both cost: minutes, and sizes of one kind. A file has more in it than the numbers that are stored."""
    costs = []
    if qat.seconds is not None and ptq.seconds is not None:
        costs.append(f"{_minutes(qat.seconds)} against {_minutes(ptq.seconds)}")
    alike = next((row for row in (qat, *rows) if _artefact_rank(row) and row.size_kind == ptq.size_kind), qat)
    mine, theirs, whole = (format_size(row.size_bytes) for row in (alike, ptq, qat))
    if alike.size_kind != ptq.size_kind:
        costs.append(f"{mine} ({alike.size_kind}) against {theirs} ({ptq.size_kind})")
    else:
        more = "" if alike.size_kind == qat.size_kind else f"; its {qat.size_kind} has {whole}"
        costs.append(f"{mine} against {theirs} ({ptq.size_kind}{more})")
    return f"Cost: {', '.join(costs)}."


def _minutes(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} minutes"


def not_verified(found: Verdict, verification: VerificationResult) -> Verdict:
    """The verdict of a run whose file is not what was trained: whatever its accuracy, it may not be deployed."""
    why = verification.alarm or (
        f"{verification.code_mismatches:,} of {verification.codes_compared:,} codes and stored numbers differ from the "
        "integer model"
    )
    text = f"NOT VERIFIED, do not deploy {verification.file or 'the file'}: {why.rstrip('.')}."
    if found.outcome == "float_untrained":  # then this is why
        text += f" {found.text}"
    return replace(found, outcome="not_verified", text=text)


def _artefact_rank(row: Row) -> int:
    """3 for the artefact in its runtime, 2 for the integer model, 1 for fake-quant, 0 for rows without QAT."""
    order = NEAREST_TO_ARTEFACT_FIRST
    return len(order) - order.index(row.kind) if row.kind in order else 0
