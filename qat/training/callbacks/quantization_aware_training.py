"""Quantization-aware training of anybody's LightningModule, with one line in the Trainer."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from qat.training.alarms import Watch, trouble
from qat.training.batches import Inputs, NetworkInputs, calibration_inputs, first_of
from qat.training.hooks import unwrap_hook, wrap_hook
from qat.training.network import find_network, is_root
from qat.training.parameter_groups import split_groups, without_optimizer
from qat.training.policy_record import check_same, plain
from qat.training.resume import KEY as RESUME_KEY
from qat.training.resume import Resume
from qat.transform import Policy, calibrate, is_prepared, load_policy, prepare_, quantizers

C = TypeVar("C", bound=L.Callback)

KEY = "qat"
"""Where a checkpoint keeps the policy."""


class QuantizationAwareTraining(L.Callback):
    """Trains the network of a LightningModule with the quantizers that `policy` wants.

    Structure first: `setup`, of every stage, inserts quantizers in place, before a checkpoint is restored and before
    optimizers are built, so that both see every parameter. Values at the start of a fit: ranges are calibrated with training
    images, before the sanity check, and only where a checkpoint did not bring them. Learning: learned scales get a parameter
    group of their own in whatever optimizers the module builds. Nothing is ever observed in validation or test.

        trainer = L.Trainer(callbacks=[qat.callbacks.QuantizationAwareTraining("w4a8")])
        trainer.fit(model, datamodule=data)

    Args:
        policy: a Policy, a preset's name, the path of a YAML file or its content.
        calibration_images: about how many images of the train dataloader give the first ranges.
        batches: network inputs to calibrate with instead; may be used more than once.
        network: name of the submodule to quantize, "" for the module itself. None: the only submodule with layers, or the
            module itself, if it has a forward of its own.
        quantizer_lr_ratio: learning rate of the learned scales over that of the group they come from.
        inputs: what the network is called with for a batch. None: the batch, or the first part of (images, labels).
        calibration_seed: decides which images calibrate.

    Raises:
        ValueError: the policy is impossible, or a number is out of range.
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
    ) -> None:
        if calibration_images < 1:
            raise ValueError(f"calibration_images={calibration_images} calibrates nothing: write for example 512.")
        if not quantizer_lr_ratio >= 0:
            raise ValueError(
                f"quantizer_lr_ratio={quantizer_lr_ratio} is negative: write 1.0, or 0.0 to freeze scales."
            )
        self.policy = load_policy(policy)
        self.calibration_images = calibration_images
        self.batches = batches
        self.network = network
        self.quantizer_lr_ratio = quantizer_lr_ratio
        self.inputs = inputs or first_of
        self.calibration_seed = calibration_seed
        self.network_name: str | None = None
        self.float_network: nn.Module | None = None
        """A copy of the network from before it was prepared, on the CPU; None where somebody else prepared it."""
        self.calibration_seconds = 0.0
        self._alarmed: set[str] = set()
        self._watch: Watch | None = None
        self._resume = Resume()

    # Structure -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.network_name = find_network(pl_module, self.network)
        network = self.network_of(pl_module)
        if is_prepared(network):
            if is_root(network):
                check_same(vars(network)["_qat"]["policy"], self.policy, "the network is prepared")
        else:
            self.float_network = copy.deepcopy(network).cpu()
            prepare_(network, self.policy)
        wrap_hook(pl_module, "on_load_checkpoint", self._checking_checkpoint)
        if stage == "fit":
            wrap_hook(pl_module, "configure_optimizers", lambda hook: self._splitting_groups(network, hook))
            self._resume.watch(trainer, pl_module)

    def network_of(self, pl_module: L.LightningModule) -> nn.Module:
        """The prepared network inside of `pl_module`."""
        if self.network_name is None:
            raise RuntimeError("no fit or test has begun: the network is known from Callback.setup on.")
        return pl_module.get_submodule(self.network_name)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        unwrap_hook(pl_module, "on_load_checkpoint")
        unwrap_hook(pl_module, "configure_optimizers")
        self._resume.stop_watching(trainer, pl_module)

    def _splitting_groups(self, network: nn.Module, hook: Callable[[], Any]) -> Callable[[], Any]:
        def configure_optimizers() -> Any:
            with split_groups(network, self.quantizer_lr_ratio):
                return hook()

        return configure_optimizers

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = {"policy": plain(self.policy), "network": self.network_name}
        if trainer.state.fn == TrainerFn.FITTING:
            checkpoint[RESUME_KEY] = self._resume.record(trainer, pl_module)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._resume.load(trainer, checkpoint)

    def _checking_checkpoint(self, hook: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
        """Before the weights are restored: afterwards all that is left to say is which of a hundred names do not fit."""

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            found = checkpoint.get(KEY)
            if found is None:
                raise ValueError(
                    "the checkpoint holds a network without quantizers: load it into the LightningModule before the fit, "
                    "model.load_state_dict(torch.load(path)['state_dict']), and do not pass it as ckpt_path."
                )
            check_same(found["policy"], self.policy, "the checkpoint was trained")
            hook(checkpoint)

        return on_load_checkpoint

    # Values ----------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        unwrap_hook(pl_module, "configure_optimizers")
        network = self.network_of(pl_module)
        if forgotten := without_optimizer(network, trainer.optimizers):
            rank_zero_warn(
                f"{len(forgotten)} learned scales are in no optimizer ({forgotten[0]}, ...) and keep their calibrated values: "
                "collect parameters inside configure_optimizers, from self.parameters()."
            )
        start = time.perf_counter()
        self.calibrate(trainer, pl_module, network)
        self.calibration_seconds = time.perf_counter() - start
        self._alarmed.clear()
        self._watch = Watch(network)
        self._resume.lift_limits(trainer)

    def calibrate(self, trainer: L.Trainer, pl_module: L.LightningModule, network: nn.Module) -> int:
        """Give every quantizer of `network` that has no range its first one. Returns how many there were."""
        training = {module: module.training for module in pl_module.modules()}
        pl_module.eval()
        try:
            return calibrate(network, self.calibration_batches(trainer, pl_module))
        finally:
            for module, was in training.items():
                module.training = was

    def calibration_batches(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Iterator[NetworkInputs]:
        """The network inputs that calibrate, the same ones on every call, on the module's device."""
        if self.batches is None:
            yield from calibration_inputs(
                trainer, pl_module, self.calibration_images, self.inputs, self.calibration_seed
            )
        else:
            for batch in self.batches:
                yield _to(batch, pl_module.device)

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

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._resume.end_epoch(trainer)
        for name, quantizer in quantizers(self.network_of(pl_module)).items():
            if name not in self._alarmed and (what := trouble(quantizer)):
                self._alarmed.add(name)
                rank_zero_warn(f"epoch {trainer.current_epoch}: the learned scale of {quantizer.label!r} {what}")


def _to(batch: NetworkInputs, device: torch.device) -> Any:
    return tree_map_only(Tensor, lambda x: x.to(device), batch)


def companion(trainer: Any, kind: type[C], asking: L.Callback) -> C:
    """The callback of class `kind` in the same Trainer.

    Raises:
        ValueError: there is none.
    """
    found = next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)
    if found is None:
        raise ValueError(
            f"{type(asking).__name__} needs {kind.__name__} beside it: L.Trainer(callbacks=[{kind.__name__}(...), "
            f"{type(asking).__name__}(...)])."
        )
    return found
