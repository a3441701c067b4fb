"""The result of the doctor: table, JSON, picture."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qat.doctor.sensitivity import Sensitivity
from qat.files import write_atomically
from qat.transform.inspect import Inspection

SHOWN = 40
"""How many tensors table and picture show, the most harmful ones."""


@dataclass(frozen=True)
class Finding:
    """Something that costs accuracy or speed. kind: a word for programs; config: the line of a policy that mends it."""

    kind: str
    where: str
    text: str
    config: str

    def __str__(self) -> str:
        return f"{self.text} -> {self.config}"


@dataclass
class Diagnosis:
    """What a policy would do to a model.

    Attributes:
        policy: its name.
        inspection: what is quantized, and what stays in float.
        sensitivity: all together, weights alone, activations alone, and each tensor alone, the most harmful first.
        findings: what to mend, the worst first.
    """

    policy: str
    inspection: Inspection
    sensitivity: list[Sensitivity]
    findings: list[Finding]

    def __str__(self) -> str:
        rows = [("quantized", "tensor", "format", "SQNR dB", "loss")]
        rows += [
            (s.name or "(together)", s.tensor, s.format, f"{s.sqnr_db:.1f}", f"{s.loss_change:+.4f}")
            for s in self._shown()
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        text = [
            "  ".join(
                cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        hidden = len(self.sensitivity) - len(self._shown())
        text += [f"... and {hidden} less harmful ones"] if hidden else []
        found = [f"{i}. {finding}" for i, finding in enumerate(self.findings, 1)] or ["nothing to mend"]
        return "\n".join([str(self.inspection), "", *text, "", f"findings for {self.policy}:", *found])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "policy": self.policy,
            "lines": [asdict(line) for line in self.inspection.lines],
            "float_edges": self.inspection.float_edges,
            "notes": self.inspection.notes,
            "integer_share": None if self.inspection.share is None else asdict(self.inspection.share),
            "sensitivity": [asdict(s) for s in self.sensitivity],
            "findings": [asdict(f) for f in self.findings],
        }

    def plot(self, path: str | Path) -> Path:
        """Draw the sensitivity of each tensor as a PNG. Returns `path`."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        shown = self._shown()
        figure = Figure(figsize=(9, 1.2 + 0.24 * len(shown)), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, sharey=True)
        colors = [
            "#0072B2" if s.tensor.startswith("weight") else "#D55E00" if s.tensor.startswith("act") else "#5a5a5a"
            for s in shown
        ]
        left.barh(range(len(shown)), [s.sqnr_db for s in shown], color=colors)
        left.set_xlabel("SQNR of the outputs, dB (lower is worse)")
        right.barh(range(len(shown)), [s.loss_change for s in shown], color=colors)
        right.set_xlabel("change of the loss")
        left.set_yticks(range(len(shown)), [f"{s.name} {s.tensor} {s.format}".strip() for s in shown], fontsize=7)
        left.invert_yaxis()
        figure.suptitle(f"{self.policy}: each tensor alone quantized (blue: weights, orange: activations)", fontsize=10)
        picture = io.BytesIO()
        figure.savefig(picture, dpi=150, format="png")
        return write_atomically(path, picture.getvalue())

    def _shown(self) -> list[Sensitivity]:
        return self.sensitivity[:SHOWN]
