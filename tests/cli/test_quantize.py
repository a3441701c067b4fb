"""`qat quantize`, `qat benchmark` and `qat compare` as a user runs them, on a tiny network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import qat
from qat.cli import benchmark
from qat.cli.main import main
from qat.cli.measure import Measurement
from qat.cli.quantize_report import costs
from qat.export.stopwatch import Timing
from qat.export.targets import Target
from qat.report import read_results
from tests.cli.user_files import made, write_user_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's files, and a file that was quantized."""
    folder = write_user_files(tmp_path_factory.mktemp("user"))
    assert quantize(folder, "m.onnx", "post_training", "--data", folder / "data.npz") == 0
    return folder


def quantize(folder: Path, output: str, method: str, *more: Any, model: str = "net.py:make") -> int:
    arguments = ["--model", folder / model, "--output", folder / output, "--method", method, "--seconds", 0.1, *more]
    return main(["quantize", *map(str, arguments)])


def test_the_file_is_verified_and_does_what_the_network_does(folder: Path) -> None:
    assert not list(folder.glob("*.unverified.onnx"))
    proof = qat.verify(folder / "m.onnx")
    assert proof.intact
    assert proof.verification is not None
    assert proof.verification["code_mismatches"] == 0
    x = np.random.default_rng(1).normal(size=(32, 3, 8, 8)).astype(np.float32)
    (theirs,) = onnxruntime.InferenceSession(folder / "m.onnx").run(None, {"input": x})  # independent of qat
    ours = made(folder)(torch.from_numpy(x)).detach().numpy()
    assert 10 * np.log10(np.square(ours).sum() / np.square(ours - theirs).sum()) > 20


def test_what_the_doctor_sees_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: a convolution that no rule touches, and a file that is far from the float model."""
    monkeypatch.setattr("qat.cli.quantize_report.CLOSE", 1.1)
    policy = tmp_path / "policy.yaml"
    policy.write_text("rules: {head: {match: 'type:Linear', weight: {bits: 8}, activation: {bits: 8}}}")
    assert (
        quantize(folder, str(tmp_path / "m.onnx"), "post_training", "--policy", policy, "--data", folder / "data.npz")
        == 0
    )
    untouched = "0: no rule touches this Conv2d -> rules: {0: {match: 0, weight: {bits: 8}, activation: {bits: 8}}}"
    command = f"qat inspect {folder}/net.py:make --policy {policy} --data {folder}/data.npz"
    found = read_results(tmp_path / "results.json").findings
    assert found[0].endswith(f"of the samples -> {command}")
    assert untouched in found
    said = capsys.readouterr().err
    assert all(f"to mend: {finding}" in said for finding in found[:2])
    assert "no rule touches this Conv2d" in (tmp_path / "report.md").read_text()
    assert "no rule touches this Conv2d" in (tmp_path / "report.html").read_text()
    assert main(command.split()[1:]) == 0


def test_results_lie_beside_the_file(folder: Path) -> None:
    results = read_results(folder / "results.json")
    assert [row.kind for row in results.rows] == ["float", "ptq"]
    assert results.verification is not None
    assert results.verification.exact
    assert "VERIFIED: m.onnx" in (folder / "report.md").read_text()
    expected = made(folder)
    with np.load(folder / "data.npz") as data:
        x, y = torch.from_numpy(data["x"]).float(), torch.from_numpy(data["y"])
    tested = slice(32, 64)  # every second batch of 32
    accuracy = (expected(x[tested]).argmax(1) == y[tested]).double().mean().item()
    assert results.rows[0].top1 == pytest.approx(accuracy)


def test_a_file_that_differs_does_not_get_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verify = Target.verify

    def differs(self: Target, *arguments: Any) -> Any:
        found = verify(self, *arguments)
        found.code_mismatches = 3
        return found

    monkeypatch.setattr(Target, "verify", differs)
    output = tmp_path / "m.onnx"
    output.write_bytes(b"an older file")
    given = [
        "quantize",
        "--model",
        folder / "net.py:make",
        "--method",
        "weight_only",
        "--output",
        output,
        "--seconds",
        0.1,
    ]
    assert main([*map(str, given)]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("NOT VERIFIED, do not deploy")
    assert output.read_bytes() == b"an older file"
    assert (tmp_path / "m.unverified.onnx").is_file()


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("quantization_aware", ["--policy", "w4a8", "--data", "net.py:batches", "--steps", "3"]),
        pytest.param("dynamic", [], marks=pytest.mark.slow),
        pytest.param("weight_only", ["--policy", "w4"], marks=pytest.mark.slow),
    ],
)
def test_the_other_methods(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, more: list[str]
) -> None:
    more = [str(folder / a) if a.startswith("net.py") else a for a in more]
    capsys.readouterr()
    output = tmp_path / "o.onnx"
    given = [
        "--model",
        folder / "net.py:make",
        "--output",
        output,
        "--method",
        method,
        "--json",
        "--seconds",
        0.1,
        *more,
    ]
    assert main(["quantize", *map(str, given)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verified"], found["file"]) == (True, str(output))
    assert qat.verify(output).intact


def test_an_onnx_file_is_quantized_by_its_runtime(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "float.onnx"
    qat.export.export_float_onnx(made(folder), torch.randn(2, 3, 8, 8), source)
    given = [
        "--model",
        source,
        "--output",
        tmp_path / "q.onnx",
        "--method",
        "post_training",
        "--data",
        folder / "data.npz",
        "--seconds",
        0.1,
    ]
    assert main(["quantize", *map(str, given)]) == 0
    assert "no integer model" in capsys.readouterr().out
    operators = qat.export.operators(tmp_path / "q.onnx")
    assert operators["QLinearConv"] == 1


def test_a_program_takes_inputs_that_have_names(folder: Path, tmp_path: Path) -> None:
    given = ["--model", f"{folder}/net.py:make", "--data", folder / "data.npz", "--seconds", 0.05]
    output = tmp_path / "m.pt2"
    assert main(["quantize", *map(str, [*given, "--output", output, "--method", "post_training"])]) == 0
    results = read_results(tmp_path / "results.json")
    assert results.verification is not None
    assert results.verification.exact
    assert results.rows[1].latency_ms_batch32


def test_a_file_is_not_compared_with_what_torch_takes() -> None:
    """Runtimes differ by far more than formats do."""
    times = {1: Timing(1.0, 1.0, 1.0, 10, 1.0)}
    file = Measurement("m.onnx", "onnxruntime", 10, "file", latency=times)
    assert costs([Measurement("float", "torch", 40, "stored", latency=times), file]) == ""
    float_file = Measurement("float", "onnxruntime", 40, "file", latency=times)
    assert costs([float_file, file]) == ", at 0.25× its size, 1.00× its time at batch 1"


@pytest.mark.parametrize(
    ("sizes", "heading", "widths"),
    [((1040, 2490), "size, kB", (1.04, 2.49)), ((2_000_000, 900), "size, MB", (2, 9e-4))],
)
def test_the_chart_has_sizes_in_a_unit_that_fits(
    sizes: tuple[int, int], heading: str, widths: tuple[float, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("qat.cli.chart.draw_bars", lambda path, names, panels: drawn.extend(panels))
    benchmark._draw([Measurement("m.onnx", "onnxruntime", size, "file") for size in sizes], None, tmp_path / "c.png")
    assert drawn[0] == (heading, list(widths), None)


def test_json_stands_alone_whatever_else_is_printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    given = ["--data", f"{folder}/net.py:in_float64", "--seconds", "0.05", "--json"]
    assert main(["benchmark", f"{folder}/net.py:talks", f"{folder}/net.py:network", *given]) == 0
    printed = capfd.readouterr()
    assert [m["agreement_with_first"] for m in json.loads(printed.out)["models"]] == [1.0, 1.0]
    assert "may print what it likes" in printed.err


def test_benchmark_compares_files_and_networks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [f"{folder}/net.py:make", str(folder / "m.onnx")]
    more = ["--data", str(folder / "data.npz"), "--seconds", "0.1", "--chart", str(tmp_path / "chart.png")]
    capsys.readouterr()
    assert main(["benchmark", *models, *more, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["models"]
    assert (first["agreement_with_first"], first["sqnr_db_to_first"]) == (1.0, None)
    assert second["size_bytes"] == (folder / "m.onnx").stat().st_size
    assert second["sqnr_db_to_first"] > 20
    timing = second["latency_ms"]["1"]
    assert 0 < timing["low"] <= timing["median"] <= timing["high"]
    assert second["latency_of_first"]["1"] == pytest.approx(timing["median"] / first["latency_ms"]["1"]["median"])
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert main(["benchmark", str(folder / "m.onnx"), "--seconds", "0.1"]) == 0  # alone, without data
    assert "no accuracy" in capsys.readouterr().out


def test_compare_reads_the_results_of_runs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((folder / "results.json").read_text())
    assert main(["compare", str(folder), str(folder / "results.json")]) == 2
    assert "are one run: leave one out" in capsys.readouterr().err
    content["config"]["policy"] = "w4a8"
    content["rows"][1]["top1"] -= 0.125
    (tmp_path / "results.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert main(["compare", str(folder), str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"][0]["value"] - found["runs"][1]["value"] == pytest.approx(0.125)
    assert found["settings"] == {"policy": [None, "w4a8"]}
    content["data"]["test"] += 1
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert main(["compare", str(folder), str(tmp_path)]) == 0
    assert "cannot be compared" in capsys.readouterr().out
