"""Float operations written by torch.onnx: all subgraphs in one call, each checked on the example's values, and copied."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx
import torch
from torch import Tensor, fx, nn

from qat.export.onnx.equivalents import WritableFunctions
from qat.export.onnx.example_outputs import ExampleOutputs, tensors_in
from qat.export.onnx.float_subgraphs import FloatSubgraph, find_float_subgraphs
from qat.export.onnx.graph_writer import OPSET, NoComplexFormError, NoOnnxFormError
from qat.export.onnx.qdq_graph import QdqGraph, tensor_name
from qat.export.onnx.runtime import session
from qat.export.onnx.templates import Instance, Template, templates_of
from qat.export.onnx.torch_exporter import complex_operation_in, export_with_torch
from qat.torch_private import tree_leaves

TOLERANCE = 1e-4
"""How far ONNX Runtime may be from torch, relative to the largest finite result, before the export counts as wrong."""
INFINITE = 1e30
"""Numbers beyond this are masks, not results."""


@dataclass(frozen=True)
class Written:
    """What torch.onnx made of a template: nodes and constants from inputs (weights last) to outputs."""

    nodes: Sequence[onnx.NodeProto]
    constants: Sequence[onnx.TensorProto]
    inputs: Sequence[str]
    outputs: Sequence[str]


Before = dict[Any, Written | None]
_before: WeakKeyDictionary[nn.Module, Before] = WeakKeyDictionary()


def written_before(model: nn.Module) -> Before:
    """What torch.onnx wrote of this model, by the identity of the templates, so that `verify` does not wait for it again.

    None for those that are unusable.
    """
    return _before.setdefault(model, {})


class UnusableExportError(Exception):
    """What torch.onnx wrote computes something else, or cannot be copied.

    Args:
        templates: those at fault, if that is known.
        operation: on complex numbers, which torch.onnx cannot write, if that is known.
    """

    def __init__(self, templates: Sequence[Template] = (), operation: str = "") -> None:
        super().__init__()
        self.templates, self.operation = templates, operation


def export_templates(templates: Sequence[Template]) -> list[Written]:
    """Export with torch.onnx in one call, and check every instance in ONNX Runtime.

    Raises:
        UnusableExportError: torch.onnx cannot write one, or ONNX Runtime computes something else.
    """
    model = _torch_export(templates)
    if len(model.graph.output) != sum(len(t.instances[0].expected) for t in templates):
        raise UnusableExportError
    if model.functions or any(n.domain or any(a.HasField("g") for a in n.attribute) for n in model.graph.node):
        raise UnusableExportError
    written = list(_separated(model.graph, templates))
    if at_fault := [t for t, w in zip(templates, written, strict=True) if not _reads_its_weights(t, w)]:
        raise UnusableExportError(at_fault)
    _check(model, templates)
    return written


def _reads_its_weights(template: Template, written: Written) -> bool:
    """Whether every weight that is an input is read: one that is not was made a constant."""
    read = {name for node in written.nodes for name in node.input} | set(written.outputs)
    return not template.lifted or set(written.inputs[len(template.shapes) :]) <= read


class _Functions(nn.Module):
    """All templates side by side. Takes the inputs and weights of each in turn, and returns all their results."""

    def __init__(self, templates: Sequence[Template]) -> None:
        super().__init__()
        self.templates = templates
        self.functions = nn.ModuleList(t.instances[0].module for t in templates)

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        given, results = iter(tensors), []
        for template, function in zip(self.templates, self.functions, strict=True):
            inputs = tuple(next(given) for _ in template.shapes)
            names = list(template.instances[0].weights) if template.lifted else []
            weights = {name: next(given) for name in names}
            results += tensors_in(torch.func.functional_call(function, weights, inputs))
        return results


def _torch_export(templates: Sequence[Template]) -> onnx.ModelProto:
    inputs: list[Tensor] = []
    free: list[dict[int, Any]] = []
    for template in templates:
        for one, other, dtype in template.shapes:
            inputs.append(torch.zeros(one, dtype=dtype))
            free.append({i: torch.export.Dim.AUTO for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b})
        inputs += template.weights
        free += [{} for _ in template.weights]
    try:
        with WritableFunctions():
            shapes = (tuple(free),)
            return export_with_torch(_Functions(templates), tuple(inputs), opset_version=OPSET, dynamic_shapes=shapes)
    except torch.onnx.errors.OnnxExporterError as error:
        raise UnusableExportError(operation=complex_operation_in(error)) from error


def _separated(graph: onnx.GraphProto, templates: Sequence[Template]) -> list[Written]:
    """The part of every template: the nodes that its outputs are computed from."""
    producers = {name: i for i, node in enumerate(graph.node) for name in node.output}
    constants = {t.name: t for t in graph.initializer}
    inputs, outputs = iter(i.name for i in graph.input), iter(o.name for o in graph.output)
    parts = []
    for template in templates:
        own_inputs = [next(inputs) for _ in (*template.shapes, *template.weights)]
        own_outputs = [next(outputs) for _ in template.instances[0].expected]
        needed: set[int] = set()
        waiting, read = list(own_outputs), set(own_outputs)
        while waiting:
            index = producers.get(waiting.pop())
            if index is not None and index not in needed:
                needed.add(index)
                read |= set(graph.node[index].input)
                waiting += graph.node[index].input
        nodes = [graph.node[i] for i in sorted(needed)]
        parts.append(Written(nodes, [t for n, t in constants.items() if n in read], own_inputs, own_outputs))
    return parts


def _check(model: onnx.ModelProto, templates: Sequence[Template]) -> None:
    """Run every instance on the values of the second trial. Raises `UnusableExportError`."""
    try:
        runtime = session(model.SerializeToString())
        for turn in range(max(len(t.instances) for t in templates)):
            instances = [t.instances[turn % len(t.instances)] for t in templates]
            tensors = [
                x
                for template, i in zip(templates, instances, strict=True)
                for x in (*i.inputs, *(i.weights.values() if template.lifted else ()))
            ]
            feeds = {i.name: x.numpy() for i, x in zip(model.graph.input, tensors, strict=True)}
            results = runtime.run(None, feeds)
            found = iter(results)
            agree = [[_agree(x, next(found)) for x in i.expected] for i in instances]
            if at_fault := [t for t, same in zip(templates, agree, strict=True) if not all(same)]:
                raise UnusableExportError(at_fault)
    except UnusableExportError:
        raise
    except Exception as error:  # the runtime has no kernel for it; its exceptions have no common base class
        raise UnusableExportError from error


def _agree(ours: Tensor, theirs: Any) -> bool:
    """Whether a result is what torch computed; NaN equals NaN, and infinity infinity."""
    if ours.shape != theirs.shape:
        return False
    finite = ours.double().abs()
    finite = finite[finite < INFINITE]
    largest = finite.max().item() if finite.numel() else 0.0
    return np.allclose(ours.double(), theirs.astype(np.float64), rtol=1e-5, atol=TOLERANCE * largest, equal_nan=True)


class TorchOnnxWriter:
    """Writes subgraphs into a graph, under the names that the graph has for their results.

    Args:
        graph: where to write.
        model: the network.
        run: runs two trials, and returns the outputs of all nodes, those of the given ones with their data.
        before: what was written before, which is not exported again.
    """

    def __init__(
        self,
        graph: QdqGraph,
        model: fx.GraphModule,
        run: Callable[[Collection[fx.Node]], tuple[ExampleOutputs, ExampleOutputs]],
        before: Before,
    ) -> None:
        self.graph, self.model, self.run, self.before = graph, model, run, before
        self.refused: dict[Any, str] = {}
        """The operation on complex numbers that torch.onnx cannot write, by the identity of the template."""

    def write(self, subgraphs: Sequence[FloatSubgraph]) -> None:
        """Write all subgraphs.

        Raises:
            NoOnnxFormError: torch.onnx cannot write an operation, or what it writes computes something else.
        """
        for template, written in self._exported(self._templates(subgraphs)):
            for instance in template.instances:
                self._copy(instance, written, list(instance.weights.values()) if template.lifted else [])

    def _templates(self, subgraphs: Sequence[FloatSubgraph]) -> list[Template]:
        if not subgraphs:
            return []
        with_data = {node for subgraph in subgraphs for node in (*subgraph.sources, *subgraph.results)}
        return templates_of(self.model, subgraphs, self.graph.names, self.run(with_data))

    def _exported(self, templates: Sequence[Template]) -> list[tuple[Template, Written]]:
        """All templates and what torch.onnx made of them; simpler ones in place of those that are unusable."""
        self._export([t for t in templates if t.identity not in self.before])
        usable = [(t, written) for t in templates if (written := self.before[t.identity]) is not None]
        simpler = [s for t in templates if self.before[t.identity] is None for s in self._simpler(t)]
        return usable + self._exported(simpler) if simpler else usable

    def _export(self, templates: Sequence[Template]) -> None:
        """Export templates in as few calls as possible, each of which takes seconds, and remember what comes of them."""
        if not templates:
            return
        try:
            self.before |= zip([t.identity for t in templates], export_templates(templates), strict=True)
        except UnusableExportError as error:
            at_fault = error.templates or templates[: len(templates) == 1]
            self.before |= dict.fromkeys((t.identity for t in at_fault), None)
            self.refused |= dict.fromkeys((t.identity for t in at_fault), error.operation)
            rest = [t for t in templates if t.identity not in self.before]
            half = 0 if at_fault else len(rest) // 2
            self._export(rest[:half])
            self._export(rest[half:])

    def _simpler(self, template: Template) -> list[Template]:
        """The same subgraphs with weights as constants; if they are already, operation by operation."""
        if template.lifted and template.weights:
            return [Template(template.key, template.shapes, [i], lifted=False) for i in template.instances]
        nodes = [n for i in template.instances for n in i.subgraph.nodes if n in self.graph.names]
        if len(nodes) == len(template.instances):  # each is one operation
            target = self.model.get_submodule(str(nodes[0].target)) if nodes[0].op == "call_module" else nodes[0].target
            raise NoOnnxFormError(target, tensor_name(nodes[0]))
        self._refuse_complex(template)
        return self._templates(
            [
                find_float_subgraphs(self.model.graph, [n], self.graph.names.__contains__, lambda _: True)[0]
                for n in nodes
            ]
        )

    def _refuse_complex(self, template: Template) -> None:
        """Refuse to take a subgraph apart between whose operations there are complex numbers.

        Raises:
            NoComplexFormError: there are.
        """
        outputs, _ = self.run(())
        nodes = [n for n in template.instances[0].subgraph.nodes if n.op != "get_attr"]
        if nodes := [n for n in nodes if any(x.is_complex() for x in tensors_in(outputs[n]))]:
            raise NoComplexFormError(self.refused.get(template.identity, ""), tensor_name(nodes[0]))

    def _copy(self, instance: Instance, written: Written, weights: Sequence[Tensor]) -> None:
        """Copy all nodes and constants of a subgraph into the graph."""
        graph, subgraph = self.graph, instance.subgraph
        inputs = [name for s in subgraph.sources for name in names_in(graph.names[s])]
        inputs += [graph.constant(w.numpy()) for w in weights]
        names = {"": "", **dict(zip(written.inputs, inputs, strict=True))}
        names |= {t.name: graph.constant(onnx.numpy_helper.to_array(t)) for t in written.constants}
        results = [name for r in subgraph.results for name in names_in(graph.names[r])]
        # Behind a DequantizeLinear, the runtime would compute the operation on codes.
        guarded = [
            graph.is_dequantized(inputs) and x.dtype in (torch.float32, torch.float16) for x in instance.expected
        ]
        produced: dict[str, str] = {}
        for output, name, guard in zip(written.outputs, results, guarded, strict=True):
            produced.setdefault(output, graph.tensor_names.new(f"{name}_raw") if guard else name)
        for node in written.nodes:
            for output in filter(None, node.output):
                names[output] = produced.get(output) or graph.tensor_names.new(f"{results[0]}/{output}")
            graph.copy(node, names)
        for output, name, guard in zip(written.outputs, results, guarded, strict=True):
            if names[output] != name:
                graph.owned[name] = name
                graph.unchanged(names[output], name) if guard else graph.node("Identity", [names[output]], name)


def names_in(nested: Any) -> list[str]:
    """The names of tensors in nested tuples, lists and dicts, in order."""
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, str)]
