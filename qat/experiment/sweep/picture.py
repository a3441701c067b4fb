"""Accuracy against size and latency of the groups of a sweep, with the Pareto front."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from qat.experiment.sweep.summary import Group, score
from qat.report import Results, Row
from qat.report.judgement.objectives import best_ptq, float_row, of_row
from qat.report.pictures.picture_labels import Label, draw_column
from qat.report.pictures.plots import FAINT, INK, QAT_BLUE, ROW_STYLES, RowStyle
from qat.report.results.metric import MetricInfo
from qat.report.text_of_numbers import format_size

PANELS = (("size_bytes", "size of the file"), ("latency_ms_batch1", "milliseconds per call, batch 1"))

MOST_LABELS = 12
"""With more groups than this, only those on the front are named."""


def draw_front(groups: Sequence[Group]) -> bytes:
    """A panel for size and one for latency, as PNG; the latter only if it was measured."""
    groups = [group for group in groups if group.results and group.spread(score)]
    panels = [(name, label) for name, label in PANELS if any(group.spread(of_row(name)) for group in groups)]
    figure = Figure(figsize=(8.5, 0.6 + 3.9 * max(1, len(panels))), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, label) in zip(figure.subplots(len(panels) or 1, squeeze=False)[:, 0], panels, strict=False):
        _panel(axes, groups, name, label)
    recipes = dict.fromkeys(results.recipe for group in groups for results in group.results)
    figure.suptitle(
        f"{', '.join(recipes)}: accuracy against cost", x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, value) that no other beats in both: less cost, more value. By rising cost.

    >>> front([(2.0, 0.9), (1.0, 0.5), (3.0, 0.8), (1.5, 0.4)])
    [(1.0, 0.5), (2.0, 0.9)]
    """
    kept: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or value > kept[-1][1]:
            kept.append((cost, value))
    return kept


def _panel(axes: Axes, groups: Sequence[Group], name: str, label: str) -> None:
    metric: MetricInfo = groups[0].results[0].metric
    labels, points = [], []
    for group in groups:
        cost, value = group.spread(of_row(name)), group.spread(score)
        if cost is None or value is None:
            continue
        shown = value.scaled(100 if metric.percent else 1)
        axes.errorbar(cost.mean, shown.mean, yerr=shown.deviation, fmt="o", color=QAT_BLUE, markersize=8, capsize=3)
        labels.append(Label(f"{group.name}  {metric.text(value.mean)}", cost.mean, shown.mean, QAT_BLUE))
        points.append((cost.mean, shown.mean if metric.mode == "max" else -shown.mean))
    best = front(points)
    if len(labels) > MOST_LABELS:
        labels = [label for label, point in zip(labels, points, strict=True) if point in best]
    axes.plot(
        [cost for cost, _ in best], [v if metric.mode == "max" else -v for _, v in best],
        color=QAT_BLUE, linewidth=1, linestyle=(0, (4, 3)), zorder=0,
    )  # fmt: skip
    for group in groups:
        _reference(axes, [group], name, ROW_STYLES["ptq"], best_ptq)
    found = _reference(axes, groups, name, ROW_STYLES["float"], float_row)
    labels += (
        []
        if found is None
        else [Label(f"float, mean  {metric.text(found[1])}", found[0], metric.scaled(found[1]), INK)]
    )
    axes.set_xlim(left=0)
    axes.margins(x=0.08, y=0.15)
    if name == "size_bytes":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_size(round(value))))
    draw_column(axes, labels, at=1.0)
    squares = "; squares: the best PTQ of each, its stored size" if name == "size_bytes" else ""
    axes.set_xlabel(f"{label}; whiskers: standard deviation over seeds\ndashed: Pareto front{squares}", color=INK)
    axes.set_ylabel(f"test {metric.heading}", color=INK)
    axes.set_axisbelow(True)
    axes.grid(color=FAINT)
    axes.tick_params(colors=INK, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _reference(
    axes: Axes,
    groups: Sequence[Group],
    name: str,
    style: RowStyle,
    row: Callable[[Results], Row | None],
) -> tuple[float, float] | None:
    """Draw the mean of a kind of row over the runs of some groups. Returns cost and value; None if it was not measured."""
    rows = [found for group in groups for results in group.results if (found := row(results)) is not None]
    costs = [getattr(r, name) for r in rows]
    if not rows or any(cost is None for cost in costs):
        return None
    metric = groups[0].results[0].metric
    cost, value = sum(costs) / len(costs), sum(r.score for r in rows) / len(rows)
    axes.plot(cost, metric.scaled(value), marker=style.marker, color=style.color, markersize=8, markerfacecolor="white")
    return cost, value
