"""What a call in training returns and changes: a graph of evaluation must leave the same statistics."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qat.capture.canonical.dropout_rates import DropoutRates, RecordedRates
from qat.capture.state.attributes import Attributes, NotInGraphError
from qat.contexts import quiet, same_attention, training_mode
from qat.torch_private import own_buffers, tree_leaves


@dataclass(frozen=True)
class InTraining:
    """What one call in training did.

    Attributes:
        results: the tensors that it returned.
        changed: names of the buffers that it changed.
        counted: names of the attributes that it changed.
        drawn: the state of the random generators afterwards, which tells how many numbers it drew.
        rates: the rates of its dropout.
    """

    results: list[Tensor]
    changed: frozenset[str]
    counted: frozenset[str]
    drawn: tuple[Any, ...]
    rates: DropoutRates


def seen_in_training(model: nn.Module, call: Callable[[], Any], seed: int = 0) -> InTraining | None:
    """Call a forward in training and restore the model; None if it cannot run (a BatchNorm needs two samples).

    Calls with the same seed get the same random numbers.
    """
    attributes, buffers = Attributes(model), _buffers(model)
    copies = {name: value.clone() for name, (_, _, value) in buffers.items()}
    state, counted = random.getstate(), frozenset[str]()
    try:
        quietly = quiet(drop_output=False)
        with training_mode(model, True), torch.no_grad(), torch.random.fork_rng(), quietly, same_attention():
            torch.manual_seed(seed)
            random.seed(seed)
            with RecordedRates() as recorded:
                outputs = tree_leaves(call())
            drawn = (random.getstate(), torch.get_rng_state().tolist())
            results = [leaf.detach().clone() for leaf in outputs if isinstance(leaf, Tensor)]
        changed = frozenset(
            n for n, (owner, key, _) in buffers.items() if not _same(own_buffers(owner)[key], copies[n])
        )
    except Exception:  # a user's forward may raise anything
        return None
    finally:
        random.setstate(state)
        for name, (owner, key, value) in buffers.items():
            own_buffers(owner)[key] = value
            with torch.no_grad():
                value.copy_(copies[name])
        try:
            attributes.restore(keep_new=False)
        except NotInGraphError as error:
            counted = frozenset(error.names)
    return InTraining(results, changed, counted, drawn, recorded.rates)


def not_repeated(
    forward: InTraining, graph: InTraining, norms: frozenset[str] = frozenset(), stored: Iterable[str] = ()
) -> str:
    """What forward changes in training and its graph does not, as part of a sentence; "" if nothing.

    Args:
        forward, graph: what they did.
        norms: names of modules whose buffers do not count.
        stored: names of attributes that the graph will store, too.
    """
    if counted := forward.counted - graph.counted - set(stored):
        return str(NotInGraphError(sorted(counted)))
    lost = sorted(name for name in forward.changed - graph.changed if name.rpartition(".")[0] not in norms)
    return f"forward updates {', '.join(lost)} in training, which a graph would not repeat" if lost else ""


def computes_the_same(forward: InTraining, graph: InTraining) -> bool:
    """Whether the results are equal, up to the order of sums."""
    if len(forward.results) != len(graph.results):
        return False
    return all(
        a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-2, atol=1e-3, equal_nan=True)
        for a, b in zip(forward.results, graph.results, strict=True)
    )


def _buffers(model: nn.Module) -> dict[str, tuple[nn.Module, str, Tensor]]:
    return {
        f"{path}.{key}".lstrip("."): (module, key, value)
        for path, module in model.named_modules()
        for key, value in own_buffers(module).items()
        if value is not None
    }


def _same(now: Tensor | None, before: Tensor) -> bool:
    return now is not None and now.shape == before.shape and torch.equal(now.nan_to_num(), before.nan_to_num())
