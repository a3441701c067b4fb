"""How many multiply-adds each operation of a prepared model takes, counted in a run on real inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import flop_registry

from qat.capture import copies, graph_inputs, installed_graph
from qat.contexts import training_mode
from qat.nn import matrices_of
from qat.quantizers import Mode
from qat.torch_private import DispatchMode
from qat.transform.mode import mode
from qat.transform.record import record_of

EVERYTHING = ""
"""The name under which all multiply-adds of a model without a graph are counted."""


def count_multiply_adds(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Run a prepared model once in float and record the multiply-adds of each operation, unless they are known.

    The state of the random generators is restored. A call that the graph does not serve (with a cache) counts nothing.
    """
    record = record_of(model)
    if record is None or record.multiply_adds:
        return
    with (
        torch.no_grad(),
        training_mode(model, False),
        mode(model, Mode.OFF),
        torch.random.fork_rng(devices=()),
        _Counter() as counter,
    ):
        if (installed := installed_graph(model)) is None:
            model(*copies(args), **copies(kwargs))
            record.multiply_adds[EVERYTHING] = counter.multiply_adds
            return
        graph, form = installed
        if (inputs := graph_inputs(model, graph, form, args, kwargs)) is not None:
            record.multiply_adds.update(_Counting(model, graph, counter).counts(inputs))


@contextmanager
def counting_first_call(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Yields a function that counts the first call, inside the `with`, of each prepared model in `model`."""
    calls: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    roots = [m for m in model.modules() if (record := record_of(m)) is not None and not record.multiply_adds]
    hooks = [
        root.register_forward_pre_hook(lambda m, args, kwargs: _keep(calls, m, args, kwargs), with_kwargs=True)
        for root in roots
    ]

    def count() -> None:
        for root, (args, kwargs) in calls.items():
            count_multiply_adds(root, args, kwargs)
        calls.clear()

    try:
        yield count
    finally:
        for hook in hooks:
            hook.remove()


def _keep(
    calls: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    record = record_of(module)
    if record is not None and not record.multiply_adds:
        calls.setdefault(module, (args, kwargs))


class _Counter(DispatchMode):
    """Counts multiply-adds. torch's FlopCounterMode hooks gradients, and fails on weights that are views."""

    supports_higher_order_operators = True  # torch.cond: what its branches take is not counted

    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        flops = flop_registry.get(getattr(func, "overloadpacket", func))
        if flops is not None:
            self.multiply_adds += flops(*args, **(kwargs or {}), out_val=result) // 2
        elif "grouped_mm" in str(func):  # experts of transformers: each token is multiplied by the matrix of its group
            self.multiply_adds += result.numel() * args[0].shape[-1]
        return result


class _Counting(fx.Interpreter):
    """Runs a graph, and notes what each node takes."""

    def __init__(self, model: nn.Module, graph: fx.Graph, counter: _Counter) -> None:
        super().__init__(model, graph=graph)
        self.counter = counter
        self.found: dict[str, int] = {}

    def counts(self, inputs: Any) -> dict[str, int]:
        """Name of a node -> multiply-adds, where there are any."""
        self.run(*inputs)
        return self.found

    def run_node(self, n: fx.Node) -> Any:
        before = self.counter.multiply_adds
        result = super().run_node(n)
        count = self.counter.multiply_adds - before
        if not count and n.op == "call_module":
            count = _of_matrices(self.module.get_submodule(str(n.target)), self.fetch_args_kwargs_from_env(n)[0])
        if count:
            self.found[n.name] = count
        return result


def _of_matrices(module: nn.Module, args: tuple[Any, ...]) -> int:
    """The multiply-adds of a recurrent or bilinear layer, which torch does not count: each weight once for each position."""
    if not isinstance(module, nn.RNNBase | nn.RNNCellBase | nn.Bilinear) or not isinstance(args[0], Tensor):
        return 0
    positions = args[0].numel() // args[0].shape[-1]
    return positions * sum(module.get_parameter(name).numel() for name in matrices_of(module))
