"""Every file of examples/ runs as it stands and ends with a verified file."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

import qat
from tests.paths import ROOT

EXAMPLES = ROOT / "examples"
SHARED = "digits"
LONG = {"detection", "hugging_face", "lightning_module", "mixed_precision", "regression", "segmentation", "sweep"}
"""Those that train long, or draw a report: run with the slow tests."""
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != SHARED)


def test_the_readme_lists_them() -> None:
    assert sorted(set(re.findall(r"\]\((\w+)\.py\)", (EXAMPLES / "README.md").read_text()))) == NAMES


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in NAMES])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_example_ends_with_a_verified_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "hugging_face":
        pytest.importorskip("transformers", reason="needs the extra hf: pip install 'qat-lightning[hf]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out
    written = [path for path in tmp_path.rglob("*.onnx") if path.stem != "float"]
    assert written
    assert [path for path in written if not qat.verify(path).passed] == []
