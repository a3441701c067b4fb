"""What README.md shows must run as it stands."""

from __future__ import annotations

import re

import pytest
import torch
import yaml
from torch import nn

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


def test_the_example_of_passes_runs():
    code = next(block for block in BLOCKS if "apply_passes(" in block)
    scope = {"model": nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), "batches": [torch.randn(32, 4)]}
    exec(code, scope)
    assert qat.convert(scope["quantized"])(torch.randn(5, 4)).shape == (5, 2)


def test_the_policies_load():
    code = next(block for block in BLOCKS if "load_policy(" in block)
    scope = {"qat": qat}
    exec(code, scope)
    assert scope["policy"].rules["head"].weight.group_size == 32
    assert scope["policy"].rules["head"].activation is None


def test_the_callbacks_exist():
    for name in re.findall(r"qat\.callbacks\.(\w+)\(", README):
        assert hasattr(qat.callbacks, name), name


def test_the_linked_files_exist():
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    assert len(links) >= 4
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("name", re.findall(r"recipe=(\w+)", README))
def test_the_recipes_exist(name):
    content = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text())
    assert content["defaults"]
