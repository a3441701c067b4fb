"""The text form of an allocation."""

from __future__ import annotations

from collections.abc import Sequence

from qat.report.results.allocation import AllocationResult
from qat.search.budget import FLOAT


def table(record: AllocationResult) -> str:
    """Costs, one line for each layer, and the Pareto front."""
    costs: list[tuple[str, ...]] = [("cost", "chosen", "limit", "fewest bits", "most bits", "float", "unit")]
    for cost in record.costs:
        numbers = (cost.value, cost.limit, cost.lowest, cost.highest, cost.in_float)
        costs.append((cost.name, *("" if n is None else f"{n:,.6g}" for n in numbers), cost.unit))
    layers: list[tuple[str, ...]] = [("layer", "weights", "multiply-adds", "weight", "input", "harm", "")]
    for layer in record.layers:
        bits = (_bits(layer.weight_bits), _bits(layer.activation_bits))
        note = "kept" if layer.kept else f"shares with {layer.shares}" if layer.shares else ""
        harm = "" if layer.harm is None else f"{layer.harm:.4g}"
        layers.append((layer.layer, f"{layer.weights:,}", f"{layer.multiply_adds:,}", *bits, harm, note))
    text = [*_lines(costs), "", *_lines(layers), "", f"harm: {record.method}"]
    if record.points:
        points: list[tuple[str, ...]] = [("bits", record.costs[0].name, "harm, summed", "harm, measured", "")]
        for point in record.points:
            measured = "" if point.measured is None else f"{point.measured:.4g}"
            mark = "<- chosen" if point.chosen else ""
            points.append((point.name, f"{point.cost:,.6g}", f"{point.predicted:.4g}", measured, mark))
        text += ["", *_lines(points)]
    return "\n".join(text)


def _bits(bits: int | None) -> str:
    return FLOAT if bits is None else str(bits)


def _lines(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i in (0, len(row) - 1) else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
