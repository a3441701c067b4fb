"""What README.md shows must run as it stands, and it stays short."""

from __future__ import annotations

import re

import qat
from tests.networks import OptionA, build, images
from tests.paths import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_library_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = next(block for block in BLOCKS if "qat.prepare(" in block)
    scope = {"model": build(OptionA), "example_inputs": images(2), "batches": [images(32)]}
    exec(code, scope)
    assert scope["check"].exact
    assert (tmp_path / "model.onnx").is_file()


def test_the_callbacks_exist():
    for name in re.findall(r"qat\.callbacks\.(\w+)\(", README):
        assert hasattr(qat.callbacks, name), name


def test_it_is_short():
    assert len(README.splitlines()) <= 110, "move it to a page of docs/"
