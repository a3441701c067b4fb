"""From the nodes of a graph to descriptions: the only place that knows how operations are spelled."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from qat.nn import SideEffect, is_batch_norm, is_identity_in_evaluation, is_layer, is_quantized
from qat.operations.activations import Elementwise, Rectify
from qat.operations.arithmetic import Add, Concatenate, MatMul, Multiply
from qat.operations.base import Constant, Float, Input, Loss, Operation, Output, Role, Site, Size
from qat.operations.call import Call, call_of, operation_name
from qat.operations.fixed_arguments import CHECKS
from qat.operations.labels import loss_nodes
from qat.operations.layers import BatchNormalization, Layer
from qat.operations.movement import AdaptiveMaxPool, Move, PadZeros
from qat.operations.read_pooling import read_mean, read_pool, sizes
from qat.operations.regions import merge_regions
from qat.quantizers import Quantizer

Operations = Mapping[fx.Node, Operation]
"""The description of every node of a graph."""

_MOVES = frozenset(
    ("flatten", "view", "reshape", "reshape_as", "permute", "transpose", "movedim", "t", "unsqueeze", "squeeze",
     "select", "narrow", "slice", "flip", "roll", "rot90", "expand", "expand_as", "repeat", "tile",
     "repeat_interleave", "unflatten", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "gather", "index_select",
     "diagonal", "unfold_copy", "as_strided"),
)  # fmt: skip
_SPLITS = frozenset(("chunk", "split", "split_with_sizes", "tensor_split", "unbind", "hsplit", "vsplit"))
_IDENTITIES = frozenset(("contiguous", "detach", "clone", "alias", "identity", "lift_fresh_copy", "detach_copy"))
_SIZES = frozenset(("size", "dim", "numel", "sym_size", "sym_numel", "ndimension", "stride", "is_floating_point"))
_NEVER_NEGATIVE = frozenset(
    ("sigmoid", "abs", "exp", "square", "hardsigmoid", "softplus", "sqrt", "rsqrt", "exp2", "cosh")
)
_ELEMENTWISE = _NEVER_NEGATIVE | frozenset(
    ("tanh", "silu", "gelu", "hardswish", "mish", "leaky_relu", "elu", "selu", "celu", "softsign", "tanhshrink",
     "log_sigmoid", "hardshrink", "softshrink", "neg", "log", "log1p", "log2", "expm1", "reciprocal", "sin", "cos",
     "erf", "sign", "floor", "ceil", "round", "pow", "clamp", "clamp_min", "clamp_max", "hardtanh", "atan",
     "threshold"),
)  # fmt: skip
"""Functions of one tensor, with numbers as further arguments."""
_SIGN_OF_INPUT = frozenset(
    ("hardswish", "silu", "gelu", "leaky_relu", "tanh", "elu", "selu", "celu", "mish", "round", "softsign", "erf", "floor",
     "ceil", "sign"),
)  # fmt: skip
"""Functions that are not negative where their input is not."""
_OF_TWO = frozenset(("add", "sub", "rsub", "mul", "div", "pow", "maximum", "minimum"))
_READ_MEMORY = frozenset(("as_strided", "stride"))
"""What reads how a tensor lies in memory, for which `contiguous` is not an identity."""
_FILLED = frozenset(
    f"{prefix}{kind}{suffix}"
    for kind in ("zeros", "ones", "full", "empty")
    for prefix, suffix in (("", ""), ("new_", ""), ("", "_like"))
)
"""Functions that read only the size and the dtype of the tensor that they are given."""
_NEVER_NEGATIVE_IN_FLOAT = frozenset(("softmax", "one_hot", "norm", "linalg_vector_norm", "var", "std"))


def describe_graph(model: nn.Module, graph: fx.Graph) -> dict[fx.Node, Operation]:
    """The description of every node; `Float` for an unknown operation."""
    found: dict[fx.Node, Operation] = {}
    loss = loss_nodes(graph)
    for node in graph.nodes:
        is_loss = node in loss and node.op != "placeholder"
        described = Loss(tuple(node.all_input_nodes)) if is_loss else _describe(model, node, found)
        found[node] = _constant_if_of_constants(described, found)
    return merge_regions(found)


def _constant_if_of_constants(operation: Operation, before: Operations) -> Operation:
    """The operation, or `Constant` if all its inputs are: a mask, a position, another tensor that depends on no activation."""
    if operation.role in (Role.FLOAT, Role.ARITHMETIC, Role.MOVE, Role.RECTIFY) and all(
        before[n].role is Role.CONSTANT for n in operation.inputs
    ):
        return Constant(operation.inputs)
    return operation


def _describe(model: nn.Module, node: fx.Node, before: Operations) -> Operation:
    if not _may_be_real(node):
        return Constant(tuple(node.all_input_nodes))
    if node.op in _BY_OPCODE:
        return _BY_OPCODE[node.op](tuple(node.all_input_nodes))
    inputs = tuple(n for n in node.all_input_nodes if before[n].role is not Role.SIZE)
    if node.op == "call_module":
        described = _module_with_state(model.get_submodule(str(node.target)), inputs)
        if described is not None:
            return described
    elif _is_size(node, inputs, before):
        return Size(inputs, of_type="dtype" in node.args or operation_name(node) == "is_floating_point")
    elif node.target is operator.getitem:
        return _index(node, inputs, before)
    call = call_of(model, node)
    if call.name in _FILLED:
        return Constant(tuple(node.all_input_nodes))
    described = next((d for read in _READERS if (d := read(call, inputs, before)) is not None), None)
    if call.name == "contiguous" and any(operation_name(user) in _READ_MEMORY for user in node.users):
        return Move(inputs)
    if described is not None and not (isinstance(described, Move) and described.several and _is_read_as_a_whole(node)):
        return described
    return Float(inputs, call.name in _NEVER_NEGATIVE_IN_FLOAT, elementwise=call.name in _OF_TWO)


def _may_be_real(node: fx.Node) -> bool:
    """Whether the result can be a tensor of real numbers, as far as the capture knows; masks and indices are not."""
    value = node.meta.get("val")
    return not isinstance(value, torch.Tensor) or value.is_floating_point()


_BY_OPCODE: dict[str, type[Operation]] = {"placeholder": Input, "output": Output, "get_attr": Constant}


def _module_with_state(module: nn.Module, inputs: tuple[fx.Node, ...]) -> Operation | None:
    if isinstance(module, SideEffect):
        return Size(inputs)
    if isinstance(module, Quantizer):
        return Move(inputs, identity=True, passes_numbers=True) if module.passes else Site(inputs)
    if is_layer(module) or is_quantized(module):
        return Layer(inputs, module, takes_indices=isinstance(module, nn.Embedding))
    if is_batch_norm(module) and module.running_mean is not None:  # otherwise each batch has a mean of its own
        return BatchNormalization(inputs, module)
    return Move(inputs, identity=True) if is_identity_in_evaluation(module) else None


def _is_size(node: fx.Node, inputs: tuple[fx.Node, ...], before: Operations) -> bool:
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in ("shape", "ndim", "dtype", "device", "is_cuda", "requires_grad")
    if operation_name(node) in _SIZES or node.target in CHECKS:
        return True
    return node.op == "call_function" and not inputs and bool(node.all_input_nodes) and not _makes_a_tensor(node)


def _makes_a_tensor(node: fx.Node) -> bool:
    """Whether a function of sizes makes a tensor (arange, ...), not a number."""
    return getattr(node.target, "__module__", "") not in ("_operator", "math", "builtins", "torch")


def _is_read_as_a_whole(node: fx.Node) -> bool:
    """Whether something reads all results of a node at once, as torch.cat(x.chunk(2)) does, which codes cannot be."""
    return any(user.target is not operator.getitem or not isinstance(user.args[1], int) for user in node.users)


def _index(node: fx.Node, inputs: tuple[fx.Node, ...], before: Operations) -> Operation:
    source, index = node.args[0], node.args[1]
    assert isinstance(source, fx.Node)
    described = before[source]
    if isinstance(index, int) and isinstance(described, Move) and described.several:
        return Move(inputs, identity=False)
    if isinstance(index, slice) and source.op in ("call_function", "call_method") and operation_name(source) in _SPLITS:
        return Float(inputs)  # some of the tensors
    if isinstance(index, tuple | slice) or index is None or index is Ellipsis:
        parts = index if isinstance(index, tuple) else (index,)
        fixed = all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in parts)
        return Move(inputs) if fixed and len(inputs) == 1 else Float(inputs)
    if isinstance(index, int) and described.role not in (Role.FLOAT, Role.INPUT):
        return Move(inputs)
    return Float(inputs)


def _rectify(call: Call, inputs: tuple[fx.Node, ...], before: Operations) -> Operation | None:
    if len(inputs) != 1:
        return None
    match call.name:
        case "relu":
            return Rectify(inputs)
        case "relu6":
            return Rectify(inputs, 6.0)
        case "hardtanh":
            bounds = call.get("min_val"), call.get("max_val")
        case "clamp" | "clamp_min":
            bounds = call.get("min"), call.get("max")
        case _:
            return None
    lowest, highest = bounds
    has_bound = isinstance(highest, int | float) and highest > 0
    is_rectifier = isinstance(lowest, int | float) and lowest == 0 and (highest is None or has_bound)
    return Rectify(inputs, None if highest is None else float(highest)) if is_rectifier else None


def _elementwise(call: Call, inputs: tuple[fx.Node, ...], before: Operations) -> Operation | None:
    if len(inputs) != 1 or before[inputs[0]].role is Role.CONSTANT:
        return None
    numbers = [a for a in call.arguments.values() if not isinstance(a, fx.Node)]
    plain = all(a is None or isinstance(a, bool | int | float | str) for a in numbers)
    if not plain or (call.name not in _ELEMENTWISE and call.name not in _OF_TWO):
        return None
    if [a for a in call.arguments.values() if isinstance(a, fx.Node)] != [*inputs]:
        return None  # x + x, or a size takes part
    return Elementwise(inputs, call.name, _sign(call))


def _sign(call: Call) -> bool | None:
    """`Elementwise.nonnegative` of a call."""
    first, second = (*call.arguments.values(), None)[:2]
    number_is_second = isinstance(first, fx.Node)
    number: Any = second if number_is_second else first
    match call.name:
        case "add":
            alpha = call.get("alpha", 1)  # multiplies the second operand
            return None if (number * alpha if number_is_second else min(number, alpha)) >= 0 else False
        case "mul":
            return None if number >= 0 else False
        case "div":
            return None if number_is_second and number > 0 else False
        case "pow":
            return bool(number % 2 == 0 if number_is_second else number >= 0)
        case "clamp" | "clamp_min" | "hardtanh":
            lowest, highest = call.get("min", call.get("min_val")), call.get("max", call.get("max_val"))
            return lowest is not None and lowest >= 0 and (highest is None or highest >= 0)
        case "softplus":
            return bool(call.get("beta", 1) > 0)
    return None if call.name in _SIGN_OF_INPUT else call.name in _NEVER_NEGATIVE


def _two_tensors(call: Call, inputs: tuple[fx.Node, ...], before: Operations) -> Operation | None:
    operands = tuple(a for a in (call.input, call.get("other", call.get("mat2"))) if isinstance(a, fx.Node))
    if len(operands) != 2 or any(before[n].role in (Role.SIZE, Role.CONSTANT) for n in operands):
        return None
    match call.name:
        case "add" if call.get("alpha", 1) == 1:
            return Add(operands)
        case "mul":
            return Multiply(operands)
        case "matmul":
            return MatMul(operands)
    return None


def _join(call: Call, inputs: tuple[fx.Node, ...], before: Operations) -> Operation | None:
    tensors, dim = call.get("tensors"), call.get("dim", 0)
    if call.name not in ("cat", "stack") or not isinstance(tensors, list | tuple) or not isinstance(dim, int):
        return None
    parts = tuple(n for n in tensors if isinstance(n, fx.Node))
    usable = len(parts) == len(tensors) and all(before[n].role is not Role.CONSTANT for n in parts)
    return Concatenate(parts, dim, stacked=call.name == "stack") if usable else None


def _move(call: Call, inputs: tuple[fx.Node, ...], before: Operations) -> Operation | None:
    if len(inputs) != 1 and call.name not in ("gather", "index_select", "expand_as", "reshape_as"):
        return None
    if call.name in _IDENTITIES or (call.name == "dropout" and call.get("training") is False):
        return Move(inputs, identity=True)
    if call.name in _SPLITS:
        return Move(inputs, several=True)
    if call.name == "pad":
        return _pad(call, inputs)
    if call.name in ("interpolate", "upsample_nearest2d", "upsample_nearest1d"):
        nearest = call.get("mode", "nearest") in ("nearest", "nearest-exact")
        return Move(inputs, on_bytes=False) if nearest else None
    if call.name in ("amax", "amin"):
        return Move(inputs)
    if call.name.startswith("adaptive_max_pool") and not call.get("return_indices"):
        size = sizes(call.get("output_size"), int(call.name[-2]))
        return None if size is None else AdaptiveMaxPool(inputs, on_bytes=False, size=size)
    reads_bits = any(isinstance(argument, torch.dtype) for argument in call.arguments.values())  # x.view(torch.int32)
    return Move(inputs) if call.name in _MOVES and not reads_bits else None


def _pad(call: Call, inputs: tuple[fx.Node, ...]) -> Operation | None:
    if call.get("mode", "constant") != "constant":
        return Move(inputs, on_bytes=False)
    pad = call.get("pad")
    if call.get("value") or not isinstance(pad, list | tuple) or not all(isinstance(p, int) for p in pad):
        return None
    return PadZeros(inputs, pad=tuple(pad))


_READERS: tuple[Callable[[Call, tuple[fx.Node, ...], Operations], Operation | None], ...] = (
    _rectify, _two_tensors, _elementwise, _join, read_mean, read_pool, _move,
)  # fmt: skip
