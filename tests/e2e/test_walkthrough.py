"""docs/walkthrough.ipynb does what it says, and shows what its cells print."""

import json
from typing import Any

import pytest

from tests.paths import DOCS

NOTEBOOK = json.loads((DOCS / "walkthrough.ipynb").read_text(encoding="utf-8"))
WIDTHS = '("w8a8", "w4a8", "w4a4", "w3a3", "w2a2")'
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_every_cell_was_run_in_order_without_an_error() -> None:
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]


@pytest.mark.filterwarnings("ignore")  # the notebook chooses what it shows
def test_the_cells_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names: dict[str, Any] = {}
    for cell in CELLS:
        source = "".join(cell["source"]).replace(WIDTHS, '("w8a8", "w2a2")')  # of a plot; all of them take long
        exec(compile(source, "walkthrough.ipynb", "exec"), names)
    assert names["check"].exact
    assert "0 of 1,589,000 codes differ" in capsys.readouterr().out
    accuracy, results = names["accuracy"], names["results"]
    assert accuracy(names["float_net"]) > 96
    assert accuracy(results["w4a4"]) > 96
    assert accuracy(results["w2a2"]) > 93
    assert abs(accuracy(names["integer"]) - accuracy(results["w2a2"])) < 1
