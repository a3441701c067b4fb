"""torch's own exporter, quiet, and without its notes about source code."""

from __future__ import annotations

import re
from typing import Any

import onnx
import torch
from torch import nn

from qat.contexts import quiet
from qat.torch_private import one_onnx_registry

QUIET = ("root", "torch.onnx", "torch.export", "torch._export", "torch.fx.experimental.symbolic_shapes")
"""Loggers whose warnings are not for the user of a model: what is written is checked afterwards."""


def export_with_torch(model: nn.Module, arguments: tuple[Any, ...], **options: Any) -> onnx.ModelProto:
    """What `torch.onnx.export(model, arguments, dynamo=True, **options)` makes, in memory.

    torch notes at each node the lines and paths of the code that it comes from. They are removed: a file tells nothing of the
    machine that wrote it, and is the same on each.

    Raises:
        torch.onnx.errors.OnnxExporterError: torch cannot write it.
    """
    with one_onnx_registry(), quiet(QUIET):
        program = torch.onnx.export(model, arguments, dynamo=True, verbose=False, **options)
    assert program is not None
    file: onnx.ModelProto = program.model_proto
    del file.metadata_props[:]
    for function in file.functions:
        _remove_notes(function.node)
        del function.metadata_props[:]
    _remove_graph_notes(file.graph)
    return file


def complex_operation_in(error: BaseException | None) -> str:
    """The operation on complex numbers that an error of `export_with_torch` names; "" if it names none."""
    while error is not None:
        if found := re.search(r"op='aten\.(\w+)'.*complex-valued", str(error), re.DOTALL):
            return found[1]
        error = error.__cause__
    return ""


def _remove_graph_notes(graph: onnx.GraphProto) -> None:
    for noted in (graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del noted.metadata_props[:]
        noted.ClearField("doc_string")
    _remove_notes(graph.node)


def _remove_notes(nodes: Any) -> None:
    for node in nodes:
        del node.metadata_props[:]
        node.ClearField("doc_string")
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                _remove_graph_notes(graph)
