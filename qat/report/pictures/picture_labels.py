"""Labels written beside the points they name, without overlapping. They replace legends, which make readers look twice."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.transforms import offset_copy

from qat.report.pictures.placement import spread

LINE_HEIGHT = 0.062  # of the axes' height, for the fonts and sizes of this report
GAP = 14  # points between the position of a column and its text


class Label(NamedTuple):
    """A text, the point it belongs to in data coordinates, and its colour."""

    text: str
    x: float
    y: float
    color: str


def draw_column(axes: Axes, labels: Sequence[Label], at: float) -> None:
    """Write labels below each other, with thin lines to their points. Freezes the limits of the y axis.

    Each label stays at the height of its point unless two would overlap. Lines keep the order of the labels, and these are
    outside of the axes, so no line crosses a text.

    Args:
        at: horizontal position of the column, a fraction of the width of the axes.
    """
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    heights = spread([label.y for label in labels], gap=LINE_HEIGHT * (high - low))
    column = offset_copy(axes.get_yaxis_transform(), axes.get_figure(root=True), x=GAP, units="points")
    for label, height in zip(labels, heights, strict=True):
        axes.annotate(
            label.text,
            xy=(label.x, label.y),
            xytext=(at, height),
            textcoords=column,
            va="center",
            color=label.color,
            fontsize=9.5,
            arrowprops={
                "arrowstyle": "-",
                "color": label.color,
                "alpha": 0.45,
                "linewidth": 0.8,
                "shrinkA": 1,
                "shrinkB": 6,
                "relpos": (0.0, 0.5),
            },
        )
