"""Draws docs/pictures/: what quantizers do to a weight, and the accuracies they reach. `python docs/draw_quantizers.py`.

The PNG description of each picture holds the data that it was drawn from; a test compares it with the current data.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from qat import TensorRule
from qat.report.pictures.plots import FAINT, INK, QAT_BLUE, ROW_STYLES

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
ORANGE = ROW_STYLES["ptq"].color
POLICIES = ("w4a4", "w3a3", "w2a2")
POINTS = 4000
COLUMNS = 5


def quantizers() -> dict[str, int]:
    """Name of each quantizer for weights -> its bits: 3, or the nearest width that it supports."""
    bits_of = {}
    for path in sorted((ROOT / "configs" / "quantizer").glob("*.yaml")):
        for bits in (3, 4, 2):
            try:
                TensorRule(bits, quantizer=yaml.safe_load(path.read_text())).build((1, POINTS))
            except ValueError:
                continue
            bits_of[path.stem] = bits
            break
    return bits_of


def curve(name: str, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """(w, its quantized values, the gradient of w for an incoming gradient of 1), for normal weights."""
    torch.manual_seed(0)
    part = yaml.safe_load((ROOT / "configs" / "quantizer" / f"{name}.yaml").read_text())
    weight = torch.erfinv(torch.linspace(-1, 1, POINTS + 2)[1:-1]) * math.sqrt(2)
    quantizer = TensorRule(bits, quantizer=part, observer="MSE", narrow=True).build((1, POINTS))
    quantizer.observer.update(weight[None])
    quantizer.finish_observing()
    x = weight[None].clone().requires_grad_()
    y = quantizer(x)
    y.sum().backward()
    assert x.grad is not None
    return weight, y.detach()[0], x.grad[0]


def draw_curves(bits_of: dict[str, int]) -> Figure:
    """One panel per quantizer: levels and gradient over the weight."""
    rows = math.ceil(len(bits_of) / COLUMNS)
    figure = Figure(figsize=(2.3 * COLUMNS, 2.2 * rows + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True).flatten()
    for axes in panels[len(bits_of) :]:
        axes.set_axis_off()
    for axes, (name, bits) in zip(panels, bits_of.items(), strict=False):
        weight, levels, gradient = curve(name, bits)
        axes.plot(weight, weight, color=FAINT, linewidth=1)
        axes.plot(weight, gradient, color=ORANGE, linewidth=1, label="what reaches the weight of a gradient of 1")
        drawn = "." if bool((levels.diff() < 0).any()) else "-"  # random levels as points, a staircase as a line
        axes.plot(weight, levels, drawn, color=QAT_BLUE, linewidth=1.6, markersize=1.6, label="quantized weight")
        axes.set_xlim(-3, 3)
        axes.set_ylim(-2.6, 2.6)
        axes.set_title(f"{name}, {bits} bits" if bits != 3 else name, loc="left", fontsize=9, color=INK)
        _plain(axes)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, labelcolor=INK)
    figure.suptitle(
        "Normal weights in 3 bits, range by MSE", x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK
    )
    return figure


def reached() -> dict[str, dict[str, list[float]]]:
    """Row of `benchmarks.menu` -> policy -> top-1 of each seed in %; the best row at the fewest bits first."""
    rows: dict[str, dict[str, list[float]]] = {}
    for path in sorted((ROOT / "benchmarks" / "results" / "menu").glob("*.json")):
        record = json.loads(path.read_text())
        cells = rows.setdefault(record["row"], {policy: [] for policy in POLICIES})
        for name, cell in record["cells"].items():
            cells[name.partition(",")[0]].append(round(100 * cell["top1"], 2))
    return dict(sorted(rows.items(), key=lambda item: [-mean(item[1][p] or [0.0]) for p in reversed(POLICIES)]))


def draw_reached(rows: dict[str, dict[str, list[float]]], float_top1: float) -> Figure:
    """One panel per width, one line per row: mean and standard deviation over the seeds."""
    figure = Figure(figsize=(10, 1.6 + 0.27 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, policy in zip(figure.subplots(1, len(POLICIES), sharey=True), POLICIES, strict=True):
        means = sorted(mean(cells[policy]) for cells in rows.values() if cells[policy])
        lowest = means[len(means) // 5]  # one row in five may lie further left; it is written as a number
        axes.axvline(float_top1, color=ROW_STYLES["float"].color, linewidth=1, linestyle=(0, (4, 4)))
        for place, (name, cells) in enumerate(rows.items()):
            if not cells[policy]:
                continue
            style = ROW_STYLES["ptq" if name.startswith("PTQ") else "qat_onnxruntime"]
            if (middle := mean(cells[policy])) < lowest:
                axes.text(
                    0.01,
                    place,
                    f"◂ {middle:.1f}",
                    transform=axes.get_yaxis_transform(),
                    va="center",
                    color=style.color,
                    fontsize=8,
                )
                continue
            spread = stdev(cells[policy]) if len(cells[policy]) > 1 else 0.0
            axes.errorbar(middle, place, xerr=spread, fmt=style.marker, color=style.color, markersize=5, capsize=3)
        axes.set_xlim(lowest - 0.15 * (float_top1 - lowest), float_top1 + 0.05 * (float_top1 - lowest))
        axes.set_title(policy.upper(), loc="left", fontsize=11, fontweight="bold", color=INK)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("top-1, %   (dashed: float)", color=INK)
        axes.grid(color=FAINT, linewidth=0.6)
        _plain(axes)
    return figure


def _plain(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0, labelsize=8)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)


def drawn_from() -> dict[str, Any]:
    """File name -> the data of its picture."""
    return {"quantizers.png": quantizers(), "reached.png": reached()}


def main() -> None:
    data = drawn_from()
    recorded = json.loads(next((ROOT / "benchmarks" / "results" / "menu").glob("*.json")).read_text())
    figures = {
        "quantizers.png": draw_curves(data["quantizers.png"]),
        "reached.png": draw_reached(data["reached.png"], 100 * recorded["float"]),
    }
    PICTURES.mkdir(exist_ok=True)
    for name, figure in figures.items():
        description = {"Software": None, "Description": json.dumps(data[name])}
        figure.savefig(PICTURES / name, dpi=130, metadata=description)


if __name__ == "__main__":
    main()
