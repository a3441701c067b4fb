"""The pictures of the report as PNG bytes, in colours that colour-blind readers can tell apart.

Every kind of row has one colour (Okabe & Ito 2008) and one marker, the same in all pictures.
"""

import io
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from qat.report.picture_labels import Label, draw_column, group_into_columns
from qat.report.schema import OscillationResult, Results, Row, RowKind
from qat.report.tables import format_size
from qat.report.verdicts import binomial_error

ACCURACY, TRAINING, SIZE, OSCILLATIONS = "accuracy.png", "training.png", "size.png", "oscillations.png"
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
    "step0": RowStyle("#56B4E9", "^"),
    "qat_fake_quant": RowStyle(QAT_BLUE, "v"),
    "qat_integer": RowStyle(QAT_BLUE, "P"),
    "qat_onnxruntime": RowStyle(QAT_BLUE, "o"),
}
SHIPPABLE: tuple[RowKind, ...] = ("float", "ptq", "outside", "qat_integer", "qat_onnxruntime")


def draw_all(results: Results) -> dict[str, bytes]:
    """Draw every picture that `results` has data for: file name -> PNG bytes."""
    pictures = {}
    if results.rows:
        pictures[ACCURACY] = draw_accuracy(results)
    if any(row.kind in SHIPPABLE for row in results.rows):
        pictures[SIZE] = draw_size(results)
    if results.training is not None and any(value is not None for value in results.training.val_top1):
        pictures[TRAINING] = draw_training(results)
    if results.oscillations is not None:
        pictures[OSCILLATIONS] = draw_oscillations(results.oscillations, results.recipe)
    return pictures


def draw_accuracy(results: Results) -> bytes:
    """Test accuracy of every row, with two standard errors to each side.

    Dots instead of bars: the axis starts near the data so that half a point is visible, and the length of a bar that
    does not start at zero is misleading.
    """
    rows, n = results.rows, results.data.test
    figure, axes = _canvas(height=1.5 + 0.42 * len(rows))
    references: tuple[RowKind, ...] = ("float", "ptq")
    for kind in references:
        for best in sorted((row.top1 for row in rows if row.kind == kind), reverse=True)[:1]:
            axes.axvline(100 * best, color=ROW_STYLES[kind].color, linewidth=1, linestyle=(0, (4, 4)), alpha=0.5)
    for position, row in enumerate(rows):
        style = ROW_STYLES[row.kind]
        top1, error = 100 * row.top1, 200 * binomial_error(row.top1, n)
        axes.errorbar(
            top1, position, xerr=error, fmt=style.marker, color=style.color, markersize=8, capsize=4, linewidth=2
        )
        axes.annotate(
            f"{top1:.2f} %", (1.0, position), xycoords=("axes fraction", "data"), xytext=(8, 0),
            textcoords="offset points", va="center", color=INK, fontweight="bold",
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"top-1 accuracy on {n:,} test images, %   (whiskers: ± 2 standard errors)")
    axes.grid(axis="x", color=FAINT)
    return _png(figure, axes, f"{results.recipe}: accuracy")


def draw_training(results: Results) -> bytes:
    """Validation accuracy per epoch with the best epoch marked, and the float and PTQ rows for reference."""
    training = results.training
    if training is None:
        raise ValueError("these results have no training to draw")
    figure, axes = _canvas(height=4.4)
    curve = [float("nan") if value is None else 100 * value for value in training.val_top1]
    epochs = range(1, len(curve) + 1)
    axes.plot(epochs, curve, color=QAT_BLUE, marker="o", markersize=4, linewidth=2)
    if 1 <= training.best_epoch <= len(curve):
        best = (training.best_epoch, curve[training.best_epoch - 1])
        axes.plot(*best, marker="*", markersize=15, color=QAT_BLUE, markeredgecolor="white", linestyle="none")
        axes.annotate(
            f"best: {best[1]:.2f} %", best, xytext=(0, -20), textcoords="offset points", ha="center", color=QAT_BLUE
        )
    references = [row for row in results.rows if row.kind in ("float", "ptq")]
    for row in references:
        axes.axhline(100 * row.top1, color=ROW_STYLES[row.kind].color, linewidth=1.2, linestyle=(0, (5, 3)))
    axes.set_xlim(0.5, len(curve) + 0.5)
    axes.margins(y=0.12)
    draw_column(axes, [_label(row, len(curve) + 0.5) for row in references], at=1.0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch   (solid: QAT on validation data; dashed: the other rows, on test data)")
    axes.set_ylabel("top-1 accuracy, %")
    axes.grid(axis="y", color=FAINT)
    return _png(figure, axes, f"{results.recipe}: accuracy during training")


def draw_size(results: Results) -> bytes:
    """Accuracy against size, for the models that can be shipped (fake-quant rows only simulate an artefact in float)."""
    rows = [row for row in results.rows if row.kind in SHIPPABLE]
    figure, axes = _canvas(height=4.4)
    widest = max(row.size_bytes for row in rows)
    for row in rows:
        style = ROW_STYLES[row.kind]
        error = 200 * binomial_error(row.top1, results.data.test)
        axes.errorbar(
            row.size_bytes, 100 * row.top1, yerr=error, fmt=style.marker, color=style.color, markersize=9,
            capsize=3, linewidth=1.2,
        )  # fmt: skip
    axes.set_xlim(0, right := 1.08 * widest)
    axes.margins(y=0.15)
    labels = [_label(row, row.size_bytes) for row in rows]
    small, *large = group_into_columns(labels, tolerance=0.4 * widest)
    if len(large) == 1 and small[-1].x < 0.45 * widest:  # the usual case: all artefacts are far smaller than float
        draw_column(axes, small, at=small[-1].x / right)
        draw_column(axes, large[0], at=large[0][0].x / right, to_the_left=True)
    else:
        draw_column(axes, labels, at=1.0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_size(round(value))))
    axes.set_xlabel("size")
    axes.set_ylabel("top-1 accuracy, %")
    axes.grid(color=FAINT)
    return _png(figure, axes, f"{results.recipe}: accuracy against size")


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
                color=color, fontsize=7,
            )  # fmt: skip
    axes.set_yticks(range(len(oscillations.layers)), [layer.layer for layer in oscillations.layers])
    axes.set_ylim(len(oscillations.layers) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.margins(x=0.18)
    axes.set_xlabel(f"share of the layer's weights, %   (oscillating: frequency above {oscillations.threshold:g})")
    axes.grid(axis="x", color=FAINT)
    return _png(figure, axes, f"{recipe}: oscillations at the end of the training")


def _label(row: Row, x: float) -> Label:
    return Label(f"{row.name}  {100 * row.top1:.2f} %", x, 100 * row.top1, ROW_STYLES[row.kind].color)


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
    figure.savefig(
        buffer, format="png", dpi=150, metadata={"Software": None}
    )  # no version, so that equal data give equal bytes
    return buffer.getvalue()
