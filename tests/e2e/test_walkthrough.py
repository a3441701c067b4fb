"""docs/walkthrough.ipynb does what it says, and shows what its cells print."""

import json
import re
import sys
import types
from typing import Any

import pytest

from tests.paths import DOCS

NOTEBOOK = json.loads((DOCS / "walkthrough.ipynb").read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
SHORTER = {  # what takes long; that the cells work does not depend on it
    "fit(Net(), 12)": "fit(Net(), 2)",
    "iterations=200": "iterations=5",
    "epochs=6": "epochs=1",
    "epochs=4": "epochs=1",
    "rounds=30": "rounds=3",
    "range(30)": "range(3)",
    '("w8a8", "w4a8", "w4a4", "w3a3", "w2a2")': '("w8a8", "w2a2")',
}


def run_cells(monkeypatch: pytest.MonkeyPatch, replace: dict[str, str], leave_out: str = "") -> dict[str, Any]:
    """Run the cells as one module, without those that contain `leave_out`, and return its names."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    module = types.ModuleType("walkthrough")  # a class of the notebook is imported by its name
    monkeypatch.setitem(sys.modules, "walkthrough", module)
    for cell in CELLS:
        source = "".join(cell["source"])
        if leave_out and leave_out in source:
            continue
        for text, shorter in replace.items():
            source = source.replace(text, shorter)
        exec(compile(source, "walkthrough.ipynb", "exec"), module.__dict__)
    return module.__dict__


def test_every_cell_was_run_in_order_without_an_error() -> None:
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]


def test_every_picture_is_stored_and_has_labelled_axes() -> None:
    drawn = [cell for cell in CELLS if "plt.show()" in "".join(cell["source"])]
    assert len(drawn) >= 10
    for cell in drawn:
        assert any("image/png" in output.get("data", {}) for output in cell["outputs"])
        source = "".join(cell["source"])
        assert re.search(r'axes\("[^"]+", "[^"]+", "[^"]+"\)', source) or source.count("ylabel=") == 2


def test_what_is_shortened_is_there() -> None:
    text = "\n".join("".join(cell["source"]) for cell in CELLS)
    assert [part for part in SHORTER if part not in text] == []


@pytest.mark.filterwarnings("ignore")  # the notebook chooses what it shows
def test_the_cells_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_cells(monkeypatch, SHORTER, leave_out="transformers")
    assert names["check"].passed
    assert "0 of 1,589,000 codes differ" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_cells_reach_what_the_text_says(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_cells(monkeypatch, {})
    accuracy, results, rows = names["accuracy"], names["results"], names["rows"]
    assert accuracy(names["float_net"]) > 96
    assert accuracy(results["w4a4"]) > 96
    assert accuracy(results["w2a2"]) > 93
    assert rows["QAT"][-1] > rows["PTQ, ranges alone"][-1] + 5
    assert abs(accuracy(names["integer"]) - accuracy(results["w2a2"])) < 1
    assert accuracy(names["replaced"]) > 96
    assert names["pruned"][0] > 90
