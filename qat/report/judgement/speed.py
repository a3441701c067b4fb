"""Where the quantized file is slower than float, and why."""

from collections.abc import Mapping, Sequence

from qat.report.results.environment import Environment
from qat.report.results.schema import Row, VerificationResult

SLOWER = 1.05
"""Times float's latency, above which it is said: less is noise."""
SMALL_FILE = 1_000_000
"""Bytes of a float file below which a call is mostly overhead of the operators."""

LARGE_SHARE, NAMED = 0.1, 3
"""Share of the time above which an operator is named, and how many are."""
POOLING = "pooling of codes has no fast kernel in ONNX Runtime"
SLOW_ON_CODES = {
    "QLinearConv": "8-bit convolutions copy the window of every pixel, for few channels at the same cost as for many",
    "MaxPool": POOLING,
    "NhwcMaxPool": POOLING,
}
"""Operator of ONNX Runtime -> why it is slower than on floats."""


def speed_sentences(
    rows: Sequence[Row], environment: Environment, verification: VerificationResult | None = None
) -> list[str]:
    """Sentences about every file that is slower than the float one; empty if none is."""
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
            why = "; ".join(_reasons(reference, environment, verification))
            found.append(f"{row.name} is slower than float ({', '.join(slower)}): {why}.")
    return found


def _ratios(row: Row, reference: Row) -> dict[int, float]:
    pairs = {
        1: (row.latency_ms_batch1, reference.latency_ms_batch1),
        32: (row.latency_ms_batch32, reference.latency_ms_batch32),
    }
    return {batch: mine / theirs for batch, (mine, theirs) in pairs.items() if mine and theirs}


def _reasons(reference: Row, environment: Environment, verification: VerificationResult | None) -> list[str]:
    """What is known to make it slow here, the strongest reason first."""
    operators: Mapping[str, int] = verification.quantized_operators if verification is not None else {}
    reasons = []
    if operators.get("ConvInteger"):
        reasons.append("ConvInteger, of dynamic ranges, has no fast kernel in ONNX Runtime")
    in_float = sum(operators.get(name, 0) for name in ("Conv", "Gemm", "MatMul"))
    if in_float and not any(operators.get(name) for name in ("QLinearConv", "QLinearMatMul", "QGemm")):
        reasons.append("it computes in float and unpacks its weights first, which saves space and not time")
    elif in_float:
        reasons.append(f"{in_float} of its products are computed in float, with conversions around them")
    if environment.vnni is False:
        reasons.append(
            "this processor has no instructions for products of 8-bit numbers (VNNI), so exact ones take three steps each, "
            "unless weights have 7 bits (policy.reduce_range=true)"
        )
    reasons += _slowest({} if verification is None else verification.latency_shares)
    if reference.size_kind == "file" and reference.size_bytes < SMALL_FILE:
        reasons.append(
            "the network is so small that a call is mostly overhead of its operators, of which the quantized file has more"
        )
    return reasons or [
        "rounding and clipping every output cost more than 8-bit products save at these shapes; profile it in the target's "
        "runtime"
    ]


def _slowest(shares: Mapping[str, float]) -> list[str]:
    """The operators that take most of the time, and why they are slow on codes, as far as that is known."""
    slowest = [name for name in shares if shares[name] > LARGE_SHARE][:NAMED]
    if not slowest:
        return []
    first, *others = (f"{shares[name]:.0%}{{}} in {name}" for name in slowest)
    named = [first.format(" of the time is"), *(other.format("") for other in others)]
    kinds = dict.fromkeys(name.rpartition("(")[2].removesuffix(")") for name in slowest)
    return [", ".join(named), *dict.fromkeys(SLOW_ON_CODES[kind] for kind in kinds if kind in SLOW_ON_CODES)]
