"""Sites, verification, data and environment of a fit as records of `qat.report`."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from qat.capture import copy_model
from qat.report import Data, Environment, SiteInfo, VerificationResult
from qat.torch_private import tree_leaves
from qat.training.comparison.artefact import Artefact, one_sample
from qat.training.comparison.batch_parts import first_output
from qat.training.comparison.verification_record import verification_record
from qat.training.lightning.evaluation_data import find_test_dataloaders
from qat.training.lightning.inputs import BatchToInputs, batch_as_in_evaluation
from qat.training.lightning.random_numbers import seeded
from qat.transform.batches import positional_arguments
from qat.transform.inspect import table


def describe_sites(network: nn.Module) -> tuple[list[SiteInfo], list[str], list[str]]:
    """The sites of a prepared network, the edges that stay in float with further notes, and how much is integer."""
    summary = table(network)
    sites = [
        SiteInfo(line.name, line.operation, line.weight or None, line.activation or None) for line in summary.lines
    ]
    return sites, [*summary.float_edges, *summary.notes], summary.facts


def describe_verifications(artefact: Artefact) -> list[VerificationResult]:
    """The records of the verifications of an artefact and of its files for further targets."""
    return [
        verification_record(file.path, file.verification, artefact.latency_shares if i == 0 else None)
        for i, file in enumerate(artefact.files)
    ]


def describe_data(
    trainer: L.Trainer,
    module: L.LightningModule,
    inputs: BatchToInputs,
    network: nn.Module,
    dataloaders: Any = None,
    classes: bool = True,
) -> Data:
    """The data of a fit, as far as its dataloaders tell.

    Args:
        trainer: the Trainer of the fit.
        module: the user's LightningModule.
        inputs: from a batch to the network's inputs.
        network: tells the number of classes; a copy of it sees one sample.
        dataloaders: test dataloaders, if neither datamodule nor module has them.
        classes: whether its outputs are classes.
    """
    source = getattr(trainer, "datamodule", None) or module
    loaders = find_test_dataloaders(trainer, module, dataloaders)
    with seeded(0, loaders):
        given = inputs(batch_as_in_evaluation(trainer, module, next(iter(loaders[0])), torch.device("cpu")))
    arguments = positional_arguments(network, given)
    sample = next(x for x in tree_leaves(arguments) if isinstance(x, Tensor))
    shape = tuple(sample.shape[1:])
    return Data(
        name=type(source).__name__,
        label=type(source).__name__,
        train=_count_samples(trainer.train_dataloader),
        val=_count_samples(trainer.val_dataloaders),
        test=_count_samples(loaders),
        image_shape=shape,
        classes=_count_classes(network, arguments) if classes else None,
        samples="images" if len(shape) == 3 and shape[0] in (1, 3, 4) else "samples",
    )


def _count_classes(network: nn.Module, arguments: tuple[Any, ...]) -> int | None:
    """The classes of the output for one sample: the channels of an image, else the last dimension; None if it is one number."""
    with torch.no_grad():
        output = first_output(copy_model(network).cpu().eval()(*one_sample(arguments)))
    if not isinstance(output, Tensor) or output.ndim < 2:
        return None
    classes = int(output.shape[1 if output.ndim > 3 else -1])
    return classes if classes > 1 else None


def describe_environment(trainer: L.Trainer) -> Environment:
    """The environment of this process, and the device that it trained on."""
    device = trainer.strategy.root_device
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return Environment.collect(threads=torch.get_num_threads(), accelerator=accelerator)


def _count_samples(loaders: Any) -> int:
    """Number of samples of one dataloader or several; those of unknown length count 0."""
    flat = loaders if isinstance(loaders, list | tuple) else [] if loaders is None else [loaders]
    datasets = [getattr(loader, "dataset", None) for loader in flat]
    return sum(len(dataset) for dataset in datasets if isinstance(dataset, Sized))
