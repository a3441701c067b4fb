"""A program of torch.export as a module that can be captured again, quantized and trained."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.export import ExportedProgram

from qat.capture.exported.aten import to_torch
from qat.capture.exported.export import is_plain
from qat.capture.graphs.rewriting import owner_of
from qat.torch_private import tree_flatten, tree_unflatten

_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
"""Number of axes of the input -> the module."""


def module_of_program(program: ExportedProgram) -> fx.GraphModule:
    """The program in torch.fx's vocabulary, without its checks of shapes; BatchNorms are modules again, in evaluation.

    Its forward takes the tensors of the program's inputs in their order.
    """
    unlifted: Any = program.module(check_guards=False)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in unlifted.graph.nodes:
        if node.op == "call_module" and not node.users:
            continue  # guards
        if node.op == "output":
            graph.output(_structured(program, [copies[leaf] for leaf in tree_flatten(node.args[0])[0]]))
            continue
        copies[node] = graph.node_copy(node, copies.__getitem__)
        copies[node].meta = {"val": node.meta.get("val")}
        to_torch(copies[node])
    result = fx.GraphModule(unlifted, graph)
    for node in graph.nodes:
        if node.target is F.batch_norm:
            _as_module(result, node)
    graph.eliminate_dead_code()
    graph.lint()
    result.recompile()
    return result


def _structured(program: ExportedProgram, results: list[fx.Node]) -> Any:
    """Results in the structure that the program returned; a tuple if that has classes that a graph cannot return."""
    spec = program.call_spec.out_spec
    return tree_unflatten(results, spec) if spec is not None and is_plain(spec) else tuple(results)


def _as_module(model: fx.GraphModule, node: fx.Node) -> None:
    """Replace a call of F.batch_norm by the module that owns its statistics."""
    bound = inspect.signature(F.batch_norm).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    given = bound.arguments
    name, value = owner_of(given["running_mean"]), given["input"].meta.get("val")
    if name is None or value is None or given["training"]:
        return
    owner = model.get_submodule(name)
    mean: torch.Tensor = owner.get_buffer("running_mean")
    affine = given["weight"] is not None
    norm = _BATCH_NORMS[value.ndim](len(mean), eps=given["eps"], momentum=given["momentum"], affine=affine).eval()
    norm.load_state_dict({**norm.state_dict(), **owner.state_dict()})
    model.set_submodule(name, norm)
    with model.graph.inserting_before(node):
        call = model.graph.call_module(name, (given["input"],))
    call.meta = node.meta
    node.replace_all_uses_with(call)
    model.graph.erase_node(node)
