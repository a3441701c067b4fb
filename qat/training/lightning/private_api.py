"""The private members of Lightning, torchmetrics and torch that training uses, under public names.

No other file of `qat/training` or `qat/experiment` touches one. `tests/test_private_api.py` says which one a new version lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.training_epoch_loop import RestartStage
from lightning.pytorch.loops.utilities import _is_max_limit_reached
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torchmetrics import Metric

F = TypeVar("F", bound=Callable[..., Any])

MultiProcessingLauncher = _MultiProcessingLauncher
"""Starts processes that end with the fit: strategies `ddp_spawn`, `ddp_fork` and `ddp_notebook`."""
ResultMetric = _ResultMetric
"""What Lightning keeps of one `self.log` over an epoch: a mean, a sum, ..., or the user's own torchmetrics Metric."""
ResultMetadata = _Metadata
"""The arguments of that `self.log`."""
ResultSync = _Sync
"""How its value is reduced over processes."""


# The position in the loops -------------------------------------------------------------------------------------------


def step_limit_reached(trainer: L.Trainer) -> bool:
    """Whether the fit has made all steps that `max_steps` allows."""
    steps = trainer.fit_loop.epoch_loop
    return _is_max_limit_reached(steps.global_step, steps.max_steps)


def all_batches_drawn(trainer: L.Trainer) -> bool:
    """Whether the last batch that was drawn was the last of its epoch."""
    return bool(trainer.fit_loop.epoch_loop._num_ready_batches_reached())


def gradients_accumulate(trainer: L.Trainer) -> bool:
    """Whether the gradients of this batch wait for those of further batches."""
    return bool(trainer.fit_loop.epoch_loop._should_accumulate())


def validation_follows_batch(trainer: L.Trainer) -> bool:
    """Whether Lightning will validate after the batch that it is at."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and bool(trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher))


def validates_by_the_clock(trainer: L.Trainer) -> bool:
    """Whether `val_check_interval` is a time."""
    return trainer._val_check_time_interval is not None  # type: ignore[attr-defined]


def end_batch(trainer: L.Trainer, validate: bool) -> None:
    """Run what follows a batch: a validation if `validate`, and schedulers that step after batches."""
    steps, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    assert fetcher is not None
    steps._skip_next_val = not validate
    steps.on_advance_end(fetcher)


# Checkpoints ---------------------------------------------------------------------------------------------------------

RESTORING = ("_restore_modules_and_callbacks", "restore_training_state")
"""The methods of `checkpoint_connector` in which Lightning uses what a checkpoint says."""


def checkpoint_connector(trainer: L.Trainer) -> Any:
    """The part of the Trainer that restores checkpoints."""
    return trainer._checkpoint_connector


# Restarts ------------------------------------------------------------------------------------------------------------


def end_restart(trainer: L.Trainer) -> None:
    """Make the fit loop and all loops inside it begin what comes next anew.

    By itself, a loop counts as restarting until one of its rounds is over.
    """
    _Loop.restarting.fset(trainer.fit_loop, False)  # type: ignore[attr-defined]  # FitLoop's own setter may refuse


def end_restart_of_epochs(trainer: L.Trainer) -> None:
    """Make the fit loop alone count as not restarting; the loops inside it go on with their restart."""
    trainer.fit_loop._restarting = False


def forget_restart_stage(trainer: L.Trainer) -> None:
    """Make the loop over batches forget in which of Lightning's situations the checkpoint was written."""
    trainer.fit_loop.epoch_loop._restart_stage = RestartStage.NONE


def mark_validation_done(trainer: L.Trainer) -> None:
    """Tell a restarted loop that the validation of this batch has run; else it draws another batch."""
    trainer.fit_loop.epoch_loop.val_loop._has_run = True


def add_scheduler_steps(trainer: L.Trainer, n: int) -> None:
    """Correct the count of optimizer steps that loggers and schedulers go by."""
    trainer.fit_loop.epoch_loop._batches_that_stepped += n


# The training data ---------------------------------------------------------------------------------------------------


def train_loader(trainer: L.Trainer) -> CombinedLoader | None:
    """The train dataloaders of a fit; None before Lightning has asked for them."""
    return trainer.fit_loop._combined_loader


def train_data_source(trainer: L.Trainer) -> Any:
    """The object whose method `dataloader()` gives Lightning the train dataloaders, also those given to `fit`."""
    return trainer.fit_loop._data_source


def data_source(trainer: L.Trainer) -> Any:
    """The same for whatever the Trainer is running: a fit, a validation, a test or a prediction."""
    loops: dict[Any, Any] = {
        TrainerFn.FITTING: trainer.fit_loop,
        TrainerFn.VALIDATING: trainer.validate_loop,
        TrainerFn.TESTING: trainer.test_loop,
        TrainerFn.PREDICTING: trainer.predict_loop,
    }
    return loops[trainer.state.fn]._data_source


def get_reload_epoch(trainer: L.Trainer) -> float:
    """The epoch in which the train dataloaders were last asked for; -inf if they were not."""
    return float(trainer.fit_loop._last_train_dl_reload_epoch)


def set_reload_epoch(trainer: L.Trainer, epoch: float) -> None:
    """Counterpart of `get_reload_epoch`."""
    trainer.fit_loop._last_train_dl_reload_epoch = epoch


def combination_mode(loader: CombinedLoader) -> Any:
    """How the dataloaders are combined, such as "max_size_cycle"."""
    return loader._mode


def load_loader_states(loader: CombinedLoader, states: list[dict[str, Any]]) -> None:
    """Restore the dataloaders that keep a state themselves."""
    loader._load_state_dicts(states)


def index_batches(loader: CombinedLoader) -> Iterator[Any]:
    """The iterator over indices of batches of a running pass over one DataLoader without workers."""
    assert loader._iterator is not None
    indices: Iterator[Any] = loader._iterator.iterators[0]._sampler_iter  # type: ignore[attr-defined]
    return indices


def batches_ahead(trainer: L.Trainer) -> int:
    """The train batches that were drawn and not handed out: of data of unknown length, Lightning draws one ahead."""
    return len(getattr(trainer.fit_loop._data_fetcher, "batches", ()))


def draw_ahead_again(trainer: L.Trainer) -> None:
    """Replace the train batches that were drawn ahead by those that the loaders give now."""
    fetcher: Any = trainer.fit_loop._data_fetcher
    for _ in range(batches_ahead(trainer)):
        fetcher.batches.pop(0)
        try:
            fetcher.batches.append(_DataFetcher.__next__(fetcher))
        except StopIteration:
            break


def transfer_batch(module: L.LightningModule, batch: Any, device: torch.device | None) -> Any:
    """The batch after the transfer hooks of module or datamodule, as Lightning's loops call them.

    Args:
        module: a LightningModule with a Trainer.
        batch: of one of the dataloaders.
        device: where to move it. None: to the module's device.
    """
    batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
    return module._apply_batch_transfer_handler(batch, device=device, dataloader_idx=0)


# Logged values -------------------------------------------------------------------------------------------------------


def train_results(trainer: L.Trainer) -> MutableMapping[str, ResultMetric]:
    """What was logged so far in this train epoch, by Lightning's key of it."""
    return trainer.fit_loop.epoch_loop._results


def validation_results(trainer: L.Trainer) -> MutableMapping[str, ResultMetric]:
    """What validation within the fit logs."""
    return trainer.fit_loop.epoch_loop.val_loop._results


def set_callback_metrics(trainer: L.Trainer, values: dict[str, Tensor]) -> None:
    """Add to `trainer.callback_metrics`, which is a copy."""
    trainer._logger_connector._callback_metrics.update(values)


def keep_results_at_next_batch(trainer: L.Trainer) -> None:
    """Go on with the means in `train_results`: else Lightning takes the next batch for the first of an epoch."""
    trainer._logger_connector._first_loop_iter = True


def get_update_count(metric: Metric) -> int:
    """How many updates a metric has seen since it was reset."""
    return metric._update_count


def set_update_count(metric: Metric, count: int) -> None:
    """Counterpart of `get_update_count`. A value that the metric has computed before is forgotten."""
    metric._update_count = count
    metric._computed = None


def forget_logged_metrics(module: L.LightningModule) -> None:
    """Make a copied LightningModule find its metrics anew: it remembers those of the original by identity."""
    module._metric_attributes = None


# Modules and optimizers ----------------------------------------------------------------------------------------------


def set_children(module: nn.Module, children: dict[str, nn.Module | None]) -> None:
    """Give a module, which may share its attributes with another one, submodules of its own."""
    vars(module)["_modules"] = children


def get_compiled_call(network: nn.Module) -> Callable[..., Any] | None:
    """The compiled code that runs when `network` is called; None if it is not compiled."""
    return network._compiled_call_impl


def set_compiled_call(network: nn.Module, call: Callable[..., Any] | None) -> None:
    """Counterpart of `get_compiled_call`."""
    network._compiled_call_impl = call


def without_step_hooks(step: F) -> F:
    """Decorator for `Optimizer.step` of a class that calls another step: torch would run the hooks around both."""
    step.hooked = True  # type: ignore[attr-defined]
    return step


def unscales_gradients(optimizer: Optimizer) -> bool:
    """Whether the optimizer divides gradients by the loss scale itself, in its step, as fused ones do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def get_swa_rates(averaging: StochasticWeightAveraging) -> float | list[float]:
    """The `swa_lrs` that the callback was made with."""
    return averaging._swa_lrs


def set_swa_rates(averaging: StochasticWeightAveraging, rates: float | list[float]) -> None:
    """Counterpart of `get_swa_rates`."""
    averaging._swa_lrs = rates


def copy_tensors(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each source into its target, in one call for all."""
    torch._foreach_copy_(targets, sources)


# Processes and files -------------------------------------------------------------------------------------------------


def finds_unused_parameters(strategy: DDPStrategy) -> bool:
    """Whether DDP looks for parameters that have no gradient in a step."""
    return bool(strategy._ddp_kwargs.get("find_unused_parameters"))


def exclude_from_ddp(module: nn.Module, names: Iterable[str]) -> None:
    """Make DDP leave these parameters and buffers of `module` alone, in addition to those that it leaves alone already."""
    excluded = getattr(module, "_ddp_params_and_buffers_to_ignore", [])
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, {*excluded, *names})


def is_local_path(path: str | Path) -> bool:
    """Whether a path of a checkpoint is one of this machine's file system, and not a URL."""
    return bool(_is_local_file_protocol(path))
