"""The example inputs of an export: the value of each argument, and the same with other sizes along the free axes."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qat.export.onnx.onnx_file import MAX_ELEMENTS
from qat.export.onnx.tensor_names import TensorNames
from qat.export.outputs import joined_name
from qat.operations import is_fixed, is_label
from qat.torch_private import tree_flatten_with_path, tree_leaves, tree_map, tree_map_only

Examples = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""A tensor, a tuple of forward's arguments, or a mapping of its keyword arguments."""
FreeAxes = Mapping[str, Sequence[int] | Mapping[int, str]]
"""Input -> its free axes; a mapping also names them, and axes of one name have one size."""
BATCH = "batch"
OTHER_SIZES = ((2, 3, 1), (3, 4, 1), (2, 4, 1), (4, 5, 1), (3, 5, 1))
"""Factors by which trials multiply the sizes of free axes. Neighbouring axes get different ones, and all grow from the first
trial to the second, so that no sum or product of sizes is the same in both. The third trial checks the file."""
BATCHES = (2, 3, 4)
"""Sizes of the batch in the trials."""


@dataclass(frozen=True)
class ExampleInputs:
    """Arguments of a graph, their names in the file, and three sets of values with different sizes along free axes.

    Attributes:
        names: argument -> the names of its tensors in the file, nested as the argument is.
        axes: name of a tensor -> {free axis: its name}.
        values: argument -> its value.
        batches: sizes of the batch in the trials.
    """

    names: dict[str, Any]
    axes: dict[str, dict[int, str]]
    values: dict[str, Any]
    batches: tuple[int, ...]

    def trial(self, number: int) -> tuple[Any, ...]:
        """The arguments with the sizes of trial 0, 1 or 2."""
        factors = dict(zip(sorted(self._other_axes()), itertools.cycle(OTHER_SIZES), strict=False))

        def in_trial(x: Tensor, name: str) -> Tensor:
            shape = list(x.shape)
            for axis, of_axis in self.axes.get(name, {}).items():
                size = self.batches[number] if of_axis == BATCH else shape[axis] * factors[of_axis][number]
                shape[axis] = max(size, 2)  # an axis of 1 would be lost to squeeze()
            return resized(x, shape)

        return tuple(
            tree_map(lambda x, n: in_trial(x, n) if isinstance(x, Tensor) else x, value, self.names[argument])
            for argument, value in self.values.items()
        )

    @property
    def samples(self) -> int:
        """The size of the batch."""
        tensors = dict(named_tensors(self.values.values(), self.names.values()))
        sizes = (tensors[n].shape[i] for n, axes in self.axes.items() for i, axis in axes.items() if axis == BATCH)
        return next(sizes, 1)

    def _other_axes(self) -> set[str]:
        return {name for axes in self.axes.values() for name in axes.values() if name != BATCH}


def resized(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Repeat or cut x along every axis, to this shape.

    >>> resized(torch.arange(4).reshape(2, 2), (3, 1)).tolist()
    [[0], [2], [0]]
    """
    repeated = x.repeat([-(-size // n) for size, n in zip(shape, x.shape, strict=True)]) if x.ndim else x
    return repeated[tuple(slice(size) for size in shape)]


def as_written(inputs: tuple[Any, ...], shapes: Sequence[Sequence[int]]) -> tuple[Any, ...]:
    """Inputs with the shapes with which the file was written, if they are known and have as many axes.

    Raises:
        ValueError: these are no shapes of examples.
    """
    sizes_are_numbers = all(isinstance(size, int) and size >= 0 for shape in shapes for size in shape)
    if not sizes_are_numbers or sum(map(math.prod, shapes)) > MAX_ELEMENTS:
        raise ValueError(f"its examples have the shapes {shapes!r:.80}")
    tensors = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
    if [len(shape) for shape in shapes] != [x.ndim for x in tensors] or any(0 in x.shape for x in tensors):
        return inputs
    remaining = iter(shapes)
    return tree_map_only(Tensor, lambda x: resized(x, next(remaining)), inputs)


def bind(graph: fx.Graph, examples: Examples, dynamic: FreeAxes | None) -> ExampleInputs:
    """Give every argument of a graph its example, or its default.

    Raises:
        ValueError: an argument has no example and no default, there are examples or free axes of unknown arguments, or
            `dynamic` is not a mapping from inputs to axes.
    """
    arguments = [n for n in graph.nodes if n.op == "placeholder"]
    names = [str(n.target).lstrip("*") for n in arguments]
    if isinstance(examples, Mapping):  # labels are for training, unless forward requires them
        read = {name for node, name in zip(arguments, names, strict=True) if not (node.args and is_fixed(node))}
        examples = {name: value for name, value in examples.items() if name in read or not is_label(name)}
    given = _by_name(names, examples)
    for node, name in zip(arguments, names, strict=True):
        if name not in given and not (node.args and is_fixed(node)):
            raise ValueError(f"input {name!r} is missing in the example inputs: pass a tensor for it.")
    values = {n: given[n] if n in given else node.args[0] for node, n in zip(arguments, names, strict=True)}
    values = {n: tree_map_only(Tensor, _as_float32, value) for n, value in values.items()}
    unique = TensorNames()
    tensor_names = {n: _names(n, value, unique) for n, value in values.items()}
    tensors = dict(named_tensors(values.values(), tensor_names.values()))
    axes = _default_axes(tensors) if dynamic is None else _named_axes(tensors, dynamic)
    return ExampleInputs(tensor_names, axes, values, BATCHES)


def _by_name(names: list[str], examples: Examples) -> dict[str, Any]:
    if isinstance(examples, Mapping):
        if unknown := sorted(set(examples) - set(names)):
            raise ValueError(f"forward takes no argument {unknown[0]!r}: write example inputs for {', '.join(names)}.")
        return dict(examples)
    arguments = examples if isinstance(examples, tuple) else (examples,)
    if len(arguments) > len(names):
        raise ValueError(
            f"there are {len(arguments)} example inputs: write those of {', '.join(names)}, in this order."
        )
    return dict(zip(names, arguments, strict=False))


def _as_float32(x: Tensor) -> Tensor:
    if x.is_complex():
        raise ValueError("an example input is complex, which no runtime takes: pass its real and imaginary parts.")
    return (x.float() if x.is_floating_point() else x).detach().cpu()


def _names(argument: str, value: Any, unique: TensorNames) -> Any:
    """argument, or argument_0, argument_hidden, ... for each tensor of a nested one; other leaves stay."""
    leaves, structure = tree_flatten_with_path(value)
    return structure.unflatten(
        unique.new(joined_name(argument, path)) if isinstance(leaf, Tensor) else leaf for path, leaf in leaves
    )


def named_tensors(values: Iterable[Any], names: Iterable[Any]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all tensors in nested values, given their names, nested alike."""
    for value, named in zip(values, names, strict=True):
        for x, name in zip(tree_leaves(value), tree_leaves(named), strict=True):
            if isinstance(x, Tensor):
                yield name, x


def _default_axes(tensors: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    """The first axis of all that have as many samples as the first tensor with axes."""
    batch = next((x.shape[0] for x in tensors.values() if x.ndim), 0)
    return {name: {0: BATCH} for name, x in tensors.items() if x.ndim and x.shape[0] == batch}


def _named_axes(tensors: Mapping[str, Tensor], dynamic: FreeAxes) -> dict[str, dict[int, str]]:
    if not isinstance(dynamic, Mapping):
        raise ValueError(
            f"dynamic={dynamic!r} is not possible: write input -> its free axes, {{{next(iter(tensors))!r}: (0,)}}."
        )
    axes: dict[str, dict[int, str]] = {}
    for name, of_tensor in dynamic.items():
        if name not in tensors:
            raise ValueError(f"dynamic names an input {name!r}: write one of {', '.join(tensors)}.")
        rank = tensors[name].ndim
        given = of_tensor if isinstance(of_tensor, Iterable) else (of_tensor,)
        named = dict(given) if isinstance(given, Mapping) else dict.fromkeys(given, "")
        if outside := [axis for axis in named if not isinstance(axis, int) or not -rank <= axis < rank]:
            whole = f"a whole number from 0 to {rank - 1}" if rank else "no axis, because it has none"
            raise ValueError(f"dynamic names axis {outside[0]!r} of input {name!r}: write {whole}.")
        axes[name] = {a % rank: n or (f"axis_{a % rank}" if a % rank else BATCH) for a, n in named.items()}
    return axes


def without_constants(model: fx.GraphModule, inputs: ExampleInputs) -> tuple[fx.GraphModule, ExampleInputs]:
    """The model with arguments that have no tensors (None, numbers, flags) replaced by their values."""
    fixed = {
        name for name, value in inputs.values.items() if not any(isinstance(x, Tensor) for x in tree_leaves(value))
    }
    if not fixed:
        return model, inputs
    graph = fx.Graph()
    graph.output(graph.graph_copy(model.graph, {}))
    constants = {n: str(n.target).lstrip("*") for n in graph.nodes if n.op == "placeholder"}
    constants = {n: name for n, name in constants.items() if name in fixed}
    for node in list(graph.nodes):
        if not constants.keys().isdisjoint(node.all_input_nodes):
            arguments = node.args, node.kwargs
            node.args, node.kwargs = fx.map_arg(
                arguments, lambda n: inputs.values[constants[n]] if n in constants else n
            )
    for node in constants:
        graph.erase_node(node)
    kept = {n: v for n, v in inputs.values.items() if n not in fixed}
    names = {n: inputs.names[n] for n in kept}
    return fx.GraphModule(model, graph), ExampleInputs(names, inputs.axes, kept, inputs.batches)


def in_float32(model: fx.GraphModule) -> fx.GraphModule:
    """The model, or a copy on the CPU in float32 if it is somewhere else or computes in another width."""
    tensors = [*model.parameters(), *model.buffers()]
    if all(x.device.type == "cpu" and (x.dtype == torch.float32 or not x.is_floating_point()) for x in tensors):
        return model
    return copy.deepcopy(model).float().cpu()
