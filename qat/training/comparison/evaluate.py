"""One way to measure every network: inside the user's own LightningModule, by its own test_step."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from qat.training.lightning.inputs import NO_TEST_DATA, has_test_data
from qat.training.lightning.network import with_network


@dataclass(frozen=True)
class Evaluation:
    """metrics: what test_step logged. predictions: int64 (images,), where the network returns (N, classes)."""

    metrics: dict[str, float]
    predictions: Tensor | None

    def metric(self, name: str) -> float:
        """One logged value.

        Raises:
            ValueError: test_step logs no such metric; the message lists what it logs.
        """
        if name not in self.metrics:
            logged = ", ".join(self.metrics) or "nothing"
            raise ValueError(
                f"test_step logs no {name!r} (it logs {logged}): pass the name of its accuracy, Report(metric=...)."
            )
        return self.metrics[name]


def evaluate(
    trainer: L.Trainer,
    module: L.LightningModule,
    network_name: str,
    network: nn.Module,
    dataloaders: Any = None,
    accelerator: str | None = None,
    precision: Any = "32-true",
) -> Evaluation:
    """The test metrics of `module` with `network` in the place of the submodule `network_name`.

    A fresh, silent Trainer runs `module.test_step` on the test data of the fit; `trainer` and `module` stay as they are.

    Args:
        dataloaders: test dataloaders, where neither datamodule nor module has them.
        accelerator: "cpu" for networks that run there only; None: that of `trainer`.
        precision: as Lightning's Trainer takes it. One that ends in "true" changes the weights of `network`.

    Raises:
        ValueError: there are no test data.
    """
    datamodule = getattr(trainer, "datamodule", None)
    if not has_test_data(trainer, module, dataloaders):
        raise ValueError(NO_TEST_DATA)
    twin = with_network(module, network_name, network)
    if precision != trainer.precision and str(trainer.precision).endswith("true"):
        twin.float()  # the fit has changed the types of what stands around the network
    predictions: list[Tensor] = []

    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 2:
            predictions.append(output.argmax(dim=1).cpu())

    handle = network.register_forward_hook(note)
    before = {m: m.training for m in network.modules()}
    try:
        with silence():
            silent = L.Trainer(
                accelerator=accelerator or _accelerator(trainer),
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                inference_mode=False,
                precision=precision,
                default_root_dir=trainer.default_root_dir,
            )
            if dataloaders is not None:
                logged = silent.test(twin, dataloaders, verbose=False)
            else:
                logged = silent.test(twin, datamodule=datamodule, verbose=False)
    finally:
        handle.remove()
        for m, was in before.items():
            m.training = was
        if datamodule is not None:
            datamodule.trainer = trainer
    metrics = {key: float(value) for part in logged for key, value in part.items()}
    return Evaluation(metrics, torch.cat(predictions) if predictions else None)


@contextmanager
def silence() -> Iterator[None]:
    """Lightning says nothing about devices, and warns of nothing that a measurement does not care about."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            yield
    finally:
        log.setLevel(level)


def _accelerator(trainer: L.Trainer) -> str:
    return str(trainer.strategy.root_device.type).replace("cuda", "gpu")
