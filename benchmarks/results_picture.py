"""The picture of README.md: where training wins. `python -m benchmarks.tables` draws it from the recorded runs.

The PNG description holds the data that it was drawn from, which tells whether it is up to date.
"""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.measurement_file import RESULTS
from benchmarks.run_tables import first_seeds, read_runs
from qat.report.pictures.plots import FAINT, INK, QAT_BLUE, ROW_STYLES

PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "where_qat_wins.png"
ORANGE, GREY = ROW_STYLES["ptq"].color, "#8a8a8a"
WIDEST = 13.0
"""Points; what lies further is written at the edge."""
CALIBRATED = ("PTQ min-max", "PTQ MSE")


def losses() -> list[dict[str, object]]:
    """For each recipe, how many points of accuracy lie below float: the better calibration, the best PTQ, and QAT."""
    found: list[dict[str, object]] = []
    for run in first_seeds(read_runs(RESULTS)):
        top1 = {row.name: 100 * row.top1 for row in run.rows if row.top1 is not None}
        own = {name: value for name, value in top1.items() if name.startswith("PTQ ")}
        values = {
            "calibrated": max(own[name] for name in CALIBRATED),
            "best PTQ": max(own.values()),
            "QAT": top1["QAT in ONNX Runtime"],
        }
        found.append({"recipe": run.recipe, **{n: round(top1["float"] - v, 2) for n, v in values.items()}})
    return found


def draw(rows: list[dict[str, object]], path: Path) -> None:
    """Write the picture."""
    figure = Figure(figsize=(9, 0.8 + 0.42 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    series = (("calibrated", GREY, "D"), ("best PTQ", ORANGE, "s"), ("QAT", QAT_BLUE, "o"))
    for y, row in enumerate(rows):
        values = [float(str(row[name])) for name, _, _ in series]
        axes.plot([min(*values, WIDEST), min(max(values), WIDEST)], [y, y], color=FAINT, linewidth=3, zorder=1)
        for (_, color, marker), value in zip(series, values, strict=True):
            if value > WIDEST:
                label = f"{value:.0f} ▸"
                axes.text(WIDEST + 0.05, y - 0.1, label, color="#5a5a5a", ha="right", va="bottom", fontsize=10)
            else:
                axes.plot([value], [y], marker, color=color, markersize=8, zorder=2)
    for name, color, marker in series:
        label = {"calibrated": "PTQ, ranges alone", "best PTQ": "PTQ, the best of all", "QAT": "QAT, in ONNX Runtime"}[
            name
        ]
        axes.plot([], [], marker, color=color, markersize=8, label=label)
    axes.axvline(0, color=INK, linestyle="--", linewidth=1)
    axes.set_xlim(-0.6, WIDEST + 0.1)
    axes.set_yticks(range(len(rows)), [str(row["recipe"]) for row in rows])
    axes.set_xlabel("points of accuracy below the float network (dashed): left is better")
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    figure.legend(frameon=False, loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=130, metadata={"Description": json.dumps(rows)})


def refresh(check: bool) -> None:
    """Draw the picture anew if the recorded runs are others.

    Raises:
        SystemExit: they are, and `check` is set.
    """
    rows = losses()
    if PICTURE.is_file():
        with Image.open(PICTURE) as picture:
            if json.loads(picture.info.get("Description", "null")) == rows:
                return
    if check:
        raise SystemExit(f"{PICTURE.name} is out of date: run python -m benchmarks.tables.")
    draw(rows, PICTURE)
