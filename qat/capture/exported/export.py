"""The torch.export way to a graph, for what torch.fx cannot trace: it follows one call with example inputs."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from qat.capture.exported.aten import dropout_function, to_torch
from qat.capture.exported.size_trials import holds_for
from qat.capture.exported.sizes import check_sizes_of_inputs
from qat.capture.graphs.arguments import call_arguments, called_by_name, copies, nest_inputs, take_all_arguments
from qat.capture.graphs.call_format import CallFormat
from qat.capture.graphs.in_place import overwritten, overwritten_and_read_again
from qat.capture.graphs.rewriting import erase_unused
from qat.capture.state.attributes import Attributes
from qat.capture.traced.autograd_functions import functions_that_are_called
from qat.contexts import quiet, training_mode
from qat.operations import is_label, without_labels
from qat.torch_private import (
    HigherOrderOperator,
    TreeSpec,
    size_guards,
    tree_flatten,
    tree_leaves,
    tree_map,
    tree_unflatten,
)


def exported(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[fx.Graph, CallFormat]:
    """The graph of forward in evaluation, in torch.fx's vocabulary, with the names of the model's own parameters.

    Tensors that the model does not own become buffers of it, in place. A language model is followed without its cache. All
    sizes stay free; only the batch size does if forward cuts images into windows, where torch.export would reason about free
    sizes for minutes.

    Raises:
        Exception: anything that torch.export raises.
    """
    signature = inspect.signature(model.forward)
    named = tree_map(_at_least_two, call_arguments(signature, copies(args), copies(kwargs)))
    implied = _without_cache(model, named)
    with (
        training_mode(model, False),
        torch.enable_grad(),
        quiet(("torch.export", "torch._export", "torch.fx"), drop_output=False),
        called_by_name(model, [*named, *implied], {}),
    ):
        ranks = _observed(model, named)
        free = 1 if _cuts_windows(ranks, named) else None
        dynamic = tree_map(lambda x: _free_sizes(x, free) if isinstance(x, Tensor) else None, named)
        dynamic.update(dict.fromkeys(implied))
        attributes, given = Attributes(model), (*named.values(), *implied.values())
        try:
            program = torch.export.export(model, given, dynamic_shapes=dynamic, strict=False)
        finally:
            attributes.restore()
        if _overwrites(model, program.graph):
            program = _without_overwriting(program)
    unlifted = program.module(check_guards=False)
    assert isinstance(unlifted, fx.GraphModule)
    _read_sizes_off_inputs(unlifted.graph)
    output_spec = program.call_spec.out_spec
    assert output_spec is not None
    graph = _over_the_model(model, unlifted, CallFormat.of_call({**named, **implied}, output_spec))
    example = call_arguments(signature, args, kwargs)
    check_sizes_of_inputs(graph, size_guards(program), example, holds_for(model, graph, example | implied))
    nest_inputs(graph, named)
    parameters = take_all_arguments(graph, signature, {**named, **implied}, implied)
    form = replace(CallFormat.of_call(named, output_spec), implied=tuple(implied.items()), parameters=tuple(parameters))
    return graph, replace(form, without_labels=_form_without_labels(model, graph, form, named))


def _read_sizes_off_inputs(graph: fx.Graph) -> None:
    """Read sizes of labels off the other inputs that have them, too: without a loss there are no labels.

    torch.export reads a size that several inputs share, such as the batch, off any of them.
    """
    inputs = [n for n in graph.nodes if n.op == "placeholder" and isinstance(n.meta.get("val"), Tensor)]
    labels = {n for n in inputs if is_label(str(n.target))}
    sizes = [(n, axis, str(size)) for n in inputs if n not in labels for axis, size in enumerate(n.meta["val"].shape)]
    found = {size: (n, axis) for n, axis, size in reversed(sizes)}
    for node in graph.nodes:
        if node.target is torch.ops.aten.sym_size.int and node.args[0] in labels:
            node.args = found.get(str(node.meta["val"]), node.args)


def _without_cache(model: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The argument that keeps a language model of transformers from returning its cache, which is not an output of a graph."""
    takes_it = "use_cache" in inspect.signature(model.forward).parameters and "use_cache" not in arguments
    return {"use_cache": False} if takes_it else {}


def _free_sizes(x: Tensor, count: int | None) -> list[Any]:
    """For each axis whether its size is free: the first `count` axes, or all if it is None."""
    return [torch.export.Dim.AUTO if count is None or axis < count else None for axis in range(x.ndim)]


class _RankOfViews(TorchFunctionMode):
    """Remembers the most axes that a tensor had."""

    largest = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.ndim)
        return result


def _observed(model: nn.Module, arguments: Mapping[str, Any]) -> int:
    """Run forward once, and return the most axes that one of its tensors had. Registers the dataclasses that it returns.

    Raises:
        ValueError: it calls a function whose gradient torch.export would not keep, or stores a tensor that a loss may read.
    """
    attributes = Attributes(model)
    try:
        with torch.random.fork_rng(devices=()), _RankOfViews() as ranks, functions_that_are_called() as functions:
            tree_leaves(model(*arguments.values()))
        stored = _stored_in_every_call(attributes, lambda: model(*arguments.values()))
    except Exception:  # torch.export will raise it, too
        return 0
    finally:
        attributes.restore(keep_new=False)
    if functions:
        raise ValueError(f"it would replace the gradient of {functions[0]}")
    if stored:
        raise ValueError(f"forward stores {stored[0]}, which its graph would not")
    return ranks.largest


def _stored_in_every_call(attributes: Attributes, again: Callable[[], Any]) -> list[str]:
    """Names of the attributes that forward stores for a loss, after a first call; a cache is not filled by a second one."""
    stored = attributes.stored_with_gradient()
    if stored:
        with torch.random.fork_rng(devices=()):
            again()
    now = attributes.stored_with_gradient() if stored else {}
    kept = {id(tensor) for tensors in now.values() for tensor in tensors}
    return [path for path, tensors in stored.items() if not all(id(tensor) in kept for tensor in tensors)]


def _cuts_windows(most_axes: int, arguments: Mapping[str, Any]) -> bool:
    """Whether forward cuts an image into a grid of windows or patches: (batch, rows, height, columns, width, channels)."""
    axes = max((x.ndim for x in tree_flatten(arguments)[0] if isinstance(x, Tensor)), default=0)
    return axes >= 4 and most_axes >= axes + 2


def _form_without_labels(
    model: nn.Module, graph: fx.Graph, form: CallFormat, arguments: Mapping[str, Any]
) -> CallFormat | None:
    """The format of the same call without labels; None if forward needs them, or calculates no loss of them."""
    rest = without_labels(graph)
    if rest is None:
        return None
    others = {name: value for name, value in arguments.items() if not is_label(name)}
    attributes = Attributes(model)
    try:
        try:
            with training_mode(model, False), torch.no_grad(), torch.random.fork_rng(devices=()):
                leaves, spec = tree_flatten(model(**others, **dict(form.implied)))
        finally:
            attributes.restore()
    except Exception:  # a user's forward may raise anything without its labels
        return None
    output = next(node for node in rest.nodes if node.op == "output")
    if len(tree_flatten(output.args[0])[0]) != len(leaves):
        return None
    inputs = [str(n.target) for n in rest.nodes if n.op == "placeholder"]
    parameters = tuple(p for p in form.parameters if p[0] in inputs)
    return replace(CallFormat.of_call(others, spec), implied=form.implied, parameters=parameters)


def _over_the_model(model: nn.Module, unlifted: fx.GraphModule, form: CallFormat) -> fx.Graph:
    """The graph with names of `model`, without checks of shapes and constant inputs."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    placeholder = iter(form.is_tensor)
    owned = {
        name
        for name, _ in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    }
    for node in unlifted.graph.nodes:
        if node.op == "output":
            (results,) = node.args
            flat = [copies[r] if isinstance(r, fx.Node) else r for r in tree_flatten(results)[0]]
            graph.output(tree_unflatten(flat, form.output) if is_plain(form.output) else tuple(flat))
            continue
        if node.op == "placeholder" and not next(placeholder):
            continue
        if node.op == "call_module" or isinstance(node.target, HigherOrderOperator):
            if node.op == "call_module" and not node.users:
                continue  # guards
            raise ValueError(f"it calls {node.target}, which changes the mode of gradients or branches")
        copies[node] = graph.node_copy(node, copies.__getitem__)
        stack = node.meta.get("nn_module_stack") or {}
        copies[node].meta = {
            "val": node.meta.get("val"),
            "nn_module_stack": {path: (path, kind) for path, kind in stack.values() if path},
        }
        if node.op == "get_attr" and node.target not in owned:
            copies[node].target = _as_buffer(model, _tensor_at(unlifted, str(node.target)))
    for node in graph.nodes:
        to_torch(node)
    erase_unused([n for n in reversed(graph.nodes) if n.op == "call_function" and not n.users])
    return graph


def _without_overwriting(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """A program that writes new tensors.

    torch.export makes operations functional without decomposing any, but drops dropout, which does nothing in evaluation. So
    another operation stands in for it meanwhile.
    """
    native, functions = torch.ops.aten.native_dropout.default, []
    for node in program.graph.nodes:
        if (function := dropout_function(node)) is not None:
            functions.append(function)
            with program.graph.inserting_after(node):
                first = program.graph.call_function(operator.getitem, (node, 0))
            node.replace_all_uses_with(first, delete_user_cb=lambda user, first=first: user is not first)
            first.meta = dict(node.meta)
            node.target = native
    program = program.run_decompositions({})
    found = [node for node in program.graph.nodes if node.target is native]
    for node, function in zip(found, functions, strict=True):
        node.target = function
        (first,) = node.users
        node.meta["val"] = first.meta["val"]
        first.replace_all_uses_with(node)
        program.graph.erase_node(first)
    return program


def _overwrites(model: nn.Module, graph: fx.Graph) -> bool:
    """Whether operations overwrite what is read later, under whatever name, or what only the caller or the model reads."""
    changing = [node for node in graph.nodes if overwritten(model, node) is not None]
    return not all(node.users for node in changing) or overwritten_and_read_again(model, graph) is not None


def is_plain(spec: TreeSpec) -> bool:
    """Whether the structure is of tuples, lists and dicts alone, which a graph can return."""
    return spec.is_leaf() or (spec.type in (tuple, list, dict) and all(map(is_plain, spec.children())))


def _as_buffer(model: nn.Module, tensor: Tensor) -> str:
    number = 0
    while hasattr(model, name := f"constant_of_graph_{number}"):
        number += 1
    model.register_buffer(name, tensor.detach(), persistent=False)
    return name


def _tensor_at(module: nn.Module, path: str) -> Tensor:
    owner, _, attribute = path.rpartition(".")
    found: Tensor = getattr(module.get_submodule(owner), attribute)
    return found


def _at_least_two(x: Any) -> Any:
    """A batch of one sample doubled, because torch.export takes a size of 1 for a constant."""
    return torch.cat([x, x]) if isinstance(x, Tensor) and x.ndim and len(x) == 1 else x
