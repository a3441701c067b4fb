"""Every program runs on a tiny network and writes the promised fields. No test depends on a time."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file

import qat
from benchmarks import command_line, peers
from benchmarks.networks import NETWORKS, BenchmarkNetwork, networks_for
from benchmarks.peers.peer import load_peer
from benchmarks.training_step import TrainingStep
from benchmarks.vision_transformer import VisionTransformer
from qat.models import ResNetCifar


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a program on a small network; returns the content of its results file."""

    small = BenchmarkNetwork("ResNet-20", lambda: ResNetCifar(8, width=4), 4, 32, 10)
    monkeypatch.setitem(NETWORKS, "ResNet-20", small)

    def running(program: str, *arguments: object) -> dict[str, Any]:
        out = tmp_path / "measurement.json"
        module = importlib.import_module(f"benchmarks.{program}")
        monkeypatch.setattr(sys, "argv", [f"benchmarks/{program}.py", *map(str, arguments), "--out", str(out)])
        module.main()
        return json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in the results"))

    return running


def is_row(row: dict[str, float]) -> bool:
    positive = all(math.isfinite(row[key]) and row[key] > 0 for key in ("seconds", "ratio"))
    return positive and row["ratio_lower_quartile"] <= row["ratio"] <= row["ratio_upper_quartile"]


@pytest.mark.slow
def test_step_time(run):
    arguments = ["--networks", "ResNet-20", "--modes", "eager", "--policies", "w8a8"]
    measurement = run("step_time", *arguments, "--rounds", 1, "--batch", 2, "--threads", 1)
    assert measurement["command"].startswith("python -m benchmarks.step_time --networks ResNet-20 --modes eager")
    assert measurement["environment"]["threads"] == 1
    assert [case["precision"] for case in measurement["cases"]] == ["float32", "bfloat16"]
    for case in measurement["cases"]:
        assert set(case["steps"]) == {"float", "w8a8"}, case
        assert all(is_row(row) for row in case["steps"].values())
        assert case["steps"]["w8a8"]["memory_ratio"] > 1


@pytest.mark.slow
def test_memory(run):
    (case,) = run("memory", "--networks", "ResNet-20", "--batch", 2, "--threads", 1)["cases"]
    assert case["memory_ratio"] == case["peak_bytes"]["w8a8"] / case["peak_bytes"]["float"] > 1


def test_scale(run):
    measurement = run("scale", "--depths", 2, "--widths", 4, "--threads", 1)
    assert [(case["depth"], case["width"]) for case in measurement["cases"]] == [(2, 4)]
    assert set(measurement["cases"][0]["seconds"]) == {"prepare", "calibrate", "step", "convert", "export", "verify"}


@pytest.mark.slow
def test_a_large_model_is_prepared_in_its_own_memory(run):
    pytest.importorskip("transformers")
    measurement = run("large_model", "--layers", 2, "--width", 1024, "--threads", 1)
    assert [case["observer"] for case in measurement["cases"]] == ["MinMax", "MSE"]
    assert all(1.0 < case["peak_over_parameters"] < 1.9 for case in measurement["cases"])  # a copy would be above 2


@pytest.mark.slow
def test_start_up(run):
    measurement = run("start_up", "--rounds", 1, "--threads", 1)
    assert list(measurement["seconds"])[-1] == "train.py to its first step"
    assert all(len(times) == 1 for times in measurement["seconds"].values())


@pytest.mark.slow
def test_channels_last_steps_are_measured(run):
    arguments = ["--networks", "ResNet-20", "--modes", "eager", "--precisions", "float32", "--policies", "w8a8"]
    measurement = run("step_time", *arguments, "--layout", "channels_last", "--rounds", 1, "--batch", 2, "--threads", 1)
    (case,) = measurement["cases"]
    assert case["layout"] == "channels_last"
    assert is_row(case["steps"]["w8a8"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("program", ["step_time", "operation", "memory", "peers.__main__", "profile_step", "pipeline"])
def test_a_gpu_that_is_not_there_is_refused_in_a_sentence(run, program: str):
    with pytest.raises(SystemExit, match=r"^--device cuda: torch sees no GPU here; write --device cpu\.$"):
        run(program, "--device", "cuda")


def test_a_gpu_measures_more_networks_on_larger_batches():
    assert [n for n in networks_for("cuda") if n not in networks_for("cpu")] == [
        "ResNet-50",
        "MobileNetV2",
        "ViT-small",
    ]
    assert all(NETWORKS[name].batch_on("cuda") >= NETWORKS[name].batch_on("cpu") for name in NETWORKS)


def test_the_vision_transformer_trains_quantized():
    network = VisionTransformer(size=16, patch=8, width=64, depth=1, num_classes=10)
    x, y = torch.randn(2, 3, 16, 16), torch.tensor([0, 1])
    prepared = qat.prepare(network, qat.load_policy("w8a8").with_parts("LSQ", "MinMax"), x)
    quantized = {name for name, module in prepared.named_modules() if getattr(module, "weight_quantizer", None)}
    layers = {"blocks.0.qkv", "blocks.0.out", "blocks.0.up", "blocks.0.down", "patches", "head"}
    assert quantized == layers
    qat.calibrate(prepared, [x])
    TrainingStep(prepared.train(), x, y)()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in prepared.parameters())


def test_what_fails_is_recorded_and_the_next_case_runs(run):
    measurement = run("step_time", "--networks", "ResNet-20", "--modes", "eager", "--policies", "w99a8", "--rounds", 1,
                "--batch", 2, "--threads", 1)  # fmt: skip
    assert len(measurement["cases"]) == 2
    assert all("bits=99 is not a valid width" in case["error"] for case in measurement["cases"])


def test_operation(run):
    measurement = run("operation", "--small", "--modes", "eager", "--rounds", 1, "--threads", 1)
    assert [case["kind"] for case in measurement["cases"]] == ["per tensor", "per channel"]
    for case in measurement["cases"]:
        assert case["errors"] == {}
        assert len(case["operations"]) == 5
        assert all(is_row(row) for row in case["operations"].values())


@pytest.mark.slow
def test_compiled_networks_have_no_graph_breaks(run):
    measurement = run("step_time", "--networks", "ResNet-20", "--modes", "compiled", "--precisions", "float32", "--policies",
                "w8a8", "--rounds", 1, "--batch", 2, "--threads", 1)  # fmt: skip
    step = measurement["cases"][0]["steps"]["w8a8"]
    assert (step["graphs"], step["graph_breaks"]) == (1, 0)


@pytest.mark.slow
def test_pipeline(run):
    measurement = run("pipeline", "--images", 32, "--batch", 4, "--rounds", 1, "--threads", 1)
    assert set(measurement["candidates"]) == {"float", "w8a8", "batch"}
    assert all(is_row(row) for row in measurement["candidates"].values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*does not have many workers.*")
def test_oscillation(run):
    measurement = run("oscillation", "--images", 64, "--batch", 32, "--float-epochs", 1, "--epochs", 1, "--seeds", 0,
                "--width", 2, "--lr", 1e-4, "--threads", 1)  # fmt: skip
    assert measurement["steps"] == 2
    assert {name: len(runs) for name, runs in measurement["controls"].items()} == {
        "nothing": 1,
        "dampening": 1,
        "freezing": 1,
    }
    for (run_of_seed,) in measurement["controls"].values():
        assert all(0 <= run_of_seed[key] <= 1 for key in run_of_seed if key not in ("seed", "seconds"))


@pytest.mark.slow
def test_artefact_time(run, monkeypatch):
    monkeypatch.setattr("benchmarks.timing.WARMUP", 0)
    measurement = run("artefact_time", "--images", 4, "--batch", 2, "--rounds", 1, "--threads", 1)
    assert set(measurement["candidates"]) == {"float export", "convert", "export", "verify"}
    assert all(is_row(row) for row in measurement["candidates"].values())


def test_profile(run):
    measurement = run("profile_step", "--rounds", 1, "--batch", 2, "--top", 5, "--threads", 1)
    for rows in measurement["steps"].values():
        assert len(rows) == 5
        assert 0 < sum(row["share"] for row in rows) <= 1
    assert any("convolution" in row["operation"] for row in measurement["steps"]["float"])


def test_latency(run, tmp_path):
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "small", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    folder = tmp_path / "some_recipe"
    folder.mkdir()
    for name in ("float.onnx", "model.onnx"):
        onnx.save(model, folder / name)
    measurement = run("latency", folder, "--rounds", 3)
    assert set(measurement["latency"]["some_recipe"]["ratio"]["int8"]) == {"1", "32"}
    assert sum(measurement["latency"]["some_recipe"]["slowest"]["int8"].values()) <= 1


@pytest.mark.slow
def test_peers_run_in_their_own_process(run):
    measurement = run(
        "peers.__main__", "--names", "qat", "--modes", "eager", "--rounds", 1, "--batch", 2, "--threads", 1
    )
    assert is_row(measurement["peers"]["qat"]["eager"]["steps"]["qat"])
    assert measurement["peers"]["qat"]["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_a_peer_that_cannot_be_installed_is_recorded(run, monkeypatch, tmp_path):
    import benchmarks.peers.__main__ as driver

    def refuse(command: list[str], timeout: float | None = None) -> None:
        raise driver.PeerError("no matching distribution")

    monkeypatch.setattr(driver, "_run", refuse)
    measurement = run(
        "peers.__main__", "--names", "brevitas", "nncf", "--rounds", 1, "--batch", 2, "--folder", tmp_path
    )
    assert {name: peer["error"] for name, peer in measurement["peers"].items()} == {
        "brevitas": "no matching distribution",
        "nncf": "no matching distribution",
    }


def test_a_worker_that_is_stopped_keeps_what_it_found(monkeypatch, tmp_path):
    import benchmarks.peers.__main__ as driver

    out = tmp_path / "measurement.json"

    def stopped_in_the_second_mode(command: list[str], timeout: float | None = None) -> None:
        out.write_text(json.dumps({"eager": {"steps": {}}}))
        raise driver.PeerError("stopped after 9 seconds")

    monkeypatch.setattr(driver, "_run", stopped_in_the_second_mode)
    options = argparse.Namespace(batch=1, rounds=1, threads=1, modes=["eager", "compiled"], timeout=9.0, device="cpu")
    assert driver.run_worker(Path("python"), "nncf", out, options) == {
        "eager": {"steps": {}},
        "compiled": {"error": "stopped after 9 seconds"},
    }


def test_a_command_that_fails_says_why_in_one_line():
    import benchmarks.peers.__main__ as driver

    with pytest.raises(driver.PeerError, match=r"^ValueError: broken$"):
        driver._run([sys.executable, "-c", "raise ValueError('broken')"])
    with pytest.raises(driver.PeerError, match="stopped after 0 seconds"):
        driver._run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.1)


@pytest.mark.parametrize("name", peers.NAMES)
def test_every_peer_has_what_the_driver_needs(name):
    library = load_peer(name)  # imports nothing of the library: none of them is installed here
    assert isinstance(library.PACKAGES, tuple)
    assert library.SETTINGS
    assert callable(library.prepare)


def test_every_file_of_a_peer_is_listed():
    folder = Path(peers.__file__).parent
    machinery = {"__init__", "__main__", "peer", "worker"}
    assert {path.stem for path in folder.glob("*.py")} - machinery == set(peers.NAMES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there():
    with pytest.raises(SystemExit, match="write --device cpu"):
        command_line.check_device("cuda")


def test_the_float_control_takes_the_steps_of_the_recipe_and_keeps_its_weights(run, tmp_path, monkeypatch):
    from benchmarks import float_control

    monkeypatch.setenv("QAT_CACHE_DIR", str(tmp_path))
    few = ["recipe=digits_w8a8", "float.max_steps=2", "trainer.max_steps=3", "data.limit_test=50"]
    measurement = run("float_control", *few, "--weights", tmp_path / "longer.safetensors")
    assert (measurement["recipe"], measurement["steps"], measurement["test"]) == ("digits_w8a8", 3, 50)
    assert measurement["after"] != measurement["before"]
    (before,) = (tmp_path / "float").glob("*.safetensors")
    kernels = [load_file(path)["conv1.weight"] for path in (before, tmp_path / "longer.safetensors")]
    assert not torch.equal(*kernels)
    assert f"{100 * measurement['after']['top1']:.2f}" in float_control.table(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_language_model(run):
    pytest.importorskip("transformers", reason="it comes with the extra hf")
    measurement = run("language_model", "--seeds", 0, "--steps", 4, "--qat-steps", 2, "--calibration", 1, "--pieces", 4,
                "--threads", 1)  # fmt: skip
    (seed,) = measurement["seeds"]
    assert measurement["text"]["held_out"] > 20_000
    for found in seed["formats"].values():
        assert all(0 < loss < 10 for loss in found["rows"].values())
        assert found["bytes"] < 0.35 * 4 * measurement["network"]["parameters"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_number_formats(run, tmp_path, monkeypatch):
    monkeypatch.setenv("QAT_CACHE_DIR", str(tmp_path))
    overrides = ["--overrides", "trainer.max_epochs=1", "float.epochs=3"]
    measurement = run("number_formats", "--formats", "nvfp4", "mxfp8", "--seeds", 0, *overrides)
    for case in measurement["cases"]:
        assert case["read_back"] == case["qat"]
        assert all(0.2 < case[key] <= 1 for key in ("float", "ptq", "qat"))
    nvfp4, mxfp8 = (case["bytes"] for case in measurement["cases"])
    assert nvfp4 < mxfp8 < measurement["cases"][0]["float_bytes"]


def test_targets(run, monkeypatch):
    from benchmarks import targets

    x = torch.randn(4, 3, 8, 8)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5))
    monkeypatch.setattr(targets, "networks", lambda _: [targets.Network("tiny", model.eval(), x, x, trained=False)])
    monkeypatch.setattr(targets, "POLICIES", ("w4a8",))
    measurement = run("targets", "--targets", "onnxruntime", "portable")
    own, portable = measurement["cases"]
    assert (own["passed"], own["integer_layers"], own["float_layers"], own["mismatches"]) == (True, 2, 0, 0)
    assert portable["size_bytes"] > 0
    assert "| tiny | `w4a8` | `portable` | ONNX Runtime" in targets.table(measurement)


def test_a_runtime_that_is_missing_is_a_row_with_its_reason(run, monkeypatch):
    from benchmarks import targets

    x, model = torch.randn(2, 4), torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    monkeypatch.setattr(targets, "networks", lambda _: [targets.Network("tiny", model, x, x, trained=False)])
    monkeypatch.setattr(targets, "POLICIES", ("w8a8",))
    monkeypatch.setitem(sys.modules, "openvino", None)
    measurement = run("targets", "--targets", "openvino")
    assert "OpenVINO is not installed" in measurement["cases"][0]["reason"]
    assert "OpenVINO is not installed" in targets.table(measurement)
