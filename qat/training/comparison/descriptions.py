"""What a fit found, in the words of `qat.report`."""

from __future__ import annotations

import copy
import math
from collections.abc import Sized
from typing import Any

import lightning as L
import torch
from torch import nn

from qat.export import Verification
from qat.report import Data, Environment, SiteInfo, SiteResult, VerificationResult
from qat.training.callbacks.quantization_aware_training import QuantizationAwareTraining
from qat.training.lightning.inputs import batch_as_in_evaluation, find_test_dataloaders
from qat.transform import inspect


def sites(network: nn.Module) -> tuple[list[SiteInfo], list[str]]:
    """The sites of a prepared network, and what stays in float."""
    found = inspect(network)
    infos = [SiteInfo(line.name, line.operation, line.weight or None, line.activation or None) for line in found.lines]
    return infos, [*found.float_edges, *found.notes]


def verification(found: Verification) -> VerificationResult:
    """Differences are rounded up to whole steps, so that none disappears."""
    return VerificationResult(
        codes_compared=found.codes_compared,
        code_mismatches=found.code_mismatches,
        top1_agreement=found.top1_agreement,
        max_step_difference=math.ceil(found.max_step_difference),
        images=found.images,
        quantized_operators=dict(found.operators),
        sites=[
            SiteResult(s.name, tuple(s.shape), s.codes_compared, s.code_mismatches, math.ceil(s.max_step_difference))
            for s in found.sites
        ],
    )


def data(
    trainer: L.Trainer, module: L.LightningModule, qat: QuantizationAwareTraining, dataloaders: Any = None
) -> Data:
    """The data of a fit, as far as its dataloaders tell."""
    source = getattr(trainer, "datamodule", None) or module
    loaders = find_test_dataloaders(trainer, module, dataloaders)
    first = qat.inputs(batch_as_in_evaluation(trainer, module, next(iter(loaders[0])), torch.device("cpu")))
    image = next(iter(first.values())) if isinstance(first, dict) else first[0] if isinstance(first, tuple) else first
    with torch.no_grad():
        output = (qat.float_network or copy.deepcopy(qat.network_of(module))).cpu().eval()(image[:1])
    return Data(
        name=type(source).__name__,
        label=type(source).__name__,
        train=_images(trainer.train_dataloader),
        val=_images(trainer.val_dataloaders),
        test=_images(loaders),
        image_shape=tuple(image.shape[1:]),
        classes=output.shape[-1],
    )


def environment(trainer: L.Trainer) -> Environment:
    """This process, and the device that it trained on."""
    device = trainer.strategy.root_device
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return Environment.collect(threads=torch.get_num_threads(), accelerator=accelerator)


def _images(loaders: Any) -> int:
    """Number of samples behind one dataloader or several; 0 where it is unknown."""
    flat = loaders if isinstance(loaders, list | tuple) else [] if loaders is None else [loaders]
    datasets = [getattr(loader, "dataset", None) for loader in flat]
    return sum(len(dataset) for dataset in datasets if isinstance(dataset, Sized))
