"""The bits of every layer, the Pareto front and other runs, as tables and sentences."""

from qat.report.judgement.paired import LEVEL
from qat.report.results.allocation import AllocationResult, OtherRun
from qat.report.results.metric import MetricInfo
from qat.report.text.tables import ABSENT, TextTable
from qat.report.text_of_numbers import format_size

CERTAIN = 2.0
"""Paired standard errors from which on a network counts as better."""


def cost_table(found: AllocationResult) -> TextTable:
    """One line for each cost, the limited ones first."""
    header = ("cost", "unit", "chosen", "limit", "fewest bits", "most bits", "float")
    cells = [(c.name, c.unit, *map(_number, (c.value, c.limit, c.lowest, c.highest, c.in_float))) for c in found.costs]
    return TextTable(header, cells, text_columns=2)


def layer_table(found: AllocationResult) -> TextTable:
    """One line for each layer, in the order in which they run."""
    header = ("layer", "note", "weights", "multiply-adds", "weight bits", "input bits", "harm")
    cells = []
    for layer in found.layers:
        note = "kept" if layer.kept else f"shares with {layer.shares}" if layer.shares else ""
        bits = ("float" if b is None else str(b) for b in (layer.weight_bits, layer.activation_bits))
        cells.append(
            (layer.layer, note, f"{layer.weights:,}", f"{layer.multiply_adds:,}", *bits, _number(layer.harm, 4))
        )
    return TextTable(header, cells, text_columns=2)


def point_table(found: AllocationResult) -> TextTable:
    """The Pareto front and the uniform choices, by their cost."""
    header = ("bits", "", found.costs[0].name, "harm, summed", "harm, measured")
    cells = [
        (
            point.name,
            "chosen" if point.chosen else "",
            _number(point.cost),
            _number(point.predicted, 4),
            _number(point.measured, 4),
        )
        for point in found.points
    ]
    return TextTable(header, cells, text_columns=2)


def harm_words(found: AllocationResult) -> str:
    """What the numbers in the tables mean."""
    return (
        f"Harm is {found.method}; of a layer, that of its weight and its input. It is that of rounding alone, before any "
        "training. Uniform bits (w4: 4 bits in all searched layers) stand beside the best mixed ones."
    )


def other_run_sentence(found: OtherRun, metric: MetricInfo) -> str:
    """Whether this run beat another one, and the sizes of both files.

    >>> from qat.report.results.metric import ACCURACY
    >>> print(other_run_sentence(OtherRun("QAT", "w3a8", 0.004, 0.003, False, 900, 1000), ACCURACY))
    QAT did not beat w3a8: 0.40 ± 0.30 points, less than two paired standard errors (files of 900 B and 1.00 kB).
    """
    files = f"(files of {format_size(found.size_bytes)} and {format_size(found.other_size_bytes)})"
    if found.difference is None or found.standard_error is None:
        return f"Nothing tells whether {found.row} beats {found.other} {files}."
    amount = f"{metric.difference(found.difference).replace(' ', f' ± {metric.number(found.standard_error)} ', 1)}"
    if found.better:
        return f"{found.row} beat {found.other} by {amount}, at least two paired standard errors {files}."
    is_large = abs(found.difference) >= CERTAIN * found.standard_error
    is_worse = metric.better(0.0, found.difference) and is_large
    why = "worse by at least two paired standard errors" if is_worse else "less than two paired standard errors"
    if is_large and found.p_value is not None and found.p_value >= LEVEL:
        why = f"p = {found.p_value:.2g}, too few samples"
    return f"{found.row} did not beat {found.other}: {amount}, {why} {files}."


def _number(value: float | None, digits: int = 6) -> str:
    return ABSENT if value is None else f"{value:,.{digits}g}"
