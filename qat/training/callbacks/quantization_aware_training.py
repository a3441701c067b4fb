"""Quantization-aware training of any LightningModule, with one line in the Trainer."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from qat.capture import copy_model
from qat.quantizers import Mode
from qat.training.callbacks.options import check_options
from qat.training.checkpoint import policy_check
from qat.training.checkpoint.checked_reading import check_reading
from qat.training.checkpoint.resume import RESUME_KEY, Resume
from qat.training.lightning.calibration import calibrate_in_module, calibration_inputs, first_inputs
from qat.training.lightning.callback_lookup import change_float_network, check_alone, extend_network
from qat.training.lightning.callback_order import move_to_front
from qat.training.lightning.compilation import check_compiler, compile_in_place, remove_compilation
from qat.training.lightning.hooks import run_after, run_before, run_inside, unwrap_hook
from qat.training.lightning.inputs import BatchToInputs, NetworkInputs, first_tensor, move_inputs
from qat.training.lightning.integer_evaluation import IntegerEvaluation
from qat.training.lightning.lost_training import LostTraining
from qat.training.lightning.monitors import ForwardMonitor, warn_of_learned_scales
from qat.training.lightning.network import find_network_name
from qat.training.lightning.preparation import hook_to_await, prepare_as_in_checkpoint, prepare_in_module
from qat.training.lightning.rank_zero import copy_from_rank_zero
from qat.training.lightning.strategies import check_strategy, check_trains_in_this_process
from qat.training.optimization import learning_rate_callbacks
from qat.training.optimization.averaging import (
    copy_integers_into_averages,
    copy_ranges_to_averages,
    live_copies,
    repeat_averaging_setup,
)
from qat.training.optimization.fit_warnings import warn_before_fit
from qat.training.optimization.parameter_groups import split_parameter_groups
from qat.training.optimization.scale_optimizer import OptimizerFactory
from qat.transform import Policy, bits_in_force, is_prepared, load_policy, mode, quantizers
from qat.transform.bits import FLOAT
from qat.transform.distributed import check_quantizers_equal
from qat.transform.policy_record import CHECKPOINT_KEY, check_same_policy, describe_prepared
from qat.transform.record import record_of


class QuantizationAwareTraining(L.Callback):
    """Trains the network of a LightningModule with the quantizers of `policy`.

    `setup`, of every stage, inserts the quantizers in place, before a checkpoint is restored and before optimizers are built,
    so both see every parameter. At the start of a fit, before the sanity check, quantizers whose range no checkpoint has
    restored are calibrated with training images. Learned scales get a parameter group of their own in every optimizer that
    the LightningModule builds. Validation and test never observe data; before the first fit they measure the float network,
    with a warning.

    With several processes (strategy="ddp") each observes its share of the calibration images, and all set the same ranges,
    those of a single process. After calibration and after each epoch, quantizers are checked to be equal in all processes, to
    the bit.

        trainer = L.Trainer(callbacks=[qat.callbacks.QuantizationAwareTraining("w4a8")])
        trainer.fit(model, datamodule=data)

    Args:
        policy: a Policy, the name of a preset, the path of a YAML file or its content.
        calibration_images: about how many images of the train dataloader calibrate.
        batches: network inputs that calibrate instead, the same in every process. They are iterated several times.
        network: name of the submodule to quantize, "" for the module itself. None: the only submodule with layers, or the
            module itself, if it has a forward of its own.
        quantizer_lr_ratio: learning rate of the learned scales over that of the group they come from.
        inputs: from a batch to the arguments of the network. None: the batch, or the first part of (images, labels).
        calibration_seed: decides which images calibrate.
        compile: whether the network is trained with torch.compile, from the second step on. Compiling takes minutes.
        quantizer_optimizer: makes the optimizer that updates the learned scales, at its own learning rate, instead of the
            module's: `functools.partial(torch.optim.Adam, lr=1e-3)`. From outside the two are one optimizer.
        validate_integers: whether validation, test and prediction run `qat.convert(network)`, so that the best checkpoint is
            that of the best artefact, at about twice the time of fake-quantized evaluation. Training and resume are the same.

    Raises:
        ValueError: the policy is impossible, or a number is out of range; when the fit begins: the strategy does not keep the
            network whole in each process; during it: a batch holds NaN or infinity, or the training diverged.
        RuntimeError: during the fit: quantizers differ between processes; the message names the first and the ranks.
    """

    def __init__(
        self,
        policy: Policy | str | Path | Mapping[str, Any],
        calibration_images: int = 512,
        batches: Iterable[NetworkInputs] | None = None,
        network: str | None = None,
        quantizer_lr_ratio: float = 1.0,
        inputs: BatchToInputs | None = None,
        calibration_seed: int = 0,
        compile: bool = False,
        quantizer_optimizer: OptimizerFactory | None = None,
        validate_integers: bool = False,
    ) -> None:
        check_options(locals())
        self.policy = load_policy(policy)
        self.calibration_images = calibration_images
        self.batches = batches
        self.network = network
        self.quantizer_lr_ratio = quantizer_lr_ratio
        self.quantizer_optimizer = quantizer_optimizer
        self.inputs = inputs or first_tensor
        self.calibration_seed = calibration_seed
        self.compile = compile
        self.validate_integers = validate_integers
        self.network_name: str | None = None
        self.float_network: nn.Module | None = None
        """A copy of the network before it was prepared, on the CPU; None if the user prepared it."""
        self.original_network: nn.Module | None = None
        """The network before `Pruning` took channels out of it, on the CPU; None: it did not."""
        self.channels: dict[str, int] = {}
        """Layer -> output channels that are left, where some were taken out."""
        self.staged = False
        """Whether a `ProgressiveBits` in the same Trainer sets the bits."""
        self.calibration_seconds = 0.0
        self._network: nn.Module | None = None
        self._warned_quantizers: set[str] = set()
        self._first_step_watch: ForwardMonitor | None = None
        self._evaluation = ExitStack()
        self._integers = IntegerEvaluation()
        self._resume = Resume()
        self._lost = LostTraining(self.inputs, self.network_of)

    # Structure -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        check_strategy(trainer.strategy)
        check_alone(
            trainer, self, "network='' for all networks of the LightningModule, and rules that match their names"
        )
        if self.compile:
            check_compiler(trainer.strategy.root_device.type)
        if self.quantizer_optimizer is not None:
            learning_rate_callbacks.check_separate_learning_rates(trainer)
        if (awaited := hook_to_await(pl_module, self.network)) is not None:
            run_after(pl_module, awaited, partial(self._prepare, trainer, pl_module, stage))
        else:
            self._prepare(trainer, pl_module, stage)
        run_before(pl_module, "on_load_checkpoint", partial(self._check_checkpoint, trainer, pl_module))
        if stage == "fit":
            run_inside(pl_module, "configure_optimizers", partial(self._split_groups, pl_module))
            self._resume.attach(trainer, pl_module)
        else:
            check_reading(trainer)
        # Ranges must exist before any other callback runs the network or copies it, whatever the order of the list.
        repeat_averaging_setup(trainer, pl_module, stage, move_to_front(trainer, self))

    def _prepare(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.network_name = find_network_name(pl_module, self.network)
        network = self.network_of(pl_module)
        if is_prepared(network):
            if (record := record_of(network)) is not None:
                check_same_policy(record.policy, self.policy, "the network is prepared")
            if network is not self._network:  # that of another fit, whose float network says nothing about it
                self.float_network, self.original_network, self.channels = None, None, {}
        else:
            if stage == "fit":
                check_trains_in_this_process(trainer.strategy)
            self.original_network, self.channels = change_float_network(trainer, pl_module, network)
            self.float_network = copy_model(network).cpu()
            copy_from_rank_zero(trainer, self.float_network)
            draw = partial(first_inputs, trainer, pl_module, self.batches, self.inputs, self.calibration_seed)
            prepare_in_module(trainer, network, self.policy, draw)
        self._network = network
        extend_network(trainer, pl_module, network)

    def _split_groups(self, pl_module: L.LightningModule) -> AbstractContextManager[None]:
        return split_parameter_groups(self.network_of(pl_module), self.quantizer_lr_ratio, self.quantizer_optimizer)

    def network_of(self, pl_module: L.LightningModule) -> nn.Module:
        """The prepared network in `pl_module`.

        Raises:
            RuntimeError: `setup` has not run yet.
        """
        if self.network_name is None:
            raise RuntimeError("no fit or test has begun: the network is known from Callback.setup on.")
        return pl_module.get_submodule(self.network_name)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for name in ("setup", "configure_model", "on_load_checkpoint", "configure_optimizers"):
            unwrap_hook(pl_module, name)
        self._evaluation.close()
        self._resume.detach(trainer, pl_module)
        if self.compile and self.network_name is not None:
            remove_compilation(self.network_of(pl_module))

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        network = self.network_of(pl_module)
        bits = bits_in_force(network) if self.staged else None
        record = describe_prepared(network, self.policy, self.network_name, bits)
        checkpoint[CHECKPOINT_KEY] = record | policy_check.what_was_prepared(self.float_network, self.channels)
        if trainer.state.fn == TrainerFn.FITTING:
            checkpoint[RESUME_KEY] = self._resume.record(trainer, pl_module)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._resume.load(trainer, checkpoint)

    def _check_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        bits, capture = policy_check.check_policy(checkpoint, self.policy), checkpoint[CHECKPOINT_KEY].get("capture")
        network, fitting = self.network_of(pl_module), trainer.state.fn == TrainerFn.FITTING
        policy_check.check_float_network(trainer, checkpoint[CHECKPOINT_KEY], self.float_network)
        if prepare_as_in_checkpoint(network, self.float_network, self.policy, capture):
            extend_network(trainer, pl_module, network)
            repeat_averaging_setup(trainer, pl_module, "fit" if fitting else "test")
        for each in (network, *live_copies(trainer, pl_module, network)):
            policy_check.restore_bits(each, bits, self.staged, fitting)
        policy_check.make_room_for_double(trainer, pl_module)

    # Values ----------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        unwrap_hook(pl_module, "configure_optimizers")
        warn_before_fit(network := self.network_of(pl_module), trainer.optimizers)
        start = time.perf_counter()
        self.calibrate(trainer, pl_module, network)
        self.calibration_seconds = time.perf_counter() - start
        check_quantizers_equal(network, "after calibration")
        copy_ranges_to_averages(trainer, pl_module, network)
        copy_integers_into_averages(trainer)
        learning_rate_callbacks.scale_swa_learning_rates(trainer, self.quantizer_lr_ratio)
        self._warned_quantizers.clear()
        self._first_step_watch = ForwardMonitor(network)
        self._resume.extend_limits(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learning_rate_callbacks.scale_found_learning_rates(trainer, self.quantizer_lr_ratio)

    def calibrate(self, trainer: L.Trainer, pl_module: L.LightningModule, network: nn.Module) -> int:
        """Give every quantizer of `network` without a range its first one, and return how many. All processes must call it."""
        return calibrate_in_module(pl_module, network, self.calibration_batches(trainer, pl_module))

    def calibration_batches(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Generator[NetworkInputs]:
        """The network inputs that calibrate, on the module's device: the same in every call and every process."""
        if self.batches is None:
            yield from calibration_inputs(
                trainer, pl_module, self.calibration_images, self.inputs, self.calibration_seed
            )
        else:
            for batch in self.batches:
                yield move_inputs(batch, pl_module.device)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Turn quantizers off if they have no ranges, which evaluation data must not give; or validate integers."""
        self._lost.on_validation_start(trainer, pl_module)
        network = self.network_of(pl_module)
        if all(quantizer.ready for quantizer in quantizers(network).values()):
            if self.validate_integers and bits_in_force(network) != FLOAT:
                self._evaluation.enter_context(self._integers.on(network))
            return
        rank_zero_warn(
            "the quantizers have no ranges before the first fit, or a checkpoint of one: the float network is measured."
        )
        self._evaluation.enter_context(mode(network, Mode.OFF))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluation.close()
        self._integers.forget()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._evaluation.close()

    # Warnings during the fit -----------------------------------------------------------------------------------------

    def on_train_batch_start(self, *_: Any) -> None:
        if self._first_step_watch is not None:
            self._first_step_watch.restart()  # the sanity check does not count

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *step: Any) -> None:
        """After the first step: check that it ran the prepared network, then compile the network."""
        self._lost.on_train_batch_end(trainer, pl_module, *step)
        if self._first_step_watch is None:
            return
        watch, self._first_step_watch = self._first_step_watch, None
        watch.stop()
        watch.check(pl_module, self.network_name or "")
        if self.compile:  # not before: hooks of the watch would be compiled, too
            compile_in_place(self.network_of(pl_module))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._lost.on_train_epoch_end(trainer, pl_module)
        self._resume.end_epoch(trainer)
        check_quantizers_equal(self.network_of(pl_module), f"at the end of epoch {trainer.current_epoch + 1}")
        warn_of_learned_scales(self.network_of(pl_module), trainer.current_epoch + 1, self._warned_quantizers)
