"""The floors of the house: imports only go down (docs/, design/architecture.md)."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import qat

ROOT = Path(qat.__file__).parent
# Rooms on one floor do not know each other. Ground-floor rooms know nothing of the project but themselves.
FLOORS: list[set[str]] = [
    {"files", "contexts", "fixed_dtypes", "messages", "torch_private", "version"},
    {"arguments", "reading"},
    {"grid", "granularity", "floating_point", "kernels", "data", "models", "report", "structure"},
    {"spec"},
    {"functional"},
    {"observers", "estimators"},
    {"quantizers"},
    {"nn"},
    {"operations"},
    {"capture"},
    {"sparsity"},
    {"transform"},
    {"integer", "ptq"},
    {"export", "doctor"},
    {"search"},
    {"training"},
    {"hf"},
    {"callbacks"},  # the public name of the callbacks in training
    {"experiment"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
INNER_ROOMS = {
    "training": ["lightning", "optimization", "checkpoint", "loggers", "comparison", "callbacks"],
    "capture": ["graphs", "state", "canonical", "traced", "exported", "training"],
}
"""The rooms inside of a room: each may import those before it."""
ROOMS_WITHOUT_QUANTIZATION = {"data", "models", "report"}
ONLY = {  # package -> rooms that may know it
    "lightning": {"training", "experiment"},
    "pytorch_lightning": set(),
    "hydra": {"experiment"},
    "omegaconf": {"experiment"},
    "onnx": {"export", "doctor"},
    "onnxruntime": {"export", "doctor"},
    "transformers": {"hf"},
    "huggingface_hub": {"hf"},
}


def imports(source: str) -> set[str]:
    """Full names of everything that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            module = node.module or ""
            found |= (
                {f"{module}.{alias.name}" for alias in node.names} if module in ("qat", "qat.training") else {module}
            )
    return found


def rooms(names: set[str]) -> set[str]:
    """Rooms of qat among imported names. `import qat` and names that qat/__init__ re-exports count as "qat"."""
    parts = [name.split(".") for name in names if name.split(".")[0] == "qat"]
    return {part[1] if len(part) > 1 and part[1] in FLOOR else "qat" for part in parts}


def violations(room: str, source: str) -> list[str]:
    """What a file in `room` imports and must not."""
    names = imports(source)
    found = []
    for other in sorted(rooms(names) - {room}):
        if other == "qat":
            found.append(f"{room} imports the roof (qat itself)")
        elif FLOOR[other] >= FLOOR[room]:
            found.append(f"{room} imports {other}, which is not below it")
    found += [
        f"{room} imports {n}" for n in sorted(names) if n.split(".")[0] in ONLY and room not in ONLY[n.split(".")[0]]
    ]
    return found


def inner_violations(outer: str, room: str, source: str) -> list[str]:
    """What a file in qat/`outer`/`room` imports from a later room of `outer`."""
    parts = [name.split(".") for name in imports(source)]
    imported = {part[2] for part in parts if part[:2] == ["qat", outer] and len(part) > 2}
    later = INNER_ROOMS[outer][INNER_ROOMS[outer].index(room) + 1 :]
    return [f"{outer}/{room} imports {outer}/{other}, which is above it" for other in later if other in imported]


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_go_down(path: Path) -> None:
    room = room_of(path)
    assert room in FLOOR, f"{room} has no floor: give it one in this test and in the plan of the house"
    found = violations(room, path.read_text(encoding="utf-8"))
    if room in {"training", "experiment", "cli"}:  # above everything: they may use the public face
        found = [v for v in found if "roof" not in v]
    assert found == []


@pytest.mark.parametrize(
    "path",
    sorted(path for outer in INNER_ROOMS for path in (ROOT / outer).rglob("*/*.py")),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_imports_between_inner_rooms_only_go_down(path: Path) -> None:
    outer, room = path.relative_to(ROOT).parts[:2]
    assert room in INNER_ROOMS[outer], f"{outer}/{room} has no place: name it in this test and in qat/{outer}/README.md"
    assert inner_violations(outer, room, path.read_text(encoding="utf-8")) == []


def imported_files(sources: dict[str, str]) -> dict[str, set[str]]:
    """Module -> the modules among `sources` that it imports, anywhere in it. Packages' own files only hand names on."""
    return {name: imports(source) & sources.keys() - {name} for name, source in sources.items()}


@pytest.mark.parametrize("folder", [ROOT, ROOT.parent / "benchmarks"], ids=lambda p: p.name)
def test_no_files_import_each_other(folder: Path) -> None:
    if not folder.exists():
        pytest.skip("benchmarks are in a checkout only")
    files = [path for path in folder.rglob("*.py") if path.name != "__init__.py"]
    names = [".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in files]
    sources = {name: path.read_text(encoding="utf-8") for name, path in zip(names, files, strict=True)}
    TopologicalSorter(imported_files(sources)).prepare()  # CycleError names the files


def test_this_test_finds_files_that_import_each_other() -> None:
    sources = {"qat.a": "from qat.b import x", "qat.b": "def f():\n    from qat.a import y", "qat.c": "import qat.a"}
    with pytest.raises(CycleError):
        TopologicalSorter(imported_files(sources)).prepare()


def test_the_roof_imports_nothing_until_it_is_used() -> None:
    """`import qat` needs no Lightning, and `qat --help` no torch: `qat/__init__.py` imports names for type checkers only."""
    program = "import sys, qat; print([n for n in ('torch', 'lightning', 'hydra') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("room", "source", "expected"),
    [
        ("observers", "from qat.quantizers import LSQ", "observers imports quantizers, which is not below it"),
        ("grid", "def f():\n    import qat.spec", "grid imports spec, which is not below it"),
        ("integer", "from qat.ptq.passes import x", "integer imports ptq, which is not below it"),
        ("data", "from qat import transform", "data imports transform, which is not below it"),
        ("transform", "from qat import prepare", "transform imports the roof (qat itself)"),
        ("transform", "import lightning.pytorch as L", "transform imports lightning.pytorch"),
        ("export", "from hydra.utils import instantiate", "export imports hydra.utils"),
        ("integer", "import onnx", "integer imports onnx"),
        ("spec", "from qat.functional import quantize", "spec imports functional, which is not below it"),
    ],
)
def test_this_test_finds_what_is_wrong(room: str, source: str, expected: str) -> None:
    assert violations(room, source) == [expected]


@pytest.mark.parametrize(
    "source", ["from qat.training.callbacks.report import Report", "from qat.training import callbacks"]
)
def test_this_test_finds_an_upward_import_inside_training(source: str) -> None:
    assert inner_violations("training", "checkpoint", source) == [
        "training/checkpoint imports training/callbacks, which is above it"
    ]
    assert inner_violations("training", "callbacks", source) == []


def test_this_test_lets_pass_what_is_right() -> None:
    assert (
        violations("quantizers", "import torch\nfrom qat.observers import MinMax\nfrom qat.spec import QParams") == []
    )


def test_files_and_functions_stay_short() -> None:
    long = []
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > 300:
            long.append(str(path.relative_to(ROOT)))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60:
                long.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not long, "files have at most 300 lines, functions 60"
