"""The verdict: whether QAT beats post-training quantization, in words that cannot be misread."""

import math
from collections.abc import Sequence
from dataclasses import replace

from qat.report.schema import Outcome, Row, Verdict, VerificationResult

NEAREST_TO_ARTEFACT_FIRST = ("qat_onnxruntime", "qat_integer", "qat_fake_quant")


def binomial_error(fraction: float, n: int) -> float:
    """Standard error of an accuracy measured on `n` images, as a fraction.

    >>> round(binomial_error(0.9, 10_000), 4)
    0.003
    """
    return math.sqrt(fraction * (1.0 - fraction) / n)


def verdict(rows: Sequence[Row], n_test: int) -> Verdict:
    """Compare QAT with the best PTQ row.

    QAT is represented by the row nearest to the artefact: ONNX Runtime, else the integer model, else fake-quant. Taking
    the best of several PTQ rows favours PTQ, which is the safe side to err on.

    A difference counts if it is at least two standard errors. The error adds the binomial variances of both rows as if
    they had seen different images. They saw the same images, which makes the true error smaller, so the verdict is "no
    measurable difference" too often rather than too rarely.

    Args:
        rows: the models that were compared.
        n_test: number of test images behind each accuracy.

    Raises:
        ValueError: `n_test` is less than 1.

    >>> size = {"size_bytes": 280_000, "size_kind": "stored"}
    >>> rows = [Row("PTQ MSE", "ptq", 0.90, **size), Row("QAT integer", "qat_integer", 0.92, **size)]
    >>> print(verdict(rows, n_test=10_000).text)
    QAT WON: QAT integer is 2.00 points above PTQ MSE (92.00 % against 90.00 %, standard error 0.40, 10,000 test images).
    """
    if n_test < 1:
        raise ValueError(f"n_test={n_test}: give the number of test images behind the rows, at least 1")
    qat = max(rows, key=lambda row: (_artefact_rank(row), row.top1), default=None)
    ptq = max((row for row in rows if row.kind == "ptq"), key=lambda row: row.top1, default=None)
    if qat is None or not _artefact_rank(qat):
        return Verdict("undecided", "Undecided: no QAT row was measured.", ptq=ptq.name if ptq else None)
    if ptq is None:
        return Verdict("undecided", "Undecided: no PTQ row to compare QAT with.", qat=qat.name)

    difference = qat.top1 - ptq.top1
    error = math.hypot(binomial_error(qat.top1, n_test), binomial_error(ptq.top1, n_test))
    points = f"{abs(100 * difference):.2f} points"
    evidence = (
        f"{100 * qat.top1:.2f} % against {100 * ptq.top1:.2f} %, "
        f"standard error {100 * error:.2f}, {n_test:,} test images"
    )
    outcome: Outcome
    if difference == 0 or abs(difference) < 2 * error:
        outcome = "no_difference"
        place = "level with" if difference == 0 else f"{points} {'above' if difference > 0 else 'below'}"
        text = f"No measurable difference: {qat.name} is {place} {ptq.name} ({evidence}). The PTQ model is cheaper."
    elif difference > 0:
        outcome = "qat_won"
        text = f"QAT WON: {qat.name} is {points} above {ptq.name} ({evidence})."
    else:
        outcome = "qat_lost"
        text = f"QAT LOST to {ptq.name} by {points}: ship the PTQ model ({qat.name}: {evidence})."
    return Verdict(outcome, text, qat.name, ptq.name, 100 * difference, 100 * error)


def not_verified(found: Verdict, verification: VerificationResult) -> Verdict:
    """The verdict of a run whose file is not what was trained: whatever its accuracy, it may not be deployed."""
    why = verification.alarm or (
        f"{verification.code_mismatches:,} of {verification.codes_compared:,} codes and stored numbers differ from the "
        "integer model"
    )
    text = f"NOT VERIFIED, do not deploy {verification.file or 'the file'}: {why.rstrip('.')}."
    return replace(found, outcome="not_verified", text=text)


def _artefact_rank(row: Row) -> int:
    """3 for the artefact in its runtime, 2 for the integer model, 1 for fake-quant, 0 for rows without QAT."""
    order = NEAREST_TO_ARTEFACT_FIRST
    return len(order) - order.index(row.kind) if row.kind in order else 0
