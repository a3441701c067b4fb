"""The verdict: whether QAT beats post-training quantization, in words that cannot be misread."""

import math
from collections.abc import Sequence
from dataclasses import replace

from qat.report.judgement.differences import Comparison, difference_of
from qat.report.judgement.no_verdict import diverged_training, untrained_float
from qat.report.judgement.objectives import ARTEFACT_FIRST
from qat.report.judgement.paired import LEVEL, PairedDifference
from qat.report.results.metric import ACCURACY, MetricInfo
from qat.report.results.schema import Outcome, Row, Verdict
from qat.report.text_of_numbers import format_size


def verdict(
    rows: Sequence[Row],
    n_test: int,
    metric: MetricInfo = ACCURACY,
    samples: str = "images",
    comparison: Comparison | None = None,
    exploded: str = "",
) -> Verdict:
    """Compare QAT with the best PTQ row.

    QAT is represented by the row nearest to the artefact: ONNX Runtime, else the integer model, else fake-quant. Taking
    the best of several PTQ rows favours PTQ, which is the safe side to err on. A difference counts if its p-value is below
    0.05. A float network that is no better than chance, or that QAT beats by far, was not trained: then nothing is won.
    Nor is anything lost to a training whose weights exploded: it diverged.

    Args:
        rows: the models that were compared.
        n_test: number of test samples behind each value.
        metric: what was measured.
        samples: what the samples are called.
        comparison: compares two rows on the same samples. None, or without a result: they count as measured on different
            samples, which is cautious, if their standard errors are known.
        exploded: a sentence that says which weights grew many times over in training. "": none did.

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
    untrained = untrained_float(rows, qat, n_test, metric, comparison)
    if untrained:
        return Verdict("float_untrained", untrained, qat.name, ptq.name if ptq else None)
    diverged = diverged_training(rows, qat, n_test, metric, comparison, exploded)
    if diverged:
        return Verdict("diverged", diverged, qat.name, ptq.name if ptq else None)
    if ptq is None:
        return Verdict("undecided", "Undecided: no PTQ row to compare QAT with.", qat=qat.name)
    found = difference_of(qat, ptq, n_test, metric, comparison)
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
        "Give Report a torchmetrics object, or a function of (outputs, targets) with a value for any of the samples: they tell."
    )


def _without_numbers(outcome: Outcome, qat: Row, ptq: Row) -> tuple[str, str]:
    """The same of two values of which one is not a number or infinite."""
    broken = [row for row in (qat, ptq) if not math.isfinite(row.score)]
    names = " and ".join(row.name for row in broken)
    if len(broken) == 2:
        return f"Undecided: {names} have no value that can be compared", "Ship neither before it is known why."
    head = f"QAT WON: {names} has no value" if outcome == "qat_won" else f"QAT LOST to {ptq.name}: {names} has no value"
    return head, f"Find out why before {'it is called a baseline' if broken[0] is ptq else 'QAT is tried again'}."


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


def not_verified(found: Verdict, what: str, why: str) -> Verdict:
    """The verdict of a run whose file is not what was trained: whatever its accuracy, it may not be deployed.

    what: the file. why: a sentence.
    """
    text = f"NOT VERIFIED, do not deploy {what or 'the file'}: {why.rstrip('.')}."
    if found.outcome == "float_untrained":  # then this is why
        text += f" {found.text}"
    return replace(found, outcome="not_verified", text=text)


def _artefact_rank(row: Row) -> int:
    """3 for the artefact in its runtime, 2 for the integer model, 1 for fake-quant, 0 for rows without QAT."""
    return len(ARTEFACT_FIRST) - ARTEFACT_FIRST.index(row.kind) if row.kind in ARTEFACT_FIRST else 0
