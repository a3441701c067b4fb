"""What each process of test_distributed.py does. The test also runs some scenarios in a single process.

Process r saves its results in FOLDER/r.pt. By hand, where the test only says that one failed:

    PYTHONSAFEPATH=1 PYTHONPATH=. torchrun --nproc-per-node 2 tests/training/two_processes.py FOLDER
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

import qat
from qat.data import ImageData, TensorImages
from qat.experiment.datamodule import ImageDataModule
from qat.training.callbacks import (
    ExportONNX,
    OscillationControl,
    ProgressiveBits,
    Pruning,
    PTQBaselines,
    QuantizationAwareTraining,
    Report,
)
from qat.transform import calibrate, quantizers
from qat.transform.distributed import rank, shard
from tests.training.user_modules import Classifier, Data, images, trainer

OBSERVERS = ("MinMax", "MSE", "Percentile", "MeanAbs", "MovingAverage")
BATCH = 32
"""Images of one step, in all processes together."""

Results = dict[str, Any]


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def quantizer_state(module: nn.Module) -> dict[str, Tensor]:
    return {f"{n}.{k}": v for n, q in quantizers(module).items() for k, v in state(q).items()}


class FrozenBatchNorm(Classifier):
    """BatchNorm keeps its statistics; every process begins with different weights, as in a script without a seed."""

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__(lr)
        self.seen: list[Tensor] = []
        self.observed = 0
        self.net.register_forward_pre_hook(self._count)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(1 + int(os.environ.get("RANK", 0)))

    def _count(self, net: nn.Module, inputs: tuple[Tensor]) -> None:
        if any(quantizer.mode is qat.Mode.OBSERVE for quantizer in quantizers(net).values()):
            self.observed += len(inputs[0])

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        self.seen.append(batch[0].clone())


class AtStart(L.Callback):
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.state = quantizer_state(pl_module)


class ChangeWeights(L.Callback):
    """Gives the last process other weights than the first, before the first step."""

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if rank() == 1 and batch_idx == 0:
            with torch.no_grad():
                module.net.conv2.weight.mul_(torch.linspace(0.1, 3, 6)[:, None, None, None])


class ChangeOneScale(L.Callback):
    """One process changes one scale by one bit."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_rank == 1:
            with torch.no_grad():
                scale = quantizers(pl_module)["net.conv2.weight_quantizer"].scale
                scale[1] = torch.nextafter(scale[1], torch.tensor(torch.inf))  # type: ignore[operator, index]


def strategy() -> dict[str, Any]:
    processes = int(os.environ.get("WORLD_SIZE", 1))
    return {"devices": processes, "strategy": "ddp" if processes > 1 else "auto"}


def loader(data: Any, batch: int) -> DataLoader[Any]:
    """Image i of a step is on rank i % processes, so a step has the images of `data` in order."""
    processes = strategy()["devices"]
    split = DistributedSampler(data, processes, int(os.environ.get("RANK", 0)), shuffle=False)
    return DataLoader(data, batch // processes, sampler=split)


def fit(folder: Path, policy: str = "w4a4", batch: int = BATCH, data: Any = None) -> Results:
    """Eight steps. batch: the number of images in all processes together."""
    model, start = FrozenBatchNorm(), AtStart()
    callback = QuantizationAwareTraining(policy, calibration_images=80, quantizer_lr_ratio=0.1)
    fitting = trainer(folder, callback, start, epochs=2, **strategy())
    fitting.fit(model, loader(data or images(128), batch))
    return {
        "start": start.state,
        "end": state(model),
        "float": state(callback.float_network),  # type: ignore[arg-type]
        "observed": model.observed,
        "seen": torch.stack(model.seen),
        "steps": fitting.global_step,
    }


def oscillations(folder: Path) -> Results:
    """Eight steps in which weights are dampened and frozen."""
    model = FrozenBatchNorm(lr=0.3)
    control = OscillationControl(dampening=0.1, freezing=0.05, momentum=0.2, max_bits=8)
    callback = QuantizationAwareTraining("w4a4", calibration_images=80, quantizer_lr_ratio=0.001)
    trainer(folder, callback, control, epochs=2, **strategy()).fit(model, loader(images(128), BATCH))
    return {"end": state(model), "not_sent": model._ddp_params_and_buffers_to_ignore}


POLICIES: dict[str, dict[str, Any]] = {
    "in stages": {"preset": "w4a4"},
    "dynamic": {"preset": "w8_dynamic"},
    "by table": {"preset": "w4a4", "weight": {"quantizer": "KMeans"}, "activation": {"quantizer": "LCQ"}},
}


def policies(folder: Path) -> Results:
    """Eight steps with each policy."""
    found = {}
    for name, content in POLICIES.items():
        model = FrozenBatchNorm()
        policy = qat.load_policy(content)
        callbacks: list[L.Callback] = [QuantizationAwareTraining(policy, calibration_images=80, quantizer_lr_ratio=0.1)]
        callbacks += [ProgressiveBits([8, 4])] if name == "in stages" else []
        trainer(folder, *callbacks, epochs=2, **strategy()).fit(model, loader(images(128), BATCH))
        found[name] = state(model)
    return found


def pruning(folder: Path) -> Results:
    """Eight steps in which half of the weights become zero."""
    model, callback = FrozenBatchNorm(), Pruning(0.5, end=0.6, every=1)
    qat = QuantizationAwareTraining("w4a4", calibration_images=80, quantizer_lr_ratio=0.1)
    trainer(folder, callback, qat, epochs=2, **strategy()).fit(model, loader(images(128), BATCH))
    return {"end": state(model), "masks": callback.masks}


def ranges(n_batches: int, observers: Sequence[str] = OBSERVERS) -> Results:
    """The ranges that each observer finds when this process sees its share of the batches."""
    found = {}
    for observer in observers:
        policy = qat.load_policy("w4a4").with_parts("LSQ", observer)
        prepared = qat.prepare(Classifier().net.eval(), policy)
        batches = images(96).tensors[0].mul(torch.linspace(1, 3, 96)[:, None, None, None]).split(20)[:n_batches]
        calibrate(prepared, shard(batches))
        found[observer] = quantizer_state(prepared)
    return found


def order(folder: Path) -> Results:
    """Labels of every batch of ImageDataModule in two epochs; the label of an image is its number."""
    numbers = TensorImages(torch.zeros(103, 1, 8, 8, dtype=torch.uint8), torch.arange(103))
    few = TensorImages(numbers.images[:8], numbers.labels[:8])
    classes = tuple(map(str, range(103)))
    data = ImageData("numbers", "numbers", classes, (0.5,), (0.5,), (1, 8, 8), numbers, few, few)
    seen: list[Tensor] = []

    class Counting(Classifier):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            seen.append(batch[1].clone())
            return self(batch[0]).sum()

        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None: ...

    size = BATCH // strategy()["devices"]
    trainer(folder, epochs=2, **strategy()).fit(Counting(), datamodule=ImageDataModule(data, size))
    return {"labels": torch.stack(seen)}


def report(folder: Path) -> Results:
    """The results of a fit with four callbacks and a checkpoint."""
    made, export = Report(), ExportONNX(folder / "model.onnx", float_path=folder / "float.onnx")
    ptq = PTQBaselines(["MSE"])
    checkpoint = ModelCheckpoint(folder / "checkpoints", monitor="val/top1", mode="max")
    callbacks = [
        QuantizationAwareTraining("w4a4", calibration_images=64, quantizer_lr_ratio=0.01),
        ptq,
        export,
        made,
        checkpoint,
    ]
    trainer(folder, *callbacks, epochs=2, enable_checkpointing=True, **strategy()).fit(Classifier(), datamodule=Data())
    return {
        "results": None if made.results is None else made.results.to_dict(),
        "ptq": {name: quantizer_state(network) for name, network in ptq.networks.items()},
        "has_artefact": export.artefact is not None,
        "distributed": dist.is_available() and dist.is_initialized(),
    }


def failures(folder: Path) -> dict[str, str]:
    """Error messages of fits in which the processes differ."""
    messages = {}
    try:
        callbacks = [QuantizationAwareTraining("w4a4", calibration_images=32), ChangeOneScale()]
        trainer(folder, *callbacks, **strategy()).fit(Classifier(), DataLoader(images(32), BATCH // 2))
    except RuntimeError as error:
        messages["meddling"] = str(error)
    try:
        callbacks = [QuantizationAwareTraining("w4a4", calibration_images=32), ChangeWeights(), Pruning(0.5, every=1)]
        trainer(folder, *callbacks, **strategy()).fit(Classifier(), DataLoader(images(32), BATCH // 4))
    except RuntimeError as error:
        messages["masks"] = str(error)
    prepared = qat.prepare(Classifier().net, "w4a4")
    batches = images(8).tensors[0].split(4)
    if rank() == 1:
        prepared.sites["conv1"].set_range(torch.zeros(1), torch.ones(1))
    try:
        calibrate(prepared, shard(batches))
    except RuntimeError as error:
        messages["names"] = str(error)
    report = Report(metric="test/none")
    callbacks = [QuantizationAwareTraining("w4a4", calibration_images=32), report]
    try:
        trainer(folder, *callbacks, **strategy()).fit(Classifier(), datamodule=Data())
    except (RuntimeError, ValueError) as error:
        messages["rank_zero"] = f"{type(error).__name__}: {error}"
    return messages


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="lightning|torch")
    found: Results = {"fit": fit(folder), "ranges": {n: ranges(n) for n in (1, 3, 5)}, "order": order(folder)}
    found |= {"oscillations": oscillations(folder), "policies": policies(folder), "pruning": pruning(folder)}
    found |= {"report": report(folder / "report"), "failures": failures(folder)}
    torch.save(found, folder / f"{rank()}.pt")


def process(rank: int, port: int, folder: Path) -> None:
    """`main` as one of two processes, in the environment that torchrun makes."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "tests"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    main(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
