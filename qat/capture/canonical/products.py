"""Products with parameters that are not written as layers (einsum, bmm, ...) become linear layers and convolutions."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qat.capture.canonical.equations import Factors, equation_of, factors_of
from qat.capture.canonical.functional_call import functional_call
from qat.capture.graphs.arguments import copies
from qat.capture.graphs.rewriting import erase_unused, lookup, parameter_nodes
from qat.contexts import training_mode

Shapes = Mapping[fx.Node, tuple[Any, ...]]
"""The shapes of tensors, as far as they are known."""

_CONVOLUTIONS: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)


class _Product(NamedTuple):
    """A product with a weight. axes, weight_axes, result: a letter for each axis of x, of the weight and of the product."""

    factors: Factors
    x: fx.Node
    weight: fx.Node
    axes: str
    weight_axes: str
    result: str
    sizes: dict[str, int]

    @property
    def stacked(self) -> str:
        """Axes along which every slice of x is multiplied by its own matrix."""
        return "".join(c for c in self.weight_axes if c in self.axes and c in self.result)

    @property
    def summed(self) -> str:
        """Axes that the product sums over."""
        return "".join(c for c in self.weight_axes if c in self.axes and c not in self.result)

    @property
    def outputs(self) -> str:
        """Axes that only the weight has."""
        return "".join(c for c in self.weight_axes if c not in self.axes)

    def count(self, letters: str) -> int:
        """How many elements these axes have."""
        return math.prod(self.sizes[c] for c in letters)


def products_as_layers(model: nn.Module, graph: fx.Graph, shapes: Callable[[], Shapes]) -> bool:
    """Write products with a tensor of parameters alone as F.linear or, with a stack of matrices, as a convolution of
    kernel 1 in groups, and torch.einsum of two activations as torch.matmul, in place.

    shapes: finds the shapes of the tensors of the graph.

    Returns:
        Whether there was one. Sums in another order are not the same to the bit.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found = [node for node in graph.nodes if product_to_rewrite(model, node, parameters)]
    known = dict(shapes()) if found else {}
    changed = False
    for node in found:
        factors = factors_of(model, node)  # a factor may have been a product, too
        assert factors is not None
        if _of_parameters(factors, parameters):
            product = _product(model, factors, parameters, known)
            result = None if product is None else _as_layer(graph, node, product)
        else:
            result = _as_matmul(graph, node, factors, known)
        if result is not None:
            known |= {result: known[node]} if node in known else {}
            node.replace_all_uses_with(result)
            erase_unused([node])
            changed = True
    return changed


def has_products(model: nn.Module, graph: fx.Graph) -> bool:
    """Whether there are products that `products_as_layers` may write as layers if it knows shapes."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return any(product_to_rewrite(model, node, parameters) is not None for node in graph.nodes)


def product_to_rewrite(model: nn.Module, node: fx.Node, parameters: set[str]) -> Factors | None:
    """The product that a node computes, if one factor is a weight, or if both are activations and it is not a matmul."""
    factors = factors_of(model, node)
    if factors is None or _is_layer(model, node, parameters):
        return None
    constant = _of_parameters(factors, parameters)
    return factors if constant == 1 or (constant == 0 and factors.name == "einsum") else None


def _of_parameters(factors: Factors, parameters: set[str]) -> int:
    """How many of the factors depend on parameters alone."""
    return sum(parameter_nodes(n, parameters) is not None for n in (factors.first, factors.second))


def _is_layer(model: nn.Module, node: fx.Node, parameters: set[str]) -> bool:
    """Whether a layer of torch.nn computes it as it is written."""
    call = functional_call(node)
    nodes = None if call is None else parameter_nodes(call.weight, parameters)
    return nodes is not None and _value(model, nodes).ndim == 2


def _value(model: nn.Module, nodes: list[fx.Node]) -> Tensor:
    with torch.no_grad():
        value: Tensor = lookup(nodes, "")(model)
    return value


def _product(model: nn.Module, factors: Factors, parameters: set[str], shapes: Shapes) -> _Product | None:
    """The product, if it is one of real numbers that a layer computes."""
    first = parameter_nodes(factors.first, parameters)
    nodes = first or parameter_nodes(factors.second, parameters)
    assert nodes is not None
    value, weight = _value(model, nodes), nodes[-1]
    x = factors.second if first else factors.first
    shape = shapes.get(x)
    axes = None if shape is None else len(shape)
    equation = equation_of(factors, *((value.ndim, axes) if first else (axes, value.ndim)))
    if equation is None or not value.is_floating_point():
        return None
    of_weight, of_x = equation[:2] if first else equation[1::-1]
    if len(of_weight) != value.ndim or (shape is not None and len(of_x) != len(shape)):
        return None
    sizes, others = dict(zip(of_weight, value.shape, strict=True)), dict(zip(of_x, shape or (), strict=False))
    repeated = [c for c in of_weight if c in of_x and sizes[c] == 1 and others.get(c) != 1]
    x_repeated = [c for c in of_x if isinstance(others.get(c), int) and others[c] == 1 and sizes.get(c, 1) > 1]
    if not set(repeated + x_repeated) <= set(equation.result):
        return None
    weight, of_weight = _without_axes(weight, of_weight, repeated)
    x, of_x = _without_axes(x, of_x, x_repeated)
    found = _Product(factors, x, weight, of_x, of_weight, equation.result, sizes)
    if _is_computable(found):
        return found
    erase_unused([x, weight])
    return None


def _without_axes(x: fx.Node, axes: str, dropped: list[str]) -> tuple[fx.Node, str]:
    """x without axes of size 1, along which the other factor of a product repeats it; its other axes."""
    if dropped:
        with x.graph.inserting_after(x):
            x = x.graph.call_method("squeeze", (x, tuple(axes.index(c) for c in dropped)))
    return x, "".join(c for c in axes if c not in dropped)


def _is_computable(product: _Product) -> bool:
    """Whether there is a layer for it: no axis twice in a tensor, something to sum over, not too many axes."""
    once = all(len(set(axes)) == len(axes) for axes in (product.axes, product.weight_axes, product.result))
    only_in_weight = [c for c in product.outputs if c not in product.result]
    kept = [c for c in product.axes if c in product.result and c not in product.weight_axes]
    fits = not product.stacked or 1 <= len(kept) <= 4
    return once and bool(product.summed) and not only_in_weight and fits


def _as_layer(graph: fx.Graph, node: fx.Node, product: _Product) -> fx.Node:
    with graph.inserting_before(node):
        result = _grouped(graph, product) if product.stacked else _linear(graph, product)
        if product.factors.added is not None:
            result = graph.call_function(operator.add, (result, product.factors.added))
    return result


def _as_matmul(graph: fx.Graph, node: fx.Node, factors: Factors, shapes: Shapes) -> fx.Node | None:
    """The einsum of two activations as torch.matmul; None if it sums over several axes, or keeps several of one factor."""
    lengths = [len(shapes[n]) if n in shapes else None for n in (factors.first, factors.second)]
    equation = equation_of(factors, *lengths)
    if equation is None or any(len(set(axes)) < len(axes) for axes in equation):
        return None
    first, second, result = equation
    batch = "".join(c for c in result if c in first and c in second)
    rows, columns = ("".join(c for c in axes if c not in other) for axes, other in ((first, second), (second, first)))
    summed = "".join(c for c in first if c in second and c not in result)
    if not len(rows) == len(columns) == len(summed) == 1 or rows not in result or columns not in result:
        return None
    with graph.inserting_before(node):
        left = _permuted(graph, factors.first, first, batch + rows + summed)
        right = _permuted(graph, factors.second, second, batch + summed + columns)
        y = graph.call_function(torch.matmul, (left, right))
        return _permuted(graph, y, batch + rows + columns, result)


def _linear(graph: fx.Graph, product: _Product) -> fx.Node:
    x, kept = _without_lonely_axes(graph, product)
    x = _permuted(graph, x, kept[0], kept[1] + product.summed)
    if len(product.summed) > 1:
        x = graph.call_method("flatten", (x, -len(product.summed)))
    matrix = _weight(
        graph,
        product,
        product.outputs + product.summed,
        (product.count(product.outputs), product.count(product.summed)),
    )
    y = graph.call_function(F.linear, (x, matrix))
    if not product.outputs:
        y = graph.call_method("squeeze", (y, -1))
    elif len(product.outputs) > 1:
        y = graph.call_method("unflatten", (y, -1, tuple(product.sizes[c] for c in product.outputs)))
    return _permuted(graph, y, kept[1] + product.outputs, product.result)


def _grouped(graph: fx.Graph, product: _Product) -> fx.Node:
    """Each matrix of the stack is a group of channels; axes that only x has are its batch and its positions."""
    x, kept = _without_lonely_axes(graph, product)
    batch, positions = kept[1][0], kept[1][1:]
    groups = product.count(product.stacked)
    channels = product.stacked + product.summed
    x = _permuted(graph, x, kept[0], batch + channels + positions)
    if len(channels) > 1:
        x = graph.call_method("flatten", (x, 1, len(channels)))
    if not positions:
        x = graph.call_method("unsqueeze", (x, -1))
    ones = (1,) * max(len(positions), 1)
    shape = (groups * product.count(product.outputs), product.count(product.summed), *ones)
    weight = _weight(graph, product, product.stacked + product.outputs + product.summed, shape)
    y = graph.call_function(_CONVOLUTIONS[len(ones) - 1], (x, weight), {"groups": groups})
    if not positions:
        y = graph.call_method("squeeze", (y, -1))
    made = product.stacked + product.outputs
    if len(made) > 1:
        y = graph.call_method("unflatten", (y, 1, tuple(product.sizes[c] for c in made)))
    return _permuted(graph, y, batch + made + positions, product.result)


def _without_lonely_axes(graph: fx.Graph, product: _Product) -> tuple[fx.Node, tuple[str, str]]:
    """x, summed over axes that neither the weight nor the result has; its axes, and those of them that the weight lacks."""
    lonely = [i for i, c in enumerate(product.axes) if c not in product.result and c not in product.weight_axes]
    x = graph.call_method("sum", (product.x, lonely)) if lonely else product.x
    axes = "".join(c for i, c in enumerate(product.axes) if i not in lonely)
    return x, (axes, "".join(c for c in axes if c not in product.weight_axes))


def _weight(graph: fx.Graph, product: _Product, axes: str, shape: tuple[int, ...]) -> fx.Node:
    weight = _permuted(graph, product.weight, product.weight_axes, axes)
    same = tuple(product.sizes[c] for c in axes) == shape
    return weight if same else graph.call_method("reshape", (weight, shape))


def _permuted(graph: fx.Graph, x: fx.Node, axes: str, wanted: str) -> fx.Node:
    if axes == wanted:
        return x
    order = tuple(axes.index(c) for c in wanted)
    return graph.call_method("permute", (x, order))


def shapes_in_run(model: nn.Module, graph: fx.Graph, arguments: Mapping[str, Any] | None) -> Shapes:
    """The shapes of all tensors of a graph, seen in a run.

    arguments: those of forward by name, without defaults; None: they are not known, and neither are the shapes.
    """
    if arguments is None:
        return {}
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    given = [arguments[str(n.target)] if str(n.target) in arguments else n.args[0] for n in inputs]
    with training_mode(model, False):
        return _Shapes(model, graph).seen(copies(given))


def shapes_of_export(graph: fx.Graph) -> Shapes:
    """The shapes of all tensors of a graph of torch.export; sizes that are free are not numbers."""
    values = {node: node.meta.get("val") for node in graph.nodes}
    return {node: tuple(value.shape) for node, value in values.items() if isinstance(value, Tensor)}


class _Shapes(fx.Interpreter):
    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self.found: dict[fx.Node, tuple[Any, ...]] = {}

    def seen(self, inputs: list[Any]) -> Shapes:
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            self.run(*inputs)
        return self.found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.found[n] = tuple(value.shape)
        return value
