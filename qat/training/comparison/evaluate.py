"""Measure a network inside the user's own LightningModule, by its own test_step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from qat.contexts import training_mode
from qat.training.lightning.evaluation_data import NO_TEST_DATA, has_test_data
from qat.training.lightning.network import copy_with_network
from qat.training.lightning.quiet import quiet_lightning


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`."""

    metrics: dict[str, float]
    """The values that test_step logged, by name."""
    predictions: Tensor | None
    """Predicted classes, int64 (images,); None unless the network returns (N, classes)."""

    def metric(self, name: str) -> float:
        """The value that test_step logged under `name`.

        Raises:
            ValueError: it logged none; the message lists the names that it logged.
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
    """The test metrics of `module` with `network` in place of the submodule `network_name`.

    A new, quiet Trainer runs `module.test_step` on the test data of the fit; `trainer` and `module` stay as they are.

    Args:
        trainer: the Trainer of the fit.
        module: the user's LightningModule.
        network_name: name of its network, "" for the module itself.
        network: the network to measure.
        dataloaders: test dataloaders, if neither datamodule nor module has them.
        accelerator: "cpu" for networks that run there only; None: that of `trainer`.
        precision: Lightning's Trainer argument. One that ends in "true" changes the weights of `network`.

    Raises:
        ValueError: there are no test data.
    """
    datamodule = getattr(trainer, "datamodule", None)
    if not has_test_data(trainer, module, dataloaders):
        raise ValueError(NO_TEST_DATA)
    measured = copy_with_network(module, network_name, network)
    if precision != trainer.precision and str(trainer.precision).endswith("true"):
        measured.float()  # the fit has also changed the dtype of the modules around the network
    predictions: list[Tensor] = []

    def note_predictions(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 2:
            predictions.append(output.argmax(dim=1).cpu())

    handle = network.register_forward_hook(note_predictions)
    try:
        with training_mode(network, False), quiet_lightning():
            tester = _tester(trainer, accelerator, precision)
            if dataloaders is not None:
                logged = tester.test(measured, dataloaders, verbose=False)
            else:
                logged = tester.test(measured, datamodule=datamodule, verbose=False)
    finally:
        handle.remove()
        if datamodule is not None:
            datamodule.trainer = trainer
    metrics = {name: float(value) for of_dataloader in logged for name, value in of_dataloader.items()}
    return Evaluation(metrics, torch.cat(predictions) if predictions else None)


def _tester(trainer: L.Trainer, accelerator: str | None, precision: Any) -> L.Trainer:
    """A Trainer that measures and does nothing else, on the accelerator of `trainer` unless one is given."""
    return L.Trainer(
        accelerator=accelerator or str(trainer.strategy.root_device.type).replace("cuda", "gpu"),
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        precision=precision,
        default_root_dir=trainer.default_root_dir,
    )
