"""One run, from a composed configuration to results.json."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import nn

from qat.data import ImageData
from qat.experiment import build, float_network, loggers, mixed_precision
from qat.experiment.check import (
    check_callbacks,
    check_images,
    check_lengths,
    check_same_run,
    steps_of_fit,
    warn_of_unwise_values,
)
from qat.experiment.checkpoint_on_signal import CheckpointOnSignal
from qat.experiment.console import Progress, simplify_output
from qat.experiment.datamodule import ImageDataModule
from qat.experiment.folders import check_folder, resumed_by, run_folder_of, was_interrupted_early
from qat.experiment.other_runs import other_runs
from qat.experiment.schema import check_configuration
from qat.experiment.signals import SignalHandler
from qat.experiment.training_images import RecordTrainingImages, check_same_images
from qat.export.targets import TARGETS
from qat.files import write_atomically
from qat.report import Data, Results
from qat.training.callbacks import ExportONNX, ProgressiveBits, Pruning, PTQBaselines, Report
from qat.training.checkpoint.latest import checkpoint_to_resume
from qat.training.lightning.callback_lookup import NetworkExtension
from qat.training.lightning.strategies import check_launched_processes, check_machine, process_count
from qat.transform import Policy, prepare
from qat.transform.mode import quantizers

log = logging.getLogger(__name__)


def run(
    config: DictConfig,
    folder: Path,
    recipe: str,
    command: str,
    signals: SignalHandler | None = None,
    further: Sequence[L.Callback] = (),
) -> Results:
    """Float network, PTQ baselines, QAT, export, verification and report. Everything is written into `folder`.

    Every mistake in the configuration is found before the first training step.

    Args:
        config: the composed configuration.
        folder: the run's folder; it holds no other run, and the caller keeps it with `folder_of_one_run`.
        recipe: name of the run in log and report.
        command: the command that repeats the run, for the report.
        signals: receives the signals that interrupt the run; None: a new handler that is not installed.
        further: callbacks beside those of the configuration.

    Raises:
        ValueError: the configuration or the data are not valid; the message says what to write instead.
        FileNotFoundError: a file that the configuration names does not exist.
        VerificationError: the ONNX file is not what was trained; everything else is written.
    """
    return _run(config, folder, recipe, command, signals or SignalHandler(), further)


def _run(
    config: DictConfig, folder: Path, recipe: str, command: str, signals: SignalHandler, further: Sequence[L.Callback]
) -> Results:
    simplify_output()
    check_configuration(config)
    warn_of_unwise_values(config)
    rank_zero_only(check_folder)(folder)
    checkpoint = _checkpoint_to_resume(config)
    timings: dict[str, float] = {}
    policy = build.policy(config)
    rank_zero_only(write_atomically)(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    L.seed_everything(config.seed, workers=True, verbose=False)

    with _timed(timings, "data"):
        data: ImageData = build.part(config.data, "data")
    if checkpoint is not None:
        check_same_images(checkpoint, data.train)
    batches = build.datamodule(config, data)
    network = float_network.build(config.model, data)
    processes = _check_parts(config, folder, network, data, policy)
    log.info(
        "%s on %s, %s training images; everything is written to %s", recipe, data.label, f"{len(data.train):,}", folder
    )

    signals.stage = "the float training"
    with _timed(timings, "float"):
        source = float_network.load_or_train(network, config, data, folder)
    log.info("float network: %s", source)

    calibration = batches.calibration_batches(config.calibration_images, seed=config.seed)
    with _timed(timings, "search") if mixed_precision.has_budget(config) else nullcontext():
        allocation = mixed_precision.find_allocation(config, network, policy, calibration, folder, checkpoint)
    policy = policy if allocation is None else allocation.policy

    L.seed_everything(config.seed, workers=True, verbose=False)  # the same whether or not it was trained just now
    module = build.classifier(
        network,
        config,
        data,
        distillation=build.distillation(config, network, data),
        built_from=float_network.built_from(config.model, data),
    )
    report = _report(config, folder, data, name=recipe, command=command, timings=timings, allocation=allocation)
    saver = CheckpointOnSignal(signals, folder / "checkpoints")
    record = RecordTrainingImages(data.train)
    callbacks = [record, *_callbacks(config, folder, policy, batches), Progress("QAT"), *further, report, saver]
    validation = build.validation_plan(config, len(batches.train_dataloader()) // processes)
    logger = loggers.make_logger(config, folder, recipe)
    trainer = build.trainer(config, folder, callbacks, logger, **validation)
    try:
        trainer.fit(module, datamodule=batches, ckpt_path=checkpoint, weights_only=True)
    finally:
        if trainer.is_global_zero:
            loggers.finish(logger)
    if report.results is None:
        raise RuntimeError("the fit ended before its report was written.")
    return report.results


def _check_parts(config: DictConfig, folder: Path, network: nn.Module, data: ImageData, policy: Policy) -> int:
    """Build every part once and discard it: some mistakes only show when the parts meet.

    Returns:
        The number of processes that will train.
    """
    check_images(config, len(data.train))
    float_network.check_source(config, data)
    loggers.check_logger(config)
    if config.export.get("_target_"):
        TARGETS[0].check(policy)
    mixed_precision.check(config, network, policy, data)
    other_runs(config, data)
    batches = build.datamodule(config, data)
    callbacks = _callbacks(config, folder, policy, batches)
    network = copy.deepcopy(network)
    for callback in callbacks:
        if isinstance(callback, NetworkExtension) and callback.changes_float_network:
            callback.on_float_network(network, network)
    prepared = prepare(network, policy, torch.zeros(2, *data.image_shape))
    if not quantizers(prepared):
        raise ValueError(
            "the policy quantizes nothing, so there is nothing to train, to export or to verify: give policy.weight or "
            "policy.activation bits, or leave out the rule that switches everything off."
        )
    for training in (config, config.float):
        build.classifier(network, training, data)
    build.distillation(config, network, data)
    batches.calibration_batches(config.calibration_images)
    trainer = build.trainer(config, folder, callbacks, False, enable_checkpointing=True)
    for callback in callbacks:
        if isinstance(callback, NetworkExtension):
            callback.on_prepared(prepared, prepared)
        if isinstance(callback, ProgressiveBits):
            with _of_key("progressive"):
                callback.check_bits(prepared)
                callback.check_length(steps_of_fit(config, len(batches.train_dataloader()) // process_count(trainer)))
        if isinstance(callback, ExportONNX):
            callback.check_policy(policy)
            ptq = next((c for c in callbacks if isinstance(c, PTQBaselines)), None)
            callback.check_names({} if ptq is None else ptq.outside_files(folder))
    check_launched_processes(trainer)
    check_machine(trainer)
    processes = process_count(trainer)
    validation = len(data.val) and len(batches.val_dataloader()) // processes
    check_lengths(config, len(batches.train_dataloader()) // processes, validation)
    return processes


def _checkpoint_to_resume(config: DictConfig) -> Path | None:
    """The checkpoint from which the run continues an interrupted one; None if it is a new run, or has to start anew."""
    if config.resume is None:
        return None
    given = Path(config.resume).expanduser()
    if not given.exists():
        raise FileNotFoundError(
            f"resume={config.resume} does not exist: give the folder of an interrupted run, one of its checkpoints, or null."
        )
    while was_interrupted_early(given):
        check_same_run(config, given)
        before = resumed_by(given)
        if before is None:
            log.info(
                "resume=%s: that run was interrupted before its first checkpoint, so it starts anew", config.resume
            )
            return None
        log.info("%s was interrupted before its first checkpoint: %s, which it resumed, is resumed", given, before)
        given = before
    with _of_key(f"resume={config.resume}"):
        checkpoint = checkpoint_to_resume(given)
    check_same_run(config, run_folder_of(checkpoint))
    return checkpoint


def _callbacks(config: DictConfig, folder: Path, policy: Policy, batches: ImageDataModule) -> list[L.Callback]:
    """The callbacks of the configuration, each with the arguments that only the run knows."""
    given: dict[str, dict[str, Any]] = {
        "qat": {
            "network": "network",
            "policy": policy,
            "batches": batches.calibration_batches(config.calibration_images, seed=config.seed),
        },
        "checkpoint": {"dirpath": str(folder / "checkpoints")},
        "recent": {"dirpath": str(folder / "checkpoints")},
    }
    if len(batches.data.val) == 0:
        given["checkpoint"]["monitor"] = None
    named = {
        name: build.part(options, f"callbacks.{name}", **given.get(name, {}))
        for name, options in config.callbacks.items()
        if options is not None
    }
    check_callbacks(named)
    callbacks: list[L.Callback] = [*named.values()]
    if config.pruning.sparsity is not None or config.pruning.pattern is not None or config.pruning.channels:
        callbacks.append(Pruning(**config.pruning))
    if config.oscillation.get("_target_"):
        callbacks.append(build.part(config.oscillation, "oscillation"))
    if config.ptq.get("_target_"):
        callbacks.append(build.part(config.ptq, "ptq"))
    if config.export.get("_target_"):
        files = {key: folder / config.export[key] for key in ("path", "float_path") if config.export.get(key)}
        callbacks.append(build.part(config.export, "export", **files))
    return callbacks


def _report(config: DictConfig, folder: Path, data: ImageData, **known: Any) -> Report:
    plain_config: Any = OmegaConf.to_container(config, resolve=True)
    return Report(
        folder=folder,
        metric="test/top1",
        top5="test/top5" if data.num_classes > 5 else None,
        calibration_error="test/calibration_error",
        data=_data_record(data),
        config=plain_config,
        seed=config.seed,
        other_runs=other_runs(config, data),
        **known,
    )


def _data_record(data: ImageData) -> Data:
    is_copy = data.label != data.name
    return Data(
        name=data.name,
        label=data.label,
        train=len(data.train),
        val=len(data.val),
        test=len(data.test),
        image_shape=data.image_shape,
        classes=data.num_classes,
        note="A copy, not the original files: accuracies differ from published ones." if is_copy else "",
    )


@contextmanager
def _of_key(key: str) -> Iterator[None]:
    """Inside the `with` block, an error that does not name the key of the configuration gets its name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - start
