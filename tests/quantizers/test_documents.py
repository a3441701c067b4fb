"""docs/quantizers.md names every quantizer, and docs/differences_from_papers.md says what the docstrings say."""

import importlib.util
import re
from pathlib import Path

import yaml
from catalogue import PARTS

import qat

DOCS = Path(__file__).parents[2] / "docs"


def test_every_quantizer_has_its_section_and_its_line_in_the_table() -> None:
    text = (DOCS / "quantizers.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### `(\w+)`$", text, re.MULTILINE)) == set(PARTS)
    rows = " ".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", rows)) == set(PARTS)


def test_the_policy_in_the_document_is_one() -> None:
    block = re.search(r"```yaml\n(.*?)```", (DOCS / "quantizers.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    policy = qat.load_policy(yaml.safe_load(block[1]))
    assert policy.rules["all"].weight is not None
    assert policy.rules["all"].weight.build((4, 3)).spec.grid.bits == 2


def test_the_differences_from_papers_are_those_of_the_docstrings() -> None:
    spec = importlib.util.spec_from_file_location("write_differences", DOCS / "write_differences.py")
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    text = writer.TARGET.read_text(encoding="utf-8")
    assert text == writer.document(), "run python docs/write_differences.py"
    assert {"LSQ", "EWGS", "APoT", "fake_quantize"} <= set(re.findall(r"^## (\w+)$", text, re.MULTILINE))


def test_every_observer_has_its_line_in_the_table() -> None:
    files = {path.stem for path in (DOCS.parent / "configs" / "observer").glob("*.yaml")}
    text = (DOCS / "observers.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == files
    dependent = re.findall(r"^\| `(\w+)` \|[^|]*\| yes \|", text, re.MULTILINE)
    assert dependent == ["moving_average"]
    assert "Depends on the order" in (qat.observers.MovingAverage.__doc__ or "")
