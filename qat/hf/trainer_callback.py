"""Quantization-aware training in a `transformers.Trainer`, with one line."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from qat.capture import serves_call
from qat.files import write_atomically
from qat.hf.parameter_groups import split_groups_of, stop_splitting_groups_of
from qat.hf.private_api import keep_names_in_checkpoints
from qat.quantizers import Mode
from qat.torch_private import tree_map_only
from qat.training.optimization.parameter_groups import parameters_without_optimizer
from qat.transform import Policy, calibrate, is_prepared, load_policy, prepare_, quantizers
from qat.transform.batches import call_of
from qat.transform.distributed import check_quantizers_equal
from qat.transform.policy_record import check_same_policy, describe_prepared, plain_data
from qat.transform.record import record_of

RECORD = "qat.json"
"""The file beside each checkpoint that holds the policy, and how the network was captured."""
ITEMS = "num_items_in_batch"
"""The argument that `Trainer` adds, and that a graph captured with the example inputs does not have."""


class QuantizationAwareTraining(TrainerCallback, ExportableState):
    """Trains the network of a `Trainer` with the quantizers of `policy`.

    When the Trainer is made, quantizers are inserted in place: before the optimizer is built and before a checkpoint is
    restored, so both see every parameter. At the start of the training, those whose range no checkpoint has restored are
    calibrated with `batches`. Learned scales get parameter groups of their own, without weight decay. Until then evaluation
    measures the float network. A checkpoint contains the policy, and one of another policy is not resumed.

        trainer = Trainer(model, args, train_dataset=data, callbacks=[qat.hf.QuantizationAwareTraining("w4a8", batches)])
        trainer.train()
        qat.hf.save_pretrained(trainer.model, "folder")

    The loss of a step is the mean over its batch: of several accumulated batches, the mean of their means.

    Args:
        policy: a Policy, the name of a preset, the path of a YAML file or its content.
        batches: what the network is called with, labels among it, as the data collator makes it. The first one is the example
            that the network is captured with; all calibrate. None: torch.fx must suffice, and no calibration be needed.
        quantizer_lr_ratio: learning rate of the learned scales over that of the group they come from.

    Raises:
        ValueError: the policy is impossible, `batches` is a single batch, or the ratio is not positive. When training starts:
            there are no batches, or the checkpoint was trained with another policy or without quantizers.
    """

    def __init__(
        self,
        policy: Policy | str | Path | Mapping[str, Any],
        batches: Iterable[Any] | None = None,
        quantizer_lr_ratio: float = 1.0,
    ) -> None:
        if isinstance(batches, Mapping | Tensor):
            raise ValueError("batches is a single batch: pass a list of batches, [batch].")
        if not quantizer_lr_ratio > 0:
            raise ValueError(
                f"quantizer_lr_ratio={quantizer_lr_ratio} is not a ratio: write a positive number such as 1.0."
            )
        self.policy = load_policy(policy)
        self.batches = None if batches is None else list(batches)
        self.quantizer_lr_ratio = quantizer_lr_ratio
        self._hooks: list[RemovableHandle] = []

    # Structure -------------------------------------------------------------------------------------------------------

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        if is_prepared(model):
            if (record := record_of(model)) is not None:
                check_same_policy(record.policy, self.policy, "the network is prepared")
        else:
            if getattr(model, "config", None) is not None:
                # As Trainer will: a cache is not an output of a graph.
                model.config.use_cache = getattr(args, "use_cache", False)
            prepare_(model, self.policy, self._example(model))
        for quantizer in quantizers(model).values():
            if not quantizer.ready:
                quantizer.mode = Mode.OFF
        split_groups_of(model, self.quantizer_lr_ratio)
        keep_names_in_checkpoints(model)

    def _example(self, model: nn.Module) -> Any:
        if not self.batches:
            return None
        return call_of(model, self.batches[0]).example_inputs

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What `trainer_state.json` keeps of this callback."""
        return {
            "args": {"policy": plain_data(self.policy), "quantizer_lr_ratio": self.quantizer_lr_ratio},
            "attributes": {},
        }

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            record = describe_prepared(model, self.policy, "", None)
            write_atomically(folder / RECORD, json.dumps(record, indent=2) + "\n")

    def _check_resumed(self, state: TrainerState, model: nn.Module) -> None:
        """Check that the checkpoint, whose weights are restored already, was trained with this policy.

        Raises:
            ValueError: it has no quantizers, or another policy.
        """
        states: Any = state.stateful_callbacks or {}
        recorded = states.get(type(self).__name__)
        recorded = recorded[0] if isinstance(recorded, list) else recorded
        if recorded is None or not all(quantizer.ready for quantizer in quantizers(model).values()):
            raise ValueError(
                "the checkpoint holds a network without quantizers: load it into the float network, and train that without "
                "resume_from_checkpoint."
            )
        check_same_policy(recorded["args"]["policy"], self.policy, "the checkpoint was trained")

    # Values ----------------------------------------------------------------------------------------------------------

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        stop_splitting_groups_of(model)
        if state.global_step:
            self._check_resumed(state, model)
        found = quantizers(model)
        for quantizer in found.values():
            quantizer.mode = Mode.QUANTIZE
        if not all(quantizer.ready for quantizer in found.values()):
            self._calibrate(model)
        check_quantizers_equal(model, "after calibration")
        if optimizer is not None and (forgotten := parameters_without_optimizer(model, [optimizer])):
            warnings.warn(f"{len(forgotten)} learned scales are in no optimizer ({forgotten[0]}, ...).", stacklevel=2)
        self._average_losses(model, args.gradient_accumulation_steps)

    def _calibrate(self, model: nn.Module) -> None:
        if not self.batches:
            raise ValueError(
                "there are no batches to calibrate with: pass some, QuantizationAwareTraining(policy, batches=[...])."
            )
        device = next(model.parameters()).device
        calibrate(model, [tree_map_only(Tensor, lambda x: x.to(device), batch) for batch in self.batches])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        check_quantizers_equal(model, "after an epoch")

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _average_losses(self, model: nn.Module, steps: int) -> None:
        """Take the number of items out of calls: the graph has no such input. The loss is then a mean over the batch."""
        counted: list[bool] = []

        def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            counted[:] = [kwargs.get(ITEMS) is not None]
            rest = {key: value for key, value in kwargs.items() if key != ITEMS}
            if module.training and not serves_call(module, args, rest):
                raise ValueError(
                    f"Trainer calls {type(module).__name__} with {', '.join(rest)}, and the first of batches=... has other "
                    "arguments, so that its quantizers would not run: make batches with the data collator of Trainer."
                )
            return args, rest

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            if counted == [True] and steps > 1 and module.training:
                output["loss"] = output["loss"] / steps
            return output

        self.on_train_end()
        self._hooks = [model.register_forward_pre_hook(before, with_kwargs=True), model.register_forward_hook(after)]
