"""docs/quantizers.md names every quantizer, and docs/differences_from_papers.md says what the docstrings say."""

import importlib.util
import json
import re
from typing import Any

import numpy as np
import yaml
from PIL import Image

import qat
from tests.paths import DOCS
from tests.quantizers.catalogue import OF_FORMATS, PARTS

FILES = DOCS.parent / "configs" / "observer"


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


def program(name: str) -> Any:
    """A program of docs/, as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pictures_show_every_quantizer_and_what_is_recorded() -> None:
    writer = program("draw_quantizers")
    shown = writer.drawn_from()
    assert set(shown["quantizers.png"]) == set(PARTS) - {"dynamic", "dynamic_per_token", "fp8_static", *OF_FORMATS}
    for name, content in shown.items():
        with Image.open(writer.PICTURES / name) as picture:
            assert json.loads(picture.info["Description"]) == content, "run python docs/draw_quantizers.py"
        assert f"(pictures/{name})" in (DOCS / "quantizers.md").read_text(encoding="utf-8")


def test_a_drawn_curve_is_what_the_quantizer_does() -> None:
    weight, levels, gradient = (t.numpy() for t in program("draw_quantizers").curve("lsq", 3))
    assert len(np.unique(levels)) == 7
    scale = levels.max() / 3
    assert np.allclose(levels, np.clip(np.rint(weight / scale), -3, 3) * scale)
    assert np.array_equal(gradient, np.abs(weight) < levels.max())


def test_the_differences_from_papers_are_those_of_the_docstrings() -> None:
    writer = program("write_differences")
    text = writer.TARGET.read_text(encoding="utf-8")
    assert text == writer.document(), "run python docs/write_differences.py"
    assert {"LSQ", "EWGS", "APoT", "fake_quantize"} <= set(re.findall(r"^## (\w+)$", text, re.MULTILINE))


def test_every_observer_has_its_line_in_the_table() -> None:
    files = {path.stem for path in FILES.glob("*.yaml")}
    text = (DOCS / "observers.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == files
    said = set(re.findall(r"^\| `(\w+)` \|[^|]*\| yes", text, re.MULTILINE))
    targets = {name: yaml.safe_load((FILES / f"{name}.yaml").read_text())["_target_"] for name in files}
    classes = {name: getattr(qat.observers, target.rpartition(".")[2]) for name, target in targets.items()}
    assert said == {name for name, cls in classes.items() if cls.depends_on_batches}
