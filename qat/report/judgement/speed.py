"""Which quantized files are slower than float, and what was measured of them."""

from collections.abc import Mapping, Sequence

from qat.report.results.environment import Environment
from qat.report.results.schema import Row, VerificationResult

SLOWER = 1.05
"""Times float's latency, above which it is said: less is noise."""
LARGE_SHARE, NAMED = 0.1, 3
"""Share of the time above which an operator is named, and how many are."""


def speed_sentences(
    rows: Sequence[Row], environment: Environment, verification: VerificationResult | None = None
) -> list[str]:
    """A sentence about every file that is slower than the float one; empty if none is.

    It says where the time goes, if that was measured, and what the file and the processor are; it names no cause, since
    none was varied.
    """
    reference = next((row for row in rows if row.kind == "float"), None)
    if reference is None:
        return []
    found = []
    for row in rows:
        slower = [
            f"{ratio:.2f}× at batch {batch}"
            for batch, ratio in _ratios(row, reference).items()
            if ratio > SLOWER and row.kind in ("ptq", "qat_onnxruntime")
        ]
        if slower:
            of_this_file = verification if row.kind == "qat_onnxruntime" else None
            facts = "; ".join(_facts(environment, of_this_file))
            found.append(f"{row.name} is slower than float ({', '.join(slower)}): {facts}.")
    return found


def _ratios(row: Row, reference: Row) -> dict[int, float]:
    pairs = {
        1: (row.latency_ms_batch1, reference.latency_ms_batch1),
        32: (row.latency_ms_batch32, reference.latency_ms_batch32),
    }
    return {batch: mine / theirs for batch, (mine, theirs) in pairs.items() if mine and theirs}


def _facts(environment: Environment, verification: VerificationResult | None) -> list[str]:
    """What was measured first, then what was read from the file and the processor."""
    facts = [_slowest({} if verification is None else verification.latency_shares)]
    operators: Mapping[str, int] = {} if verification is None else verification.quantized_operators
    if dynamic := operators.get("ConvInteger"):
        facts.append(f"{dynamic} of its convolutions have dynamic ranges (ConvInteger)")
    if in_float := sum(operators.get(name, 0) for name in ("Conv", "Gemm", "MatMul")):
        facts.append(f"{in_float} of its products are computed in float")
    if environment.vnni is False:
        facts.append(
            "this processor has no instructions for products of 8-bit numbers (VNNI); measure it with weights of 7 bits, too "
            "(policy.reduce_range=true)"
        )
    return facts


def _slowest(shares: Mapping[str, float]) -> str:
    """The operators that take most of the time."""
    slowest = [name for name in shares if shares[name] > LARGE_SHARE][:NAMED]
    if not shares:
        return "where its time goes was not measured"
    if not slowest:
        return f"no operator takes more than {LARGE_SHARE:.0%} of the time"
    first, *others = (f"{shares[name]:.0%}{{}} in {name}" for name in slowest)
    return ", ".join([first.format(" of the time is"), *(other.format("") for other in others)])
