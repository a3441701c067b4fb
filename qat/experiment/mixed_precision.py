"""The part `budget` of a configuration: the bits of every layer, before QAT."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig
from torch import Tensor, nn

from qat.data import ImageData
from qat.experiment.folders import run_folder_of
from qat.experiment.schema.budget import LIMITS
from qat.search import Allocation, Budget, LatencyTable, allocate
from qat.search.begin import check_budget
from qat.transform import Policy

FILE = "allocation.json"
log = logging.getLogger(__name__)


def has_budget(config: DictConfig) -> bool:
    """Whether the bits of layers are searched."""
    return any(config.budget[name] is not None for name in LIMITS)


def check(config: DictConfig, network: nn.Module, policy: Policy, data: ImageData) -> None:
    """Refuse an impossible budget, before anything is trained.

    Raises:
        ValueError: the budget is out of its range.
        FileNotFoundError: there is no such table of latencies.
    """
    if not has_budget(config):
        return
    if config.pruning.channels:
        raise ValueError(
            "a budget beside pruning.channels is not possible, because bits are chosen for the whole network: write "
            "pruning.sparsity, which keeps its layers, or no budget."
        )
    options = _options(config)
    budget = Budget(*(options[name] for name in (*LIMITS, "latency_table")))
    example = torch.zeros(2, *data.image_shape)
    check_budget(network, policy, example, budget, *(options[k] for k in ("weight_bits", "activation_bits", "keep")))


def find_allocation(
    config: DictConfig,
    network: nn.Module,
    policy: Policy,
    batches: Sequence[Tensor],
    folder: Path,
    checkpoint: Path | None,
) -> Allocation | None:
    """The bits of every layer; None without a budget. Written to `allocation.json` in the run's folder.

    A resumed run has those of the run that it continues.

    Args:
        config: the configuration.
        network: the float network, with its weights.
        policy: the policy of the configuration.
        batches: calibration inputs.
        folder: the run's folder.
        checkpoint: the one that the run resumes.
    """
    if not has_budget(config):
        return None
    before = None if checkpoint is None else run_folder_of(checkpoint) / FILE
    if before is not None and before.is_file():
        found = Allocation.load(before)
    else:
        found = allocate(network, policy, batches, **_options(config), points=config.budget.points)
    rank_zero_only(found.save)(folder / FILE)
    log.info("bits under the budget:\n%s", found)
    return found


def _options(config: DictConfig) -> dict[str, Any]:
    """The arguments of `allocate` that the configuration gives."""
    budget = config.budget
    table = budget.latency_table
    return {
        **{name: budget[name] for name in LIMITS},
        "latency_table": None if table is None else LatencyTable.read(Path(table).expanduser()),
        "weight_bits": list(budget.weight_bits),
        "activation_bits": list(budget.activation_bits),
        "keep": list(budget.keep),
        "sensitivity": budget.sensitivity,
    }
