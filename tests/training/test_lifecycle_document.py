"""docs/lifecycle.md promises nothing that is not tested."""

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "lifecycle.md"
ROWS = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
SCENARIOS = [row for row in ROWS if not row.startswith(("|---", "| scenario |"))]


def defined_in(file: str) -> set[str]:
    tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("row", SCENARIOS, ids=lambda row: row.split("|")[1].strip())
def test_every_scenario_names_a_test_that_exists(row: str) -> None:
    named = re.findall(r"`([\w/.]+\.py)::(\w+)`", row.split("|")[-2])
    assert named, "the last column names no test"
    for file, test in named:
        assert test in defined_in(file), f"{file} has no {test}"


def test_the_document_has_scenarios() -> None:
    assert len(SCENARIOS) > 20
