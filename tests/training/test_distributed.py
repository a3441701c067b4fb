"""Two processes on gloo, started once (two_processes.py), compared with this single process."""

import copy
import json
import multiprocessing.connection
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.utils.data import Subset

import qat
from qat.report import Results
from qat.training.callbacks import QuantizationAwareTraining
from qat.training.checkpoint.epoch_sampler import EpochSampler
from qat.training.lightning.strategies import check_launched_processes, check_machine, check_strategy
from tests.paths import ROOT
from tests.training import two_processes
from tests.training.two_processes import BATCH, OBSERVERS, fit, ranges
from tests.training.user_modules import LIGHTNING, Classifier, Data, Net, images, trainer

pytestmark = LIGHTNING

ROUNDING = 1e-6
"""Tolerance for ranges of order 1 whose sums have another order."""


def run(script: Path, *arguments: str, torchrun: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script in two processes; without torchrun, the first starts the second."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if torchrun else []
    return subprocess.run(
        [sys.executable, *launcher, str(script), *arguments],
        # safe path: else tests/training/lightning, beside the script, would be imported as Lightning
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONSAFEPATH": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "120",
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of the two processes, by rank."""
    folder = tmp_path_factory.mktemp("both")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [two_processes.__name__]
    )  # two imports of Lightning take longer than all they do here
    processes = [context.Process(target=two_processes.process, args=(rank, port, folder)) for rank in (0, 1)]
    for process in processes:
        process.start()
    try:
        multiprocessing.connection.wait([process.sentinel for process in processes], timeout=600)  # the first to end
        for process in processes:
            process.join(60)
    finally:
        for process in processes:
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    return [{**torch.load(folder / f"{rank}.pt"), "folder": folder} for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same fit in one process."""
    torch.manual_seed(0)
    return fit(tmp_path_factory.mktemp("alone"))


def learned(found: dict[str, Any]) -> dict[str, Tensor]:
    """The value of every parameter before the first step: of weights, those of the float network."""
    weights = {f"net.{name}": v for name, v in found["float"].items() if name.endswith(("weight", "bias"))}
    return weights | {name: v for name, v in found["start"].items() if name.endswith("scale")}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    assert a
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def apart(a: dict[str, Tensor], b: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """The distance of two trained states over their distance from `start`, for the worst tensor.

    Sums of gradients in another order differ in the last bits, and so may a weight or scale itself: 4 of its steps in
    float32 are not a difference. (A code that flips at a tie would be one, and is not seen in eight steps.)
    """
    shares = []
    for name, begin in start.items():
        ulps = 4 * 2.0**-23 * float(begin.abs().max())
        way, difference = (float((a[name] - other).abs().max()) for other in (begin, b[name]))
        shares.append(max(0.0, difference - ulps) / way if way else difference)
    return max(shares)


@pytest.mark.parametrize("policy", two_processes.POLICIES)
def test_every_kind_of_policy_ends_with_the_same_bits_in_both_processes(
    both: list[dict[str, Any]], policy: str
) -> None:
    first, second = (found["policies"][policy] for found in both)
    assert equal(first, second)
    assert not torch.equal(first["net.conv2.weight"], both[0]["fit"]["float"]["conv2.weight"])


# Calibration -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_batches", [1, 3, 5])
@pytest.mark.parametrize("observer", OBSERVERS)
def test_two_processes_observe_what_one_does(both: list[dict[str, Any]], observer: str, n_batches: int) -> None:
    """With one batch, the second process has none."""
    ours, theirs = (found["ranges"][n_batches][observer] for found in both)
    assert equal(ours, theirs)
    alone = ranges(n_batches, [observer])[observer]
    if observer in ("MinMax", "MSE", "Percentile"):
        assert equal(ours, alone)
    elif observer == "MeanAbs":
        assert distance(ours, alone) < ROUNDING
    else:  # a moving average depends on the order of its batches, as documented
        assert (distance(ours, alone) > ROUNDING) == (n_batches > 1)


def test_the_share_of_one_process_alone_would_give_other_ranges(both: list[dict[str, Any]]) -> None:
    assert not equal(both[0]["ranges"][1]["MSE"], both[0]["ranges"][3]["MSE"])
    assert not equal(both[0]["ranges"][3]["MSE"], both[0]["ranges"][5]["MSE"])


def test_processes_that_began_with_different_weights_calibrate_the_same_ranges(
    both: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    assert equal(both[0]["fit"]["start"], both[1]["fit"]["start"])
    assert equal(both[0]["fit"]["float"], both[1]["fit"]["float"])
    assert equal(both[0]["fit"]["start"], alone["start"])
    assert [found["fit"]["observed"] for found in both] == [48, 32]  # batches of 16
    assert alone["observed"] == 80


# Training --------------------------------------------------------------------------------------------------------------


def test_two_processes_train_as_one_with_the_same_images(both: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    first, second = (found["fit"] for found in both)
    together = torch.stack([first["seen"], second["seen"]], dim=2).flatten(1, 2)
    assert torch.equal(together, alone["seen"])
    assert first["steps"] == second["steps"] == alone["steps"] == 8
    assert equal(first["end"], second["end"])
    start = learned(alone)
    assert all(not torch.equal(value, first["end"][name]) for name, value in start.items())  # each had a gradient
    assert apart(first["end"], alone["end"], start) < 0.01


def test_the_same_weights_are_frozen_in_all_processes_without_sending_the_counts(both: list[dict[str, Any]]) -> None:
    first, second = (found["oscillations"]["end"] for found in both)
    counts = {name for name in first if ".oscillations." in name}
    assert equal(first, second)
    assert any(first[name].any() for name in counts if name.endswith("frozen"))
    assert both[0]["oscillations"]["not_sent"] == counts


def test_the_same_weights_are_pruned_in_all_processes(both: list[dict[str, Any]]) -> None:
    first, second = (found["pruning"] for found in both)
    assert equal(first["end"], second["end"])
    assert equal(first["masks"], second["masks"])
    assert int((first["end"]["net.conv2.weight"] == 0).sum()) == 108
    assert "the masks of Pruning differ between processes" in both[0]["failures"]["masks"]


def test_gradients_of_one_process_alone_would_train_another_network(both: list[dict[str, Any]], tmp_path: Path) -> None:
    half = fit(tmp_path, batch=BATCH // 2, data=Subset(images(128), range(0, 128, 2)))
    assert torch.equal(half["seen"], both[0]["fit"]["seen"])
    assert apart(half["end"], both[0]["fit"]["end"], learned(half)) > 0.2


def test_the_projects_own_data_are_split_into_the_steps_of_one_process(
    both: list[dict[str, Any]], tmp_path: Path
) -> None:
    alone = two_processes.order(tmp_path)["labels"]
    first, second = (found["order"]["labels"] for found in both)
    assert torch.equal(torch.stack([first, second], dim=2).flatten(1, 2), alone)
    epochs = alone.reshape(2, -1)
    assert not torch.equal(epochs[0], epochs[1])
    assert all(len(epoch.unique()) == epoch.numel() == 96 for epoch in epochs)


def test_shares_of_an_epoch_are_disjoint_and_equally_long() -> None:
    shares = [list(EpochSampler(11, 5, 3, rank)) for rank in range(3)]
    order = list(EpochSampler(11, 5))
    assert sorted(order) == list(range(11))
    assert [list(step) for step in zip(*shares, strict=True)] == [order[i : i + 3] for i in (0, 3, 6)]
    assert len(EpochSampler(11, 5, 3, 2)) == 3


# What must not differ --------------------------------------------------------------------------------------------------


def test_one_bit_of_one_scale_in_one_process_is_found_and_named(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert found["failures"]["meddling"].startswith(
            "at the end of epoch 1, quantizer 'conv2.weight_quantizer' differs between rank 0 and rank 1: change"
        )


def test_a_quantizer_that_only_one_process_has_to_calibrate_is_named(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert found["failures"]["names"].startswith(
            "quantizer 'sites.conv1' waits for calibration, but not on rank 1: prepare the same network"
        )


def test_a_failure_in_process_0_ends_the_others(both: list[dict[str, Any]]) -> None:
    first, second = (found["failures"]["rank_zero"] for found in both)
    assert first.startswith("ValueError: test_step logs no 'test/none'")
    assert second.startswith("RuntimeError: process 0 failed, so this one stops, too (ValueError: test_step logs no")


# Artefacts -------------------------------------------------------------------------------------------------------------


def test_the_report_is_made_once_and_counts_each_image_once(both: list[dict[str, Any]], tmp_path: Path) -> None:
    first, second = (found["report"] for found in both)
    assert first["results"] == second["results"]
    assert equal(first["ptq"]["PTQ MSE"], second["ptq"]["PTQ MSE"])
    assert (first["has_artefact"], second["has_artefact"]) == (True, False)
    folder = both[0]["folder"] / "report"
    assert Results.from_dict(json.loads((folder / "results.json").read_text())).to_dict() == first["results"]
    assert {p.name for p in folder.iterdir() if p.suffix in (".onnx", ".md", ".json")} == {
        "float.onnx", "model.onnx", "report.md", "results.json",
    }  # fmt: skip
    results = Results.from_dict(first["results"])
    assert (results.data.train, results.data.val, results.data.test) == (128, 32, 48)
    assert results.verification is not None
    assert results.verification.images == 48
    assert results.training is not None
    assert results.training.steps == 4  # 64 images in each of two processes, 32 a step, two epochs
    rows = {row.name: row for row in results.rows}
    assert "predicts the same class as PTQ MSE" in rows["QAT step 0"].note
    model = Classifier()
    measured = trainer(tmp_path).test(model, datamodule=Data(), verbose=False)[0]["test/top1"]
    assert rows["float"].top1 == pytest.approx(measured, abs=1e-7)
    labels, pixels = Data().test.tensors[1], Data().test.tensors[0]
    by_hand = (model.net.eval()(pixels).argmax(1) == labels).float().mean()
    assert rows["float"].top1 == pytest.approx(float(by_hand), abs=1e-7)


# SyncBatchNorm ---------------------------------------------------------------------------------------------------------


def batch_norms(module: nn.Module) -> set[str]:
    return {type(m).__name__ for m in module.modules() if "BatchNorm" in type(m).__name__}


def test_synchronized_batch_norm_is_calibrated_and_converted_like_batch_norm(tmp_path: Path) -> None:
    """As Lightning converts it before a fit, and as it reverts it afterwards."""
    x = images(16).tensors[0]
    prepared = qat.prepare(Net().eval(), "w4a4")
    qat.calibrate(prepared, [x])
    expected, exported = qat.convert(prepared), tmp_path / "model.onnx"
    synchronized = TorchSyncBatchNorm().apply(copy.deepcopy(prepared))
    reverted = TorchSyncBatchNorm().revert(copy.deepcopy(synchronized))
    assert batch_norms(synchronized) == {"SyncBatchNorm"}
    assert batch_norms(reverted) == {"_BatchNormXd"}
    for changed in (synchronized, reverted):
        assert torch.equal(changed.eval()(x), prepared(x))
        integer = qat.convert(changed)
        assert batch_norms(integer) == set()
        assert torch.equal(integer(x), expected(x))
        qat.export_onnx(integer, x[:1], exported)


def test_a_network_with_synchronized_batch_norm_gets_the_same_sites() -> None:
    synchronized = TorchSyncBatchNorm().apply(Net())
    plain, other = qat.prepare(Net(), "w4a4"), qat.prepare(TorchSyncBatchNorm().revert(synchronized), "w4a4")
    assert qat.inspect(plain).lines == qat.inspect(other).lines
    assert qat.inspect(plain).float_edges == qat.inspect(other).float_edges


# Other strategies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_a_strategy_that_splits_parameters_is_refused(strategy: type[Any]) -> None:
    with pytest.raises(
        ValueError,
        match=rf"^strategy {strategy.__name__} does not keep every weight .*: write L\.Trainer\(strategy='ddp'\)\.$",
    ):
        check_strategy(strategy())


def test_a_refused_strategy_leaves_the_network_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, fitting = Classifier(), trainer(tmp_path)
    monkeypatch.setattr(L.Trainer, "strategy", property(lambda self: FSDPStrategy()))
    with pytest.raises(ValueError, match="strategy FSDPStrategy does not keep"):
        QuantizationAwareTraining("w4a4").setup(fitting, model, "fit")
    assert not hasattr(model.net, "sites")


def test_a_strategy_that_spawns_processes_is_refused(tmp_path: Path) -> None:
    spawning = trainer(tmp_path, strategy="ddp_spawn", devices=2)
    with pytest.raises(ValueError, match=r"your model would come back without its quantizers: write L\.Trainer"):
        QuantizationAwareTraining("w4a4").setup(spawning, Classifier(), "fit")


def test_more_processes_than_the_trainer_uses_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_launched_processes(trainer(tmp_path))
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"torchrun has started 2 processes, the trainer uses 1: write trainer\.strat"):
        check_launched_processes(trainer(tmp_path))


def test_more_processes_than_cores_and_machines_that_nobody_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    quiet: dict[str, Any] = {"accelerator": "cpu", "strategy": "ddp", "logger": False, "enable_checkpointing": False}
    check_machine(L.Trainer(devices=4, **quiet))
    with pytest.raises(ValueError, match=r"trainer\.devices=99 is more than the 4 cores of this machine: write 4"):
        check_machine(L.Trainer(devices=99, **quiet))
    with pytest.raises(ValueError, match=r"trainer\.num_nodes=2 needs to know the other machines: start the run with"):
        check_machine(L.Trainer(devices=1, num_nodes=2, **quiet))


# The front door --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [False, True], ids=["Lightning", "torchrun"])
def test_train_py_in_two_processes(torchrun: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu", "batch_size=64"]
    tiny = ["float.epochs=2", "trainer.max_epochs=2", "calibration_images=128", "distillation.weight=0.5"]
    done = run(
        ROOT / "train.py",
        f"hydra.run.dir={folder}",
        *options,
        *tiny,
        torchrun=torchrun,
        QAT_CACHE_DIR=str(tmp_path / "cache"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("What is quantized") == done.stdout.count("Verification:") == 1
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert written - {"model_ptq.onnx"} == {
        "config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "model.onnx", "float.onnx", "results.json",
        "report.html", "report.md", "accuracy.png", "latency.png", "size.png", "training.png", "train.log",
        *(f"metrics/{name}.csv" for name in ("metrics", "comparison", "sites", "summary", "tensors", "verification")),
        "metrics/hparams.yaml",
    }  # fmt: skip
    results = Results.from_dict(json.loads((folder / "results.json").read_text()))
    assert results.training is not None
    assert results.training.steps == 18  # as one process with 128 images a step
    assert results.data.test == 500
    assert results.verification is not None
    assert results.verification.images == 500
    rows = {row.name: row for row in results.rows}
    assert rows["QAT fake-quant"].top1 > 0.8
    assert rows["QAT step 0"].note == "predicts the same class as PTQ MSE for every test sample"
