"""The integer modules of operations without weights: one entry for each description."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from qat import operations
from qat.integer import arithmetic, modules
from qat.integer.arithmetic import Encoding


def integer_module(
    source: nn.Module, node: fx.Node, operation: operations.Operation, inputs: Sequence[Encoding], output: Encoding
) -> nn.Module | None:
    """The module that computes an operation on codes; None if it has no integer form.

    Args:
        source: the model whose graph `node` is in.
        node: the node.
        operation: its description.
        inputs: encodings of the operation's inputs.
        output: encoding of its result.
    """
    if isinstance(operation, operations.Elementwise):
        return modules.LookUp(_table(source, node, operation, inputs[0], output), output)
    form = FORMS.get(type(operation))
    return None if form is None else form(operation, inputs, output)


def integer_movement(operation: operations.Move, encoding: Encoding) -> nn.Module | None:
    """The module that moves codes where moving bytes is not enough; None if it is."""
    if isinstance(operation, operations.MaxPool):
        return modules.IntegerMaxPool(encoding, operation)
    return modules.IntegerPad(encoding, operation.pad) if isinstance(operation, operations.PadZeros) else None


def _average_pool(pool: operations.AveragePool, inputs: Sequence[Encoding], output: Encoding) -> nn.Module | None:
    return modules.IntegerAveragePool(inputs[0], output, pool) if len(pool.kernel) < 3 else None


FORMS: dict[type[operations.Operation], Callable[[Any, Sequence[Encoding], Encoding], nn.Module | None]] = {
    operations.Add: lambda _, inputs, output: modules.IntegerAdd(inputs[0], inputs[1], output),
    operations.Multiply: lambda _, inputs, output: modules.IntegerMultiply(inputs[0], inputs[1], output),
    operations.MatMul: lambda _, inputs, output: modules.IntegerMatMul(inputs[0], inputs[1], output),
    operations.Concatenate: lambda cat, inputs, output: modules.IntegerCat(list(inputs), output, cat.dim, cat.stacked),
    operations.Mean: lambda mean, inputs, output: modules.IntegerMean(inputs[0], output, mean),
    operations.AveragePool: _average_pool,
}


def _table(source: nn.Module, node: fx.Node, operation: operations.Elementwise, x: Encoding, y: Encoding) -> Tensor:
    """The code of f(value) for each input code, uint8 (256,). Codes that never occur have the entry of the nearest one."""
    codes = torch.arange(256).clamp(x.lowest, x.highest)
    values = {operation.inputs[0]: arithmetic.dequantize(codes, x)}
    for part in operation.nodes if isinstance(operation, operations.Region) else (node,):
        args, kwargs = fx.map_arg((part.args, part.kwargs), values.__getitem__)
        values[part] = _call(source, part, args, kwargs)
    return arithmetic.quantize(torch.nan_to_num(values[node], nan=0.0, posinf=None, neginf=None), y)


def _call(source: nn.Module, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    if node.op == "call_method":
        result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
    else:
        function = source.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        assert callable(function)
        result = function(*args, **kwargs)
    assert isinstance(result, Tensor)
    return result
