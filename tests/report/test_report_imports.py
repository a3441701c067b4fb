"""qat.report depends on results only, not on the code that produces them."""

import ast
from pathlib import Path

import pytest

import qat.report

ROOM = Path(qat.report.__file__).parent


@pytest.mark.parametrize("path", sorted(ROOM.glob("*.py")), ids=lambda path: path.name)
def test_imports_no_other_room_of_qat_and_no_torch(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    allowed = ("qat.report", "qat.files", "qat.version")
    other_rooms = [name for name in names if name.split(".")[0] == "qat" and not name.startswith(allowed)]
    heavy = [name for name in names if name.split(".")[0] in {"torch", "lightning", "onnx", "onnxruntime", "hydra"}]
    assert not other_rooms + heavy
