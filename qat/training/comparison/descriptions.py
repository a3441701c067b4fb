"""Sites, verification, data and environment of a fit as records of `qat.report`."""

from __future__ import annotations

import math
from collections.abc import Sized
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from qat.capture import copy_model
from qat.export import verify
from qat.export.verification import SiteAgreement
from qat.report import IDENTICAL_DB, Data, Environment, SiteInfo, SiteResult, VerificationResult
from qat.training.comparison.artefact import Artefact
from qat.training.lightning.evaluation_data import find_test_dataloaders
from qat.training.lightning.inputs import BatchToInputs, batch_as_in_evaluation
from qat.transform.batches import positional_arguments
from qat.transform.inspect import table


def describe_sites(network: nn.Module) -> tuple[list[SiteInfo], list[str], list[str]]:
    """The sites of a prepared network, the edges that stay in float with further notes, and how much is integer."""
    summary = table(network)
    sites = [
        SiteInfo(line.name, line.operation, line.weight or None, line.activation or None) for line in summary.lines
    ]
    return sites, [*summary.float_edges, *summary.notes], summary.facts


def describe_verification(artefact: Artefact) -> VerificationResult:
    """The record of a verification. Differences are rounded up to whole steps, so that none disappears."""
    verification = artefact.verification
    proof = verify(artefact.path)
    return VerificationResult(
        codes_compared=verification.codes_compared,
        code_mismatches=verification.code_mismatches,
        top1_agreement=verification.top1_agreement,
        max_step_difference=math.ceil(verification.max_step_difference),
        images=verification.images,
        quantized_operators=dict(verification.operators),
        sites=[_describe_agreement(site) for site in verification.sites],
        constants_compared=verification.constants_compared,
        propagated=verification.propagated,
        float_ties=verification.float_ties,
        not_a_number=sum(s.not_a_number for s in verification.sites),
        prediction_changes=verification.prediction_changes,
        alarm=verification.alarm,
        notes=verification.sentences,
        file=artefact.path.name,
        hashes=proof.hashes,
        versions=proof.versions,
        weak_inputs=verification.weak_inputs,
    )


def _describe_agreement(site: SiteAgreement) -> SiteResult:
    return SiteResult(
        name=site.name,
        shape=tuple(site.shape),
        codes_compared=site.codes_compared,
        code_mismatches=site.code_mismatches,
        max_step_difference=math.ceil(site.max_step_difference),
        propagated=site.propagated,
        float_ties=site.float_ties,
        exercised=site.exercised,
        sqnr_db=None if site.sqnr_db is None else min(max(site.sqnr_db, -IDENTICAL_DB), IDENTICAL_DB),
    )


def describe_data(
    trainer: L.Trainer, module: L.LightningModule, inputs: BatchToInputs, network: nn.Module, dataloaders: Any = None
) -> Data:
    """The data of a fit, as far as its dataloaders tell.

    Args:
        trainer: the Trainer of the fit.
        module: the user's LightningModule.
        inputs: from a batch to the network's inputs.
        network: tells the number of classes; a copy of it sees one image.
        dataloaders: test dataloaders, if neither datamodule nor module has them.
    """
    source = getattr(trainer, "datamodule", None) or module
    loaders = find_test_dataloaders(trainer, module, dataloaders)
    given = inputs(batch_as_in_evaluation(trainer, module, next(iter(loaders[0])), torch.device("cpu")))
    arguments = positional_arguments(network, given)
    image = next(x for x in arguments if isinstance(x, Tensor))
    with torch.no_grad():
        output = (
            copy_model(network).cpu().eval()(*(x[:1] if isinstance(x, Tensor) and x.ndim else x for x in arguments))
        )
    return Data(
        name=type(source).__name__,
        label=type(source).__name__,
        train=_count_images(trainer.train_dataloader),
        val=_count_images(trainer.val_dataloaders),
        test=_count_images(loaders),
        image_shape=tuple(image.shape[1:]),
        classes=output.shape[-1],
    )


def describe_environment(trainer: L.Trainer) -> Environment:
    """The environment of this process, and the device that it trained on."""
    device = trainer.strategy.root_device
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return Environment.collect(threads=torch.get_num_threads(), accelerator=accelerator)


def _count_images(loaders: Any) -> int:
    """Number of samples of one dataloader or several; those of unknown length count 0."""
    flat = loaders if isinstance(loaders, list | tuple) else [] if loaders is None else [loaders]
    datasets = [getattr(loader, "dataset", None) for loader in flat]
    return sum(len(dataset) for dataset in datasets if isinstance(dataset, Sized))
