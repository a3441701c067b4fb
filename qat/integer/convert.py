"""From a prepared, calibrated model to its integer model."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qat.granularity import PerGroup
from qat.integer.absorb import IntegerWeights, absorb, absorb_batch_norm
from qat.integer.arithmetic import Codes
from qat.integer.modules import (
    Dequantize,
    DynamicLayer,
    DynamicQuantize,
    IntegerAdd,
    IntegerAveragePool,
    IntegerCat,
    IntegerConv,
    IntegerGlobalAverage,
    IntegerLayer,
    IntegerLinear,
    IntegerMaxPool,
    IntegerModule,
    IntegerPad,
    LookUp,
    Quantize,
    Requantize,
    WeightOnlyLayer,
)
from qat.nn import as_quantized, is_quantized
from qat.quantizers import Quantizer, Table
from qat.transform.capture import CaptureError, capture
from qat.transform.mode import quantizers
from qat.transform.plan import Kind, ceiling, is_identity_in_evaluation, kind_of, mean_axes


class IntegerModel(fx.GraphModule):
    """A network on integer codes, float in and float out. `codes(x)` also returns the codes of every site."""

    def codes(self, *inputs: Any) -> tuple[Any, dict[str, Tensor]]:
        """(output, {site: uint8 codes}) for one batch."""
        seen: dict[str, Tensor] = {}
        hooks = [
            module.register_forward_hook(
                lambda _m, _i, out, name=name: seen.__setitem__(name, out if isinstance(out, Tensor) else out[0])
            )
            for name, module in self.named_modules()
            if isinstance(module, IntegerModule) and module.makes_codes
        ]
        try:
            return self(*inputs), seen
        finally:
            for hook in hooks:
                hook.remove()


def convert(model: nn.Module) -> nn.Module:
    """The integer model of a prepared model; the model handed in is not changed.

    Quantized segments become integer modules (uint8 activations, int8 weight codes, int32 bias, BatchNorm absorbed, one
    float32 multiplier per output channel); what `prepare` left in float stays float. Layers quantized per group or in their
    weight alone keep integer weights and calculate in float; layers with dynamic inputs multiply integers and return float. A
    model without a graph gets weight-only layers and its input
    quantizers stay as they are.

    Raises:
        ValueError: the model is not prepared, or a quantizer has no range yet.
    """
    found = quantizers(model)
    if isinstance(model, IntegerModel):
        raise ValueError("the model is an integer model already: pass what qat.prepare returned.")
    if not found:
        raise ValueError(
            "the model has no quantizers: call qat.prepare(model, policy) and calibrate or train it first."
        )
    for name, quantizer in found.items():
        if not quantizer.ready:
            raise ValueError(
                f"quantizer {name!r} has no range yet: call qat.calibrate(model, batches) before qat.convert."
            )
    source = copy.deepcopy(model).eval()
    try:
        graph = capture(source)
    except CaptureError:
        return _weights_only(source)
    with torch.no_grad():
        return _Converter(source, graph).run()


class _Converter:
    """Rebuilds the graph from its output back to its inputs, each tensor as codes or as float, whichever is asked for."""

    def __init__(self, source: nn.Module, graph: fx.Graph) -> None:
        self.source, self.old = source, graph
        self.root, self.new = nn.Module(), fx.Graph()
        self.kinds = {node: kind_of(source, node) for node in graph.nodes}
        self.as_codes: dict[fx.Node, fx.Node] = {}
        self.as_float: dict[fx.Node, fx.Node] = {}
        self.grids: dict[fx.Node, Codes] = {}
        self.as_dynamic: dict[fx.Node, fx.Node] = {}

    def run(self) -> IntegerModel:
        output = None
        for node in self.old.nodes:
            if node.op == "placeholder":
                self.as_float[node] = self.new.placeholder(
                    node.target, default_value=node.args[0] if node.args else inspect.Parameter.empty
                )
            elif node.op == "output":
                output = fx.map_arg(node.args[0], self.value)
        self.new.output(output)
        self.new.lint()
        model = IntegerModel(self.root, self.new, f"Integer{type(self.source).__name__}")
        return model.eval()

    def module(self, node: fx.Node) -> nn.Module:
        return self.source.get_submodule(str(node.target))

    def has_codes(self, node: fx.Node) -> bool:
        """Whether the tensor lies on a grid that is known before it is."""
        kind = self.kinds[node]
        return (kind is Kind.SITE and not self.is_dynamic(node)) or (
            kind is Kind.SAME and self.has_codes(node.all_input_nodes[0])
        )

    def is_dynamic(self, node: fx.Node) -> bool:
        """Whether the node is a site whose range is that of each tensor."""
        module = self.module(node) if self.kinds[node] is Kind.SITE else None
        return isinstance(module, Quantizer) and module.is_dynamic

    def add(self, name: str, module: nn.Module, arguments: tuple[Any, ...]) -> fx.Node:
        """Call a new module; its name is the site or layer that it computes."""
        name = name.replace(".", "_")
        while hasattr(self.root, name):
            name += "_"
        self.root.add_module(name, module)
        return self.new.call_module(name, arguments)

    # Codes -----------------------------------------------------------------------------------------------------------

    def codes(self, node: fx.Node) -> fx.Node:
        """The new node that holds the uint8 codes of an old tensor, and its grid in `self.grids`."""
        if node not in self.as_codes:
            emitted, grid = self._site(node) if self.kinds[node] is Kind.SITE else self._same(node)
            self.as_codes[node], self.grids[node] = emitted, grid
        return self.as_codes[node]

    def _site(self, site: fx.Node) -> tuple[fx.Node, Codes]:
        quantizer = self.module(site)
        assert isinstance(quantizer, Quantizer)
        grid, table = Codes.of(quantizer), quantizer.table()
        if table is None:
            return self._on_grid(site, quantizer.label, grid)
        fine = Codes.on(table.grid, table.qparams)
        codes, _ = self._on_grid(site, f"{quantizer.label}_fine", fine)
        return self.add(quantizer.label, LookUp(_stored(table, fine, grid), grid), (codes,)), grid

    def _on_grid(self, site: fx.Node, name: str, grid: Codes) -> tuple[fx.Node, Codes]:
        """The codes of a site on this grid; the grid comes back with its bounds as they are behind a ReLU."""
        source = end = site.all_input_nodes[0]
        if self.has_codes(source):
            codes = self.codes(source)
            return self.add(name, Requantize(self.grids[source], grid), (codes,)), grid
        if self.kinds[end] is Kind.RECTIFY:
            grid = grid.after_relu(ceiling(self.source, end))
            source = end.all_input_nodes[0]
            if self.has_codes(source):
                codes = self.codes(source)
                return self.add(name, Requantize(self.grids[source], grid), (codes,)), grid
        norm = source if self.kinds[source] is Kind.NORM else None
        head = source.all_input_nodes[0] if norm is not None else source
        inputs = head.all_input_nodes
        if self.kinds[head] is Kind.COMPUTE and self._computes_on_codes(head):
            return self.add(name, self._layer(head, norm, grid), (self.codes(inputs[0]),)), grid
        if norm is None and inputs and all(self.has_codes(n) for n in inputs):
            emitted = self._arithmetic(name, head, inputs, grid)
            if emitted is not None:
                return emitted, grid
        return self.add(name, Quantize(grid), (self.value(end),)), grid

    def _arithmetic(self, name: str, node: fx.Node, inputs: list[fx.Node], grid: Codes) -> fx.Node | None:
        """Add, concatenation or pooling on codes; None where it has no integer form."""
        codes = [self.codes(n) for n in inputs]
        grids = [self.grids[n] for n in inputs]
        if self.kinds[node] is Kind.ADD:
            pair = [n for n in node.args if isinstance(n, fx.Node)]
            a, b = pair[0], pair[1]
            return self.add(name, IntegerAdd(self.grids[a], self.grids[b], grid), (self.codes(a), self.codes(b)))
        if self.kinds[node] is Kind.CAT:
            dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            parts = node.args[0] if node.args else node.kwargs["tensors"]
            assert isinstance(parts, list | tuple)
            assert isinstance(dim, int)
            order = [n for n in parts if isinstance(n, fx.Node)]
            cat = IntegerCat([self.grids[n] for n in order], grid, dim)
            return self.add(name, cat, ([self.codes(n) for n in order],))
        if self.kinds[node] is Kind.POOL:
            pool = self._pool(node, grids[0], grid)
            return None if pool is None else self.add(name, pool, (codes[0],))
        return None

    def _pool(self, node: fx.Node, x: Codes, y: Codes) -> nn.Module | None:
        module = self.module(node) if node.op == "call_module" else None
        if isinstance(module, nn.AvgPool2d) or node.target is F.avg_pool2d:
            pool = module or nn.AvgPool2d(*node.args[1:], **node.kwargs)  # type: ignore[arg-type]
            assert isinstance(pool, nn.AvgPool2d)
            return None if pool.ceil_mode or pool.divisor_override else IntegerAveragePool(x, y, pool)
        if node.target in ("mean", torch.mean):
            assert mean_axes(node) == (2, 3)
            keepdim = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
            return IntegerGlobalAverage(x, y, bool(keepdim))
        size = module.output_size if isinstance(module, nn.AdaptiveAvgPool2d) else node.args[1]
        return IntegerGlobalAverage(x, y) if size in (1, (1, 1), [1, 1]) else None

    def _same(self, node: fx.Node) -> tuple[fx.Node, Codes]:
        source = node.all_input_nodes[0]
        codes = self.codes(source)
        grid = self.grids[source]
        module = self.module(node) if node.op == "call_module" else None
        if module is not None and is_identity_in_evaluation(module):
            return codes, grid
        if isinstance(module, nn.MaxPool2d) or node.target is F.max_pool2d:
            pool = module or nn.MaxPool2d(*node.args[1:], **node.kwargs)  # type: ignore[arg-type]
            assert isinstance(pool, nn.MaxPool2d)
            return self.add(f"{node.name}_codes", IntegerMaxPool(grid, pool), (codes,)), grid
        if node.target is F.pad:
            pad = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
            return self.add(f"{node.name}_codes", IntegerPad(grid, tuple(pad)), (codes,)), grid  # type: ignore[arg-type]
        return self._copy(node, lambda n: codes if n is source else self.shape_or_value(n)), grid

    def _computes_on_codes(self, node: fx.Node) -> bool:
        return self._has_integer_weight(node) and self.has_codes(node.all_input_nodes[0])

    def _has_integer_weight(self, node: fx.Node) -> bool:
        """Whether the layer's weight is codes with one scale an output channel, or one in all."""
        layer = self.module(node)
        quantizer = as_quantized(layer).weight_quantizer if is_quantized(layer) else None
        padded = getattr(layer, "padding_mode", "zeros") == "zeros"  # codes are padded with their zero-point alone
        return quantizer is not None and padded and not isinstance(quantizer.spec.granularity, PerGroup)

    def _layer(self, node: fx.Node, norm: fx.Node | None, output: Codes | None) -> nn.Module:
        """The integer form of a layer and the BatchNorm behind it."""
        layer = self.module(node)
        source = node.all_input_nodes[0]
        self.codes(source)
        x = self.grids[source]
        return _integer_layer(layer, absorb(as_quantized(layer), self._norm(norm), x), x, output, norm is not None)

    def _dynamic_layer(self, node: fx.Node, norm: fx.Node | None) -> fx.Node:
        """The same on an input whose range is that of each tensor, with a real bias."""
        site = node.all_input_nodes[0]
        if site not in self.as_dynamic:
            label = str(self.module(site).label)
            self.as_dynamic[site] = self.add(label, DynamicQuantize(), (self.value(site.all_input_nodes[0]),))
        layer = self.module(node)
        weights = absorb_batch_norm(as_quantized(layer), self._norm(norm))
        without_bias = weights._replace(bias=torch.zeros_like(weights.bias))
        inner = _integer_layer(layer, without_bias, Codes(1.0, 0), None, norm is not None)
        return self.add(str(node.target), DynamicLayer(inner, weights.bias), (self.as_dynamic[site],))

    def _norm(self, norm: fx.Node | None) -> nn.Module | None:
        return None if norm is None else self.module(norm)

    # Floats ----------------------------------------------------------------------------------------------------------

    def value(self, node: fx.Node) -> fx.Node:
        """The new node that holds the float value of an old tensor."""
        if node not in self.as_float:
            self.as_float[node] = self._value(node)
        return self.as_float[node]

    def shape_or_value(self, node: fx.Node) -> fx.Node:
        """Sizes are read off the codes where there are codes: nothing is dequantized for its shape."""
        return self.codes(node) if self.has_codes(node) else self.value(node)

    def _value(self, node: fx.Node) -> fx.Node:
        if self.has_codes(node):
            codes = self.codes(node)
            return self.add(f"{node.name}_float", Dequantize(self.grids[node]), (codes,))
        if self.kinds[node] is Kind.SHAPE:
            return self._copy(node, self.shape_or_value)
        norm = node if self.kinds[node] is Kind.NORM else None
        layer = node if norm is None else norm.all_input_nodes[0]
        if self.kinds[layer] is Kind.COMPUTE and (norm is None or len(layer.users) == 1):
            if self._computes_on_codes(layer):
                codes = self.codes(layer.all_input_nodes[0])
                return self.add(str(layer.target), self._layer(layer, norm, None), (codes,))
            if self._has_integer_weight(layer) and self.is_dynamic(layer.all_input_nodes[0]):
                return self._dynamic_layer(layer, norm)
        if self.kinds[node] is Kind.COMPUTE:
            return self.add(str(node.target), weight_only(self.module(node)), (self.value(node.all_input_nodes[0]),))
        return self._copy(node, self.value)

    def _copy(self, node: fx.Node, argument: Any) -> fx.Node:
        if node.op == "call_module":
            return self.add(str(node.target), self.module(node), fx.map_arg(node.args, argument))
        if node.op == "get_attr":
            name = str(node.target).replace(".", "_")
            owner, _, attribute = str(node.target).rpartition(".")
            self.root.register_buffer(name, getattr(self.source.get_submodule(owner), attribute).detach())
            return self.new.get_attr(name)
        return self.new.node_copy(node, argument)


def _stored(table: Table, fine: Codes, grid: Codes) -> Tensor:
    """The table for stored codes, uint8 (256,). Codes that never occur have the entry of the nearest that does."""
    entry = torch.arange(256).clamp(fine.lowest, fine.highest) - fine.lowest
    return (table.codes.cpu()[entry] + grid.zero_point).to(torch.uint8)


def _integer_layer(
    layer: nn.Module, integers: IntegerWeights, x: Codes, output: Codes | None, absorbed: bool
) -> IntegerLayer:
    """The module for these weights; from `layer` come its shape and its bits. absorbed: whether a BatchNorm is in them."""
    quantizer = as_quantized(layer).weight_quantizer
    assert quantizer is not None
    weight, bias, scale, steps = integers
    arguments = (weight, bias, scale, quantizer.spec.grid.bits, x, output, steps)
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return IntegerConv(*arguments, conv=layer)
    return IntegerLinear(*arguments, absorbed=absorbed)


def weight_only(layer: nn.Module) -> nn.Module:
    """A quantized layer with stored weight codes and float arithmetic; a layer whose weight is float, as it is."""
    if not is_quantized(layer) or as_quantized(layer).weight_quantizer is None:
        return layer
    quantizer = as_quantized(layer).weight_quantizer
    assert quantizer is not None
    weight = as_quantized(layer).weight.detach()
    granularity, shape = quantizer.spec.granularity, tuple(weight.shape)
    codes = quantizer.quantize(weight)  # first: some quantizers take their scale from the weight that they see
    scale, zero_point = (granularity.shaped(p, shape) for p in quantizer.qparams())
    layer.register_module("weight_quantizer", None)
    return WeightOnlyLayer(layer, codes, scale, zero_point, granularity.view(weight).shape, quantizer.spec.grid.bits)


def _weights_only(model: nn.Module) -> nn.Module:
    """Without a graph: every quantized layer stores weight codes; input quantizers go on rounding."""
    for name, module in list(model.named_modules()):
        if is_quantized(module):
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, weight_only(module))
    return model
