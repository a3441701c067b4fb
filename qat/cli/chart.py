"""Bar charts of the command line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TypeAlias

from qat.files import write_atomically

Panel: TypeAlias = tuple[str, list[float], list[list[float]] | None]
"""The label of an axis, the length of each bar, and how far each whisker reaches to both sides."""
COLOR = "#0072B2"


def draw_bars(path: Path, names: list[str], panels: list[Panel]) -> None:
    """Write a PNG with panels beside each other, a bar for each name.

    Args:
        path: the file to write.
        names: of the bars.
        panels: what they show.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(2.6 + 2.8 * len(panels), 1.1 + 0.32 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, values, whiskers) in zip(axes, panels, strict=True):
        axis.barh(range(len(names)), values, xerr=whiskers, color=COLOR, capsize=3)
        axis.set_xlabel(title)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format="png")
    write_atomically(path, picture.getvalue())
