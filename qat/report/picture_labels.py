"""Labels written beside the points they name, without overlapping. They replace legends, which make readers look twice."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.transforms import offset_copy

LINE_HEIGHT = 0.062  # of the axes' height, for the fonts and sizes of this report
GAP = 14  # points between the position of a column and its text


class Label(NamedTuple):
    """A text, the point it belongs to in data coordinates, and its colour."""

    text: str
    x: float
    y: float
    color: str


def draw_column(axes: Axes, labels: Sequence[Label], at: float, *, to_the_left: bool = False) -> None:
    """Write labels below each other, with thin lines to their points. Freezes the limits of the y axis.

    Each label stays at the height of its point unless two would overlap.

    Args:
        at: horizontal position of the column, a fraction of the width of the axes.
        to_the_left: whether the text ends at `at` instead of beginning there.
    """
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    heights = spread([label.y for label in labels], gap=LINE_HEIGHT * (high - low))
    offset = -GAP if to_the_left else GAP
    column = offset_copy(axes.get_yaxis_transform(), axes.get_figure(root=True), x=offset, units="points")
    for label, height in zip(labels, heights, strict=True):
        axes.annotate(
            label.text,
            xy=(label.x, label.y),
            xytext=(at, height),
            textcoords=column,
            ha="right" if to_the_left else "left",
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
                "relpos": (1.0 if to_the_left else 0.0, 0.5),
            },
        )


def group_into_columns(labels: Sequence[Label], tolerance: float) -> list[list[Label]]:
    """Group labels, from left to right: points within `tolerance` of the leftmost one of a column share it.

    >>> points = [Label("a", 1.0, 0.0, ""), Label("b", 9.0, 0.0, ""), Label("c", 2.0, 0.0, "")]
    >>> [[label.text for label in column] for column in group_into_columns(points, tolerance=3.0)]
    [['a', 'c'], ['b']]
    """
    columns: list[list[Label]] = []
    for label in sorted(labels, key=lambda label: label.x):
        if columns and label.x - columns[-1][0].x <= tolerance:
            columns[-1].append(label)
        else:
            columns.append([label])
    return columns


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Move positions as little as needed so that they lie `gap` apart, in the same order.

    Neighbours that are too close merge into a group that keeps its mean, until no two groups touch.

    >>> spread([1.0, 1.0, 5.0], gap=2.0)
    [0.0, 2.0, 5.0]
    """

    def start(group: list[int]) -> float:
        return sum(positions[index] for index in group) / len(group) - gap * (len(group) - 1) / 2

    groups: list[list[int]] = []
    for index in sorted(range(len(positions)), key=lambda index: positions[index]):
        groups.append([index])
        while len(groups) > 1 and start(groups[-2]) + gap * len(groups[-2]) > start(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = list(positions)
    for group in groups:
        for rank, index in enumerate(group):
            moved[index] = start(group) + gap * rank
    return moved
