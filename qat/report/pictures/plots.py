"""The pictures of the report as PNG bytes, in colours that colour-blind readers can tell apart.

Every kind of row has one colour (Okabe & Ito 2008) and one marker, the same in all pictures.
"""

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from qat.report.judgement.differences import standard_error
from qat.report.pictures.picture_labels import Label, draw_column
from qat.report.pictures.placement import beside_each_other
from qat.report.results.oscillations import OscillationResult
from qat.report.results.schema import SHIPPABLE, Results, Row, RowKind
from qat.report.text.tables import error_words
from qat.report.text_of_numbers import format_size

ACCURACY, TRAINING, OSCILLATIONS = "accuracy.png", "training.png", "oscillations.png"
SIZE, LATENCY = "size.png", "latency.png"
INK, FAINT = "#333333", "#d9d9d9"


class RowStyle(NamedTuple):
    """How a kind of row is drawn."""

    color: str
    marker: str


QAT_BLUE = "#0072B2"
ROW_STYLES: dict[RowKind, RowStyle] = {
    "float": RowStyle("#5a5a5a", "D"),
    "ptq": RowStyle("#D55E00", "s"),
    "outside": RowStyle("#CC79A7", "X"),
    "other_run": RowStyle("#009E73", "h"),
    "step0": RowStyle("#56B4E9", "^"),
    "qat_fake_quant": RowStyle(QAT_BLUE, "v"),
    "qat_integer": RowStyle(QAT_BLUE, "P"),
    "qat_onnxruntime": RowStyle(QAT_BLUE, "o"),
    "qat_target": RowStyle(QAT_BLUE, "p"),
}


def draw_all(results: Results) -> dict[str, bytes]:
    """Draw every picture that `results` has data for: file name -> PNG bytes."""
    with rc_context({"text.parse_math": False}):  # names and units are the user's: $ is no formula
        return _draw_all(results)


def _draw_all(results: Results) -> dict[str, bytes]:
    pictures = {}
    rows = [row for row in results.rows if math.isfinite(row.score)]
    if rows:
        pictures[ACCURACY] = draw_accuracy(results)
    if any(row.kind in SHIPPABLE for row in rows):
        pictures[SIZE] = draw_size(results)
    if sum(row.latency_ms_batch1 is not None for row in rows) > 1:
        pictures[LATENCY] = draw_latency(results)
    if results.training is not None and any(value is not None for value in results.training.curve):
        pictures[TRAINING] = draw_training(results)
    if results.oscillations is not None:
        pictures[OSCILLATIONS] = draw_oscillations(results.oscillations, results.recipe)
    return pictures


def draw_accuracy(results: Results) -> bytes:
    """The metric on the test data of every row, with one standard error to each side, as in the table.

    Dots instead of bars: the axis starts near the data so that half a point is visible, and the length of a bar that
    does not start at zero is misleading.
    """
    rows, metric = [row for row in results.rows if math.isfinite(row.score)], results.metric
    figure, axes = _canvas(height=1.5 + 0.42 * len(rows))
    references: tuple[RowKind, ...] = ("float", "ptq")
    for kind in references:
        best = max((row.score for row in rows if row.kind == kind), key=metric.rank, default=None)
        if best is not None:
            axes.axvline(
                metric.scaled(best),
                color=ROW_STYLES[kind].color,
                linewidth=1,
                linestyle=(0, (4, 4)),
                alpha=0.5,
                zorder=0,
            )
    for position, row in enumerate(rows):
        style = ROW_STYLES[row.kind]
        axes.errorbar(
            metric.scaled(row.score), position, xerr=_error(row, results), fmt=style.marker, color=style.color,
            markersize=8, capsize=4, linewidth=2,
        )  # fmt: skip
        axes.annotate(
            metric.text(row.score), (1.0, position), xycoords=("axes fraction", "data"), xytext=(8, 0),
            textcoords="offset points", va="center", color=INK, fontweight="bold",
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    data = results.data
    axes.set_xlabel(
        f"{metric.heading} on {data.test:,} test {data.samples}, {metric.direction}\n"
        f"whiskers: {error_words(metric)}; dashed: float and the best PTQ"
    )
    axes.grid(axis="x", color=FAINT)
    return _png(figure, axes, f"{results.recipe}: {metric.name}")


def draw_training(results: Results) -> bytes:
    """The metric on the validation data per epoch, the best epoch marked. Test values are not drawn: other data."""
    training, metric = results.training, results.metric
    if training is None:
        raise ValueError("these results have no training to draw")
    figure, axes = _canvas(height=4.0)
    curve = [math.nan if value is None else metric.scaled(value) for value in training.curve]
    axes.plot(range(1, len(curve) + 1), curve, color=QAT_BLUE, marker="o", markersize=4, linewidth=2)
    best = ""
    if 1 <= training.best_epoch <= len(curve) and math.isfinite(curve[training.best_epoch - 1]):
        place = (training.best_epoch, curve[training.best_epoch - 1])
        axes.plot(*place, marker="*", markersize=15, color=QAT_BLUE, markeredgecolor="white", linestyle="none")
        value = training.curve[training.best_epoch - 1]
        best = f"; star: the epoch that was kept, {metric.text(math.nan if value is None else value)}"
    axes.set_xlim(0.5, len(curve) + 0.5)
    axes.margins(y=0.12)
    if len({value for value in curve if math.isfinite(value)}) == 1:  # a flat line needs no wide axis
        low = max(value for value in curve if math.isfinite(value))
        axes.set_ylim(low - 0.01 * abs(low), low + 0.01 * abs(low) or 1.0)
    if metric.percent:
        axes.set_ylim(top=min(axes.get_ylim()[1], 100.2))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"epoch\n{results.data.val:,} validation {results.data.samples}{best}")
    axes.set_ylabel(f"validation {metric.heading}")
    axes.grid(axis="y", color=FAINT)
    return _png(figure, axes, f"{results.recipe}: QAT on validation data")


def draw_size(results: Results) -> bytes:
    """The metric against size, for the models that can be shipped (fake-quant rows only simulate an artefact in float)."""
    rows = [row for row in results.rows if row.kind in SHIPPABLE and math.isfinite(row.score)]
    figure, axes = _canvas(height=4.6)
    _scatter(axes, results, rows, [row.size_bytes for row in rows])
    axes.xaxis.set_major_locator(MaxNLocator(5))  # labels with units are wide
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_size(round(value))))
    kinds = {row.size_kind for row in rows}
    meaning = {
        "file": "filled: size of the file",
        "stored": "hollow: bytes of codes, scales and biases\n(moved a little where they would overlap)",
    }
    axes.set_xlabel(f"{'; '.join(text for kind, text in meaning.items() if kind in kinds)}\n{_whiskers(results)}")
    return _png(figure, axes, f"{results.recipe}: {results.metric.name} against size")


def draw_latency(results: Results) -> bytes:
    """The metric against the latency of one call with one sample, for the models that were timed."""
    rows = [row for row in results.rows if row.latency_ms_batch1 is not None and math.isfinite(row.score)]
    figure, axes = _canvas(height=4.2)
    _scatter(axes, results, rows, [row.latency_ms_batch1 or 0.0 for row in rows])
    axes.set_xlabel(f"milliseconds per call, batch 1, in ONNX Runtime\n{_whiskers(results)}")
    return _png(figure, axes, f"{results.recipe}: {results.metric.name} against latency")


def _scatter(axes: Axes, results: Results, rows: Sequence[Row], values: Sequence[float]) -> None:
    """Points with whiskers; those that would hide each other stand side by side, and all names are right of the axes."""
    metric, widest = results.metric, 1.08 * max(values)
    # files keep their places, others give way
    order = sorted(range(len(rows)), key=lambda index: rows[index].size_kind)
    rows, values = [rows[index] for index in order], [values[index] for index in order]
    heights = [metric.scaled(row.score) for row in rows]
    errors = [_error(row, results) for row in rows]
    marker = 0.035 * (max(heights) - min(heights))
    reach = [max(error or 0.0, marker) for error in errors]
    spans = [(x, y - r, y + r) for x, y, r in zip(values, heights, reach, strict=True)]
    labels = []
    for row, x, y, error in zip(rows, beside_each_other(spans, 0.016 * widest), heights, errors, strict=True):
        style = ROW_STYLES[row.kind]
        axes.errorbar(
            x, y, yerr=error, fmt=style.marker, color=style.color, markersize=8, capsize=3, linewidth=1.2,
            markerfacecolor="white" if row.size_kind == "stored" else style.color,
        )  # fmt: skip
        labels.append(Label(f"{row.name}  {metric.text(row.score)}", x, y, style.color))
    axes.set_xlim(0, widest)
    axes.margins(y=0.15)
    draw_column(axes, labels, at=1.0)
    axes.set_ylabel(f"test {metric.heading}")
    axes.grid(color=FAINT)


def draw_oscillations(oscillations: OscillationResult, recipe: str) -> bytes:
    """Share of oscillating and of frozen weights: two bars per layer, in the order of the network."""
    figure, axes = _canvas(height=2.2 + 0.3 * len(oscillations.layers))
    for shift, name, color in ((-0.19, "oscillating", ROW_STYLES["ptq"].color), (0.19, "frozen", QAT_BLUE)):
        shares = [100 * getattr(layer, name) / layer.weights for layer in oscillations.layers]
        places = [place + shift for place in range(len(shares))]
        axes.barh(places, shares, height=0.36, color=color)
        for place, share in zip(places, shares, strict=True):
            axes.annotate(
                f"{share:.2g} % {name}", (share, place), xytext=(4, 0), textcoords="offset points", va="center",
                color=color, fontsize=7, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            )  # fmt: skip
    axes.set_yticks(range(len(oscillations.layers)), [layer.layer for layer in oscillations.layers])
    axes.set_ylim(len(oscillations.layers) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.margins(x=0.18)
    axes.set_xlabel(f"share of the layer's weights, %   (oscillating: frequency above {oscillations.threshold:g})")
    axes.grid(axis="x", color=FAINT)
    return _png(figure, axes, f"{recipe}: oscillations at the end of the training")


def _error(row: Row, results: Results) -> float | None:
    """One standard error in the unit of the axis."""
    error = standard_error(row, results.data.test, results.metric)
    return None if error is None else results.metric.scaled(error)


def _whiskers(results: Results) -> str:
    return f"whiskers: {error_words(results.metric)} on {results.data.test:,} test {results.data.samples}"


def _canvas(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.5, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _png(figure: Figure, axes: Axes, title: str) -> bytes:
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(INK)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=12)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    buffer = io.BytesIO()
    # no version of matplotlib, so that equal data give equal bytes
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
