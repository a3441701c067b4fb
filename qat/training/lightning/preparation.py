"""Where in a fit a network is prepared, and with which example inputs: every process alike, and as in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

from qat.capture import can_be_captured, copy_model, needs_example_inputs
from qat.torch_private import set_contents
from qat.training.lightning.inputs import NetworkInputs
from qat.training.lightning.network import find_network_name
from qat.training.lightning.private_api import forget_logged_metrics
from qat.transform import Policy, is_prepared, prepare_
from qat.transform.batches import call_of
from qat.transform.example import Example, describe_example, zeros_like_example
from qat.transform.policy_record import prepare_as_recorded
from qat.transform.record import erase_record, record_of


def hook_to_await(module: L.LightningModule, network: str | None) -> str | None:
    """The hook of `module` after which its network can be prepared; None: at once.

    Layers do not exist before `configure_model`, and a dataloader, if an example is needed, may not before `setup`.
    """
    if is_overridden("configure_model", module):
        return "configure_model"
    if not is_overridden("setup", module):
        return None
    found = module.get_submodule(find_network_name(module, network))
    if is_prepared(found) or not (needs_example_inputs(found) or not can_be_captured(found)):
        return None
    return "setup"


def prepare_in_module(
    trainer: L.Trainer, network: nn.Module, policy: Policy, first_inputs: Callable[[], NetworkInputs]
) -> None:
    """Prepare `network` in place, with example inputs if torch.fx does not suffice. All processes must call it.

    Args:
        trainer: the Trainer of the fit.
        network: the float network.
        policy: where quantizers go.
        first_inputs: called if an example is needed; only its structure, shapes and dtypes count.
    """
    prepare_(network, policy, partial(_shared_example, trainer, network, first_inputs))


def _shared_example(
    trainer: L.Trainer, network: nn.Module, first_inputs: Callable[[], NetworkInputs]
) -> Example | None:
    """Zeros in the form of the inputs that process 0 finds; None if there are none, or they are not plain data."""
    try:
        call = call_of(network, first_inputs())
        description = describe_example(call.kwargs or call.args)
    except ValueError:  # calibration will say what the dataloaders lack
        description = None
    if trainer.world_size > 1:
        description = trainer.strategy.broadcast(description)
    if description is None:
        return None
    example: Example = zeros_like_example(description, next(network.parameters()).device)
    return example


def prepare_as_in_checkpoint(
    network: nn.Module, float_network: nn.Module | None, policy: Policy, capture: Mapping[str, Any] | None
) -> bool:
    """Prepare `network` again, in place, if the network of a checkpoint was captured in another way.

    Args:
        network: the prepared network.
        float_network: what it was made of; is not changed. None: it is not known, and `network` stays as it is.
        policy: of both.
        capture: `PreparedRecord.capture` of the checkpoint's network; None in checkpoints that know of no example inputs.

    Returns:
        Whether it was.
    """
    record = record_of(network)
    if record is None or float_network is None or _same_graph(record.capture, capture):
        return False
    source = copy_model(float_network).to(next(network.parameters()).device)
    network.__class__ = type(source)
    set_contents(network, source)
    erase_record(network)
    if isinstance(network, L.LightningModule):
        forget_logged_metrics(network)
    prepare_as_recorded(network, policy, capture)
    return True


def _same_graph(mine: Mapping[str, Any], other: Mapping[str, Any] | None) -> bool:
    if other is None:
        return mine["example"] is None or mine["way"] == "torch.fx"
    return mine["way"] == other["way"] and (mine["way"] != "torch.export" or mine["example"] == other["example"])
