"""Quantization-aware training of anybody's LightningModule, with one line in the Trainer."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import LearningRateFinder, StochasticWeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from qat.contexts import training_mode
from qat.quantizers import Mode
from qat.training.checkpoint.resume import KEY as RESUME_KEY
from qat.training.checkpoint.resume import Resume
from qat.training.lightning.callback_lookup import NetworkExtension
from qat.training.lightning.compilation import check_compiler, compile_in_place, remove_compilation
from qat.training.lightning.hooks import unwrap_hook, wrap_hook
from qat.training.lightning.inputs import Inputs, NetworkInputs, calibration_inputs, first_tensor
from qat.training.lightning.monitors import Watch, is_in_evaluation_mode, trouble
from qat.training.lightning.network import find_network, is_prepared_root
from qat.training.lightning.strategies import check_model_comes_back, check_strategy, copy_from_rank_zero
from qat.training.optimization.averaging import (
    copy_integers_into_averages,
    copy_ranges_to_averages,
    repeat_averaging_setup,
    scale_swa_learning_rates,
)
from qat.training.optimization.parameter_groups import (
    parameters_without_optimizer,
    scale_found_learning_rate,
    split_parameter_groups,
)
from qat.training.optimization.scale_optimizer import OptimizerFactory, check_optimizer_factory
from qat.transform import (
    Policy,
    bits_in_force,
    calibrate,
    is_prepared,
    load_policy,
    mode,
    prepare_,
    quantizers,
    set_bits,
)
from qat.transform.distributed import check_equal, share
from qat.transform.policy_record import KEY, check_same, plain


class QuantizationAwareTraining(L.Callback):
    """Trains the network of a LightningModule with the quantizers that `policy` wants.

    Structure first: `setup`, of every stage, inserts quantizers in place, before a checkpoint is restored and before
    optimizers are built, so that both see every parameter. Values at the start of a fit: ranges are calibrated with training
    images, before the sanity check, and only where a checkpoint did not bring them. Learning: learned scales get a parameter
    group of their own in whatever optimizers the module builds. Nothing is ever observed in validation or test; before the
    first fit they measure the float network, and say so.

    Several processes (strategy="ddp"): each observes its share of the calibration images, all set the same ranges, those of
    one process, and after calibration and each epoch it is checked that all still have the same quantizers, to the bit.

        trainer = L.Trainer(callbacks=[qat.callbacks.QuantizationAwareTraining("w4a8")])
        trainer.fit(model, datamodule=data)

    Args:
        policy: a Policy, a preset's name, the path of a YAML file or its content.
        calibration_images: about how many images of the train dataloader give the first ranges.
        batches: network inputs to calibrate with instead; may be used more than once. The same ones in every process.
        network: name of the submodule to quantize, "" for the module itself. None: the only submodule with layers, or the
            module itself, if it has a forward of its own.
        quantizer_lr_ratio: learning rate of the learned scales over that of the group they come from.
        inputs: what the network is called with for a batch. None: the batch, or the first part of (images, labels).
        calibration_seed: decides which images calibrate.
        compile: whether the network is trained with torch.compile, from the second step on. It takes minutes to compile.
        quantizer_optimizer: makes the optimizer that updates the learned scales, at its own learning rate, in the place of the
            module's: `functools.partial(torch.optim.Adam, lr=1e-3)`. From outside the two are one optimizer.

    Raises:
        ValueError: the policy is impossible, or a number is out of range; when the fit begins: a strategy that does not keep
            the network whole in each process.
        RuntimeError: in the fit: quantizers differ between processes; the message names the first and the ranks.
    """

    def __init__(
        self,
        policy: Policy | str | Path | Mapping[str, Any],
        calibration_images: int = 512,
        batches: Iterable[NetworkInputs] | None = None,
        network: str | None = None,
        quantizer_lr_ratio: float = 1.0,
        inputs: Inputs | None = None,
        calibration_seed: int = 0,
        compile: bool = False,
        quantizer_optimizer: OptimizerFactory | None = None,
    ) -> None:
        if calibration_images < 1:
            raise ValueError(f"calibration_images={calibration_images} calibrates nothing: write for example 512.")
        if not quantizer_lr_ratio >= 0:
            raise ValueError(
                f"quantizer_lr_ratio={quantizer_lr_ratio} is negative: write 1.0, or 0.0 to freeze scales."
            )
        if not isinstance(compile, bool):
            raise ValueError(f"compile={compile!r} is not possible: write true or false.")
        if quantizer_optimizer is not None:
            check_optimizer_factory(quantizer_optimizer)
            if quantizer_lr_ratio != 1.0:
                raise ValueError(
                    f"quantizer_lr_ratio={quantizer_lr_ratio} beside a quantizer_optimizer, which has a learning rate of its "
                    "own: write one of the two."
                )
        self.policy = load_policy(policy)
        self.calibration_images = calibration_images
        self.batches = batches
        self.network = network
        self.quantizer_lr_ratio = quantizer_lr_ratio
        self.quantizer_optimizer = quantizer_optimizer
        self.inputs = inputs or first_tensor
        self.calibration_seed = calibration_seed
        self.compile = compile
        self.network_name: str | None = None
        self.float_network: nn.Module | None = None
        """A copy of the network from before it was prepared, on the CPU; None where somebody else prepared it."""
        self.staged = False
        """Whether a `ProgressiveBits` beside this one sets the bits in force."""
        self.calibration_seconds = 0.0
        self._alarmed: set[str] = set()
        self._watch: Watch | None = None
        self._in_float = ExitStack()
        self._resume = Resume()

    # Structure -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        check_strategy(trainer.strategy)
        if self.compile:
            check_compiler(trainer.strategy.root_device.type)
        if self.quantizer_optimizer is not None:
            _check_rates(trainer)
        if is_overridden("configure_model", pl_module):  # its layers do not exist before
            wrap_hook(
                pl_module, "configure_model", lambda hook: self._preparing_afterwards(trainer, pl_module, stage, hook)
            )
        else:
            self._prepare(trainer, pl_module, stage)
        wrap_hook(pl_module, "on_load_checkpoint", lambda hook: self._checking_checkpoint(trainer, pl_module, hook))
        if stage == "fit":
            wrap_hook(pl_module, "configure_optimizers", lambda hook: self._splitting_groups(pl_module, hook))
            self._resume.watch(trainer, pl_module)
        self._go_first(trainer, pl_module, stage)

    def _go_first(self, trainer: Any, pl_module: L.LightningModule, stage: str) -> None:
        """Ranges must be there before any other callback runs the network or copies it, in whatever order they were given."""
        place = trainer.callbacks.index(self)
        earlier, later = trainer.callbacks[:place], trainer.callbacks[place + 1 :]
        repeat_averaging_setup(trainer, pl_module, stage, earlier)
        trainer.callbacks = [
            self,
            *sorted([*earlier, *later], key=lambda other: not isinstance(other, NetworkExtension)),
        ]

    def _prepare(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.network_name = find_network(pl_module, self.network)
        network = self.network_of(pl_module)
        if is_prepared(network):
            if is_prepared_root(network):
                check_same(vars(network)["_qat"]["policy"], self.policy, "the network is prepared")
        else:
            if stage == "fit":
                check_model_comes_back(trainer.strategy)
            self.float_network = copy.deepcopy(network).cpu()
            copy_from_rank_zero(trainer, self.float_network)
            prepare_(network, self.policy)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, NetworkExtension):
                callback.on_prepared(pl_module, network)

    def _preparing_afterwards(
        self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str, hook: Callable[[], None]
    ) -> Callable[[], None]:
        def configure_model() -> None:
            hook()
            self._prepare(trainer, pl_module, stage)

        return configure_model

    def network_of(self, pl_module: L.LightningModule) -> nn.Module:
        """The prepared network inside of `pl_module`."""
        if self.network_name is None:
            raise RuntimeError("no fit or test has begun: the network is known from Callback.setup on.")
        return pl_module.get_submodule(self.network_name)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for name in ("configure_model", "on_load_checkpoint", "configure_optimizers"):
            unwrap_hook(pl_module, name)
        self._in_float.close()
        self._resume.stop_watching(trainer, pl_module)
        if self.compile and self.network_name is not None:
            remove_compilation(self.network_of(pl_module))

    def _splitting_groups(self, pl_module: L.LightningModule, hook: Callable[[], Any]) -> Callable[[], Any]:
        def configure_optimizers() -> Any:
            with split_parameter_groups(self.network_of(pl_module), self.quantizer_lr_ratio, self.quantizer_optimizer):
                return hook()

        return configure_optimizers

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        bits = bits_in_force(self.network_of(pl_module)) if self.staged else None
        checkpoint[KEY] = {"policy": plain(self.policy), "network": self.network_name, "bits": bits}
        if trainer.state.fn == TrainerFn.FITTING:
            checkpoint[RESUME_KEY] = self._resume.record(trainer, pl_module)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._resume.load(trainer, checkpoint)

    def _checking_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, hook: Callable[[dict[str, Any]], None]
    ) -> Callable[[dict[str, Any]], None]:
        """Before the weights are restored: afterwards all that is left to say is which of a hundred names do not fit."""

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            found = checkpoint.get(KEY)
            if found is None:
                raise ValueError(
                    "the checkpoint holds a network without quantizers: load it into the LightningModule before the fit, "
                    "model.load_state_dict(torch.load(path)['state_dict']), and do not pass it as ckpt_path."
                )
            check_same(found["policy"], self.policy, "the checkpoint was trained")
            bits = found.get("bits")
            if bits is not None and not self.staged and trainer.state.fn == TrainerFn.FITTING:
                raise ValueError(
                    f"the checkpoint was written at {bits} bits, on the way to fewer: put the ProgressiveBits of that fit "
                    "beside QuantizationAwareTraining."
                )
            if bits is not None or self.staged:
                set_bits(self.network_of(pl_module), bits)
            hook(checkpoint)

        return on_load_checkpoint

    # Values ----------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        unwrap_hook(pl_module, "configure_optimizers")
        network = self.network_of(pl_module)
        if forgotten := parameters_without_optimizer(network, trainer.optimizers):
            rank_zero_warn(
                f"{len(forgotten)} learned scales are in no optimizer ({forgotten[0]}, ...) and keep their calibrated values: "
                "collect parameters inside configure_optimizers, from self.parameters()."
            )
        if is_in_evaluation_mode(network):
            rank_zero_warn(
                "the network is in evaluation mode, and Lightning leaves it there: BatchNorm keeps the statistics of the float "
                "network, which quantized training soon leaves behind, and the fit may diverge. Call train() on it before "
                "the fit."
            )
        start = time.perf_counter()
        self.calibrate(trainer, pl_module, network)
        self.calibration_seconds = time.perf_counter() - start
        check_equal(network, "after calibration")
        copy_ranges_to_averages(trainer, pl_module, network)
        copy_integers_into_averages(trainer)
        scale_swa_learning_rates(trainer, self.quantizer_lr_ratio)
        self._alarmed.clear()
        self._watch = Watch(network)
        self._resume.lift_limits(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, LearningRateFinder) and callback.optimal_lr is not None:
                scale_found_learning_rate(
                    trainer.optimizers, self.quantizer_lr_ratio, found=callback.optimal_lr.suggestion()
                )

    def calibrate(self, trainer: L.Trainer, pl_module: L.LightningModule, network: nn.Module) -> int:
        """Give every quantizer of `network` that has no range its first one. Returns how many there were.

        All processes must call it: each runs through its share of the batches.
        """
        with training_mode(pl_module, False):
            dtype = next(network.parameters()).dtype  # of Trainer(precision="bf16-true"), say
            batches = share(self.calibration_batches(trainer, pl_module))
            return calibrate(network, (_to(batch, dtype=dtype) for batch in batches))

    def calibration_batches(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Iterator[NetworkInputs]:
        """The network inputs that calibrate, the same ones on every call and in every process, on the module's device."""
        if self.batches is None:
            yield from calibration_inputs(
                trainer, pl_module, self.calibration_images, self.inputs, self.calibration_seed
            )
        else:
            for batch in self.batches:
                yield _to(batch, pl_module.device)

    # Measured before the first fit -----------------------------------------------------------------------------------

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Without ranges there is nothing to round with, and evaluation data must not give them."""
        network = self.network_of(pl_module)
        if all(quantizer.ready for quantizer in quantizers(network).values()):
            return
        rank_zero_warn(
            "the quantizers have no ranges before the first fit, or a checkpoint of one: the float network is measured."
        )
        self._in_float.enter_context(mode(network, Mode.OFF))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._in_float.close()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._in_float.close()

    # Alarms ----------------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, *_: Any) -> None:
        if self._watch is not None:
            self._watch.ran = False  # the sanity check does not count

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self._watch is None:
            return
        self._watch.stop()
        ran, self._watch = self._watch.ran, None
        if not ran:
            where = f"its submodule {self.network_name!r}" if self.network_name else "its own forward"
            raise ValueError(
                f"the first training step of {type(pl_module).__name__} did not run the network that was prepared, {where}: "
                "call it in training_step as self(batch), or name the network that is trained, "
                "QuantizationAwareTraining(policy, network=...)."
            )
        if self.compile:  # now that nobody watches: a hook would be compiled, too
            compile_in_place(self.network_of(pl_module))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._resume.end_epoch(trainer)
        check_equal(self.network_of(pl_module), f"at the end of epoch {trainer.current_epoch}")
        for name, quantizer in quantizers(self.network_of(pl_module)).items():
            if name not in self._alarmed and (what := trouble(quantizer)):
                self._alarmed.add(name)
                rank_zero_warn(f"epoch {trainer.current_epoch}: the learned scale of {quantizer.label!r} {what}")


def _check_rates(trainer: Any) -> None:
    """Scales can keep a learning rate of their own."""
    for callback in trainer.callbacks:
        if isinstance(callback, LearningRateFinder | StochasticWeightAveraging):
            raise ValueError(
                f"{type(callback).__name__} sets one learning rate for all parameters: use quantizer_lr_ratio beside it, "
                "and no quantizer_optimizer."
            )


def _to(batch: NetworkInputs, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Any:
    """The batch on `device`, its real numbers as `dtype`; None: as they are."""
    return tree_map_only(Tensor, lambda x: x.to(device, dtype if x.is_floating_point() else None), batch)
