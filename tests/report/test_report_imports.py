"""The report is a ground-floor room: it knows results, not how they came about."""

import ast
from pathlib import Path

import pytest

import qat.report

ROOM = Path(qat.report.__file__).parent


@pytest.mark.parametrize("path", sorted(ROOM.glob("*.py")), ids=lambda path: path.name)
def test_imports_nothing_else_of_qat_but_files_and_no_torch(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    allowed = ("qat.report", "qat.files")
    upstairs = [name for name in names if name.split(".")[0] == "qat" and not name.startswith(allowed)]
    heavy = [name for name in names if name.split(".")[0] in {"torch", "lightning", "onnx", "onnxruntime", "hydra"}]
    assert not upstairs + heavy
