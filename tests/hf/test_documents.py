"""What docs/hugging_face.md shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import qat
from tests.hf.tiny import bert, words
from tests.paths import ROOT

pytest.importorskip("transformers", reason="needs the extra hf: pip install 'qat-lightning[hf]'")

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "hugging_face.md").read_text(), flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*LeafSpec", "ignore::DeprecationWarning")
def test_ten_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope = {"qat": qat, "model": bert(), "batches": [words(), words()]}
    exec(BLOCKS[0], scope)
    with torch.no_grad():
        assert scope["integer"](**words())[0].shape == (4, 3)
    assert (tmp_path / "folder" / "README.md").is_file()
