"""The package as users get it: a wheel, with its configuration and its types, away from the checkout."""

import ast
import importlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import qat
from tests.paths import ROOT

USER_SCRIPT = """
import torch
from torch import Tensor, nn

import qat


def deploy(model: nn.Module, batches: list[Tensor]) -> bool:
    prepared = qat.prepare(model, "w4a8", batches[0])
    qat.calibrate(prepared, batches)
    print(qat.inspect(prepared))
    integer = qat.convert(prepared)
    qat.export_onnx(integer, batches[0], "model.onnx")
    check: qat.Verification = qat.verify("model.onnx", integer, batches)
    return check.exact


network: nn.Module = qat.load_checkpoint("best.ckpt")
newest = qat.latest_checkpoint("outputs/run")
callbacks = [qat.callbacks.QuantizationAwareTraining("w4a8"), qat.callbacks.PTQBaselines()]
passes: list[qat.ptq.Pass] = [qat.ptq.Calibrate("MSE"), qat.ptq.AdaRound()]
quantized = qat.ptq.apply_passes(passes, network, qat.load_policy("w4a8"), [torch.zeros(1, 3)])
reveal_type(qat.prepare)
reveal_type(qat.latest_checkpoint)
reveal_type(qat.callbacks.ExportONNX)
"""


def test_public_names_are_listed_and_lead_somewhere() -> None:
    assert qat.__all__ == sorted(qat.__all__)
    assert {"callbacks", "ptq", "load_checkpoint", "latest_checkpoint"} <= set(qat.__all__) <= set(dir(qat))
    assert all(getattr(qat, name) is not None for name in qat.__all__)
    with pytest.raises(AttributeError, match="module 'qat' has no attribute 'prepair'"):
        _ = qat.prepair  # type: ignore[attr-defined]


def test_what_type_checkers_see_is_what_runs() -> None:
    tree = ast.parse(Path(qat.__file__).read_text())
    seen = next(node for node in tree.body if isinstance(node, ast.If)).body
    names = {}
    for node in seen:
        assert isinstance(node, ast.ImportFrom)
        names |= {alias.name: importlib.import_module(node.module or "") for alias in node.names}
    assert names.keys() == set(qat.__all__)
    assert all(getattr(module, name) is getattr(qat, name) for name, module in names.items())


@pytest.mark.slow
def test_modules_are_there_after_import_qat() -> None:
    program = "import qat; qat.ptq; qat.export.QuantizeStatic; qat.callbacks; from qat import *; prepare"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.slow
def test_the_types_reach_users(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    script.write_text(USER_SCRIPT)
    options = ["--strict", "--config-file=", f"--cache-dir={tmp_path}", "--no-error-summary"]
    command = [sys.executable, "-m", "mypy", *options, str(script)]
    environment = {**os.environ, "MYPYPATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "error" not in done.stdout, done.stdout
    assert done.stdout.count("Revealed type") == 3
    assert '"Any"' not in done.stdout  # a name without a type


def test_the_checkout_has_no_symbolic_links() -> None:
    listed = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert [line for line in listed.stdout.splitlines() if line.startswith("120000")] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that is built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "hatchling" in done.stderr:
        pytest.skip("hatchling, which builds the wheel, is not installed and cannot be downloaded")
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_configuration_types_and_license(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("configs", "recipes"):
        files = {str(Path("qat") / path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.yaml")}
        assert files
        assert files <= names
    assert {"qat/py.typed", "qat/kernels/cpu/fake_quantize.c"} <= names
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assert {name.split("/")[0] for name in names} == {
        "qat",
        "hydra_plugins",  # where Hydra looks for sweepers
        f"{wheel.name.split('-py3')[0]}.dist-info",
    }


@pytest.mark.slow
def test_the_installed_wheel_trains_in_another_folder(wheel: Path, tmp_path: Path) -> None:
    installed, here = tmp_path / "installed", tmp_path / "here"
    here.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(installed), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(installed), "QAT_CACHE_DIR": str(tmp_path / "cache")}

    def run(*command: str) -> str:
        done = subprocess.run([sys.executable, *command], cwd=here, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "import qat; print(qat.__file__)").strip() == str(installed / "qat" / "__init__.py")
    program = str(installed / "bin" / "qat")
    listed = run(program, "train", "--help")
    assert all(path.stem in listed for path in (ROOT / "recipes").glob("*.yaml"))
    overrides = ["recipe=digits_w8a8", "trainer.max_epochs=1", "float.epochs=1", "ptq=none", "hydra.run.dir=run"]
    run(program, "train", *overrides)
    results = json.loads((here / "run" / "results.json").read_text())
    assert results["command"] == f"qat train {' '.join(overrides)}"
    assert results["verification"]["code_mismatches"] == 0
    assert results["environment"]["versions"]["qat"][0].isdigit()
    assert [path.name for path in here.iterdir()] == ["run"]
