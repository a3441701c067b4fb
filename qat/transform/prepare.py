"""Insert quantizers: structure only, no values."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from qat.arguments import check_flag, check_network
from qat.capture import (
    Captured,
    CaptureError,
    StatefulError,
    capture,
    copies,
    copy_model,
    implied_arguments,
    make_out_of_place,
    needs_example_inputs,
    works_in_place,
)
from qat.contexts import same_attention, training_mode
from qat.messages import type_of
from qat.nn import is_layer
from qat.operations import CHECKS, call_of
from qat.quantizers import Mode, Quantizer
from qat.structure import describe_architecture
from qat.torch_private import tree_leaves
from qat.transform.check_model import check_model
from qat.transform.example import Example, LazyExample, arguments_of, describe_example
from qat.transform.inspect import weights_in_float
from qat.transform.labels import check_labels, sentences_on_labels
from qat.transform.layers import quantize_by_rule, quantize_matrices_by_rule, swap_layers
from qat.transform.mode import mode
from qat.transform.multiply_adds import count_multiply_adds
from qat.transform.plan import Plan, Site, plan
from qat.transform.policy import Policy
from qat.transform.presets import load_policy
from qat.transform.record import LAYERS, PreparedRecord, record_of, write_record


def prepare(
    model: nn.Module,
    policy: Policy | str,
    example_inputs: Example | None = None,
    target: str | None = None,
    inplace: bool = False,
) -> nn.Module:
    """A copy of `model` with quantizers where `policy` wants them. The model handed in is not changed, unless `inplace`.

    The graph is captured with torch.fx or, if that fails and there are example inputs, with torch.export. A model that
    neither can trace gets quantized layers that own an input quantizer instead. `qat.inspect(prepared)` says which and why.
    Every float parameter keeps its name. BatchNorm stays a module. The new quantizers have no range yet: call
    `qat.calibrate(prepared, batches)` next.

    Args:
        model: any module.
        policy: a Policy, the name of a preset or the path of a YAML file.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments. With it, the copy runs once in float
            and must return exactly what the model returns.
        target: what the file is for, "tensorrt" or another of `qat.export.TARGETS`; None: as the policy says.
        inplace: change `model` itself and return it, because a copy of a large model needs its memory once more. An error may
            leave it changed in part.

    Raises:
        ValueError: the model is compiled, scripted or has weights without a size, a rule matches no layer, nothing can be
            quantized, the target cannot run a rule, the model cannot run on the example inputs, or the copy computes something
            else.
    """
    if not isinstance(example_inputs, Tensor | tuple | dict | None):
        raise ValueError(
            f"example_inputs is {type_of(example_inputs)}: write a tensor, a tuple of forward's arguments in order, or "
            "a dict of keyword arguments."
        )
    check_model(model)
    check_flag("inplace", inplace)
    given = load_policy(policy) if target is None else load_policy(policy, target=target)
    prepared_before = is_prepared(model)
    copied = copy_model(model, share_parameters=inplace)
    original, prepared = (copied, model) if inplace else (model, copied)
    exact = prepare_(prepared, given, example_inputs)
    if example_inputs is not None and not prepared_before:
        _check_same(original, prepared, example_inputs, exact)
        count_multiply_adds(prepared, *arguments_of(example_inputs))
    return prepared


def prepare_(model: nn.Module, policy: Policy, example_inputs: Example | LazyExample | None = None) -> bool:
    """`prepare`, in place. A model that is already prepared with this policy is left as it is.

    example_inputs: as for `prepare`, or a function that makes them and is called only if torch.fx does not suffice. A graph
    of torch.fx has only the arguments without a default.

    Returns:
        Whether the copy computes to the bit, with quantizers off, what the float model computes.
    """
    exact = True
    check_model(model)
    if is_prepared(model):
        record = record_of(model)
        if record is not None and record.policy != policy:
            raise ValueError(
                f"the model is already prepared with policy {record.policy.name!r}, not {policy.name!r}: prepare the float "
                "model."
            )
        return exact
    training, architecture = model.training, describe_architecture(model)
    captured, example = _captured(model, example_inputs)
    if isinstance(captured, CaptureError):
        way, reason = LAYERS, str(captured)
        rules, notes = swap_layers(model, policy)
        float_edges = ["everything between layers"]
        notes = ["layers own their input quantizers.", *notes]
    else:
        way, reason, exact, differs = captured.way, captured.reason, captured.exact, captured.differs_in_training
        check_labels(model, captured.graph)
        planned = plan(model, captured.graph, policy)
        rules = planned.layers
        float_edges = planned.float_edges
        notes = [*_insert_quantizers(model, captured, planned), *sentences_on_labels(captured.graph)]
        if captured.only_in_training:
            notes.append(f"{', '.join(captured.only_in_training)}: run in training alone, in float; no file has them.")
        said = [differs, _in_no_file(model, captured.graph)]
        for sentence in filter(None, said):
            notes.append(sentence)
            warnings.warn(sentence, stacklevel=2)
    notes += weights_in_float(model)
    description = None if example is None else describe_example(example)
    write_record(
        model,
        PreparedRecord(policy, float_edges, notes, way, description, reason, {}, training, architecture, rules),
    )
    return exact


def is_prepared(model: nn.Module) -> bool:
    """Whether the model has quantizers.

    Raises:
        ValueError: it is not a network.
    """
    check_network(model)
    return any(isinstance(m, Quantizer) for m in model.modules())


def _captured(
    model: nn.Module, example: Example | LazyExample | None
) -> tuple[Captured | CaptureError, Example | None]:
    """The graph, or why there is none; and the example inputs, if they were needed."""
    if callable(example):
        if not needs_example_inputs(model):
            try:
                return capture(model), None
            except StatefulError as reason:
                return reason, None
            except CaptureError:
                pass
        example = example()
    try:
        return capture(model, *arguments_of(example)), example
    except CaptureError as reason:
        return reason, example


def _in_no_file(model: nn.Module, graph: fx.Graph) -> str:
    """A sentence about a convolution with groups for each sample and weights made of the input: no file can hold it; or ""."""
    calls = {node: call_of(model, node) for node in graph.nodes if node.op == "call_function"}
    found = [n.name for n, c in calls.items() if "conv" in c.name and isinstance(c.get("groups"), fx.Node)]
    if not found:
        return ""
    return (
        f"{found[0]} has groups of channels for each sample, with weights that are made of the input: no file can hold it; "
        "write it as F.unfold and a product, or add up convolutions with the weights of each expert."
    )


def _insert_quantizers(model: nn.Module, captured: Captured, planned: Plan) -> list[str]:
    """Quantize the layers of `model`, and rewrite its graph and its forward with the planned sites. In place.

    Returns:
        Sentences to show.
    """
    notes: list[str] = []
    if hasattr(model, "sites"):
        raise ValueError(f"{type(model).__name__} has an attribute 'sites', where its quantizers would go: rename it.")
    used = {str(n.target).partition(".")[0] for n in captured.graph.nodes if n.op in ("call_module", "get_attr")}
    if taken := sorted(used & {*dir(fx.GraphModule(nn.Module(), fx.Graph()))} - {*dir(nn.Module())}):
        raise ValueError(f"{type(model).__name__} has an attribute {taken[0]!r}, which torch.fx has, too: rename it.")
    for name, rule in planned.layers.items():
        module = model.get_submodule(name)
        if is_layer(module):
            quantize_by_rule(module, name, rule.weight, None)
        else:
            notes += quantize_matrices_by_rule(module, name, rule.weight)
    sites = nn.ModuleDict()
    model.add_module("sites", sites)
    for site in planned.sites:
        quantizer = site.rule.build(signed=site.signed)
        quantizer.label = site.name
        quantizer.fuses_relu = _replaces_relu(site, quantizer)
        if (parameter := next(model.parameters(), None)) is not None:
            quantizer.to(parameter.device)
        sites[site.name] = quantizer
    _insert_calls(model, captured.graph, planned.sites)
    captured.graph.lint()
    captured.install(model)
    return notes


def _insert_calls(model: nn.Module, graph: fx.Graph, sites: Sequence[Site]) -> None:
    """Call the quantizer of each site in the graph, and let the consumers read its output."""
    # A requantization reads its tensor after the 8-bit site, so it is placed first and rewired with the other users.
    for site in sorted(sites, key=lambda site: not site.consumers):
        with graph.inserting_after(site.node):
            call = graph.call_module(f"sites.{site.name}", (site.node,))
        if site.consumers:
            for consumer in site.consumers:
                consumer.replace_input_with(site.node, call)
        else:
            for user in [u for u in site.node.users if u is not call and u.target not in CHECKS]:
                user.replace_input_with(site.node, call)
        for user in list(call.users):
            if user.all_input_nodes[0] is call and works_in_place(model, user):
                make_out_of_place(model, user)  # a site needs its output for its gradient
        if model.get_submodule(f"sites.{site.name}").fuses_relu:
            call.replace_input_with(site.node, site.node.all_input_nodes[0])
            graph.erase_node(site.node)


def _replaces_relu(site: Site, quantizer: Quantizer) -> bool:
    """Whether the quantizer clips as the ReLU before it does, which saves a pass over the tensor and its memory."""
    return site.behind_relu and not site.consumers and quantizer.spec.symmetric and not quantizer.spec.grid.signed


def _check_same(model: nn.Module, prepared: nn.Module, example: Example, exact: bool) -> None:
    """Check that the prepared copy, with quantizers off, computes what the model computes."""
    args, kwargs = arguments_of(example)
    kwargs = {**implied_arguments(prepared), **kwargs}
    expected = _leaves_of_the_float_model(model, args, kwargs)
    with _as_in_a_graph(prepared), mode(prepared, Mode.OFF):
        found = tree_leaves(prepared(*copies(args), **copies(kwargs)))
    if len(expected) == len(found) and all(map(_same if exact else _close, expected, found)):
        return
    if not all(map(_same, expected, _leaves_of_the_float_model(model, args, kwargs))):
        raise ValueError(
            f"{type(model).__name__} returns something else each time it gets the same example inputs, in evaluation, too: let "
            "what is random, as F.dropout(x, p), follow self.training, as F.dropout(x, p, self.training)."
        )
    raise ValueError(
        f"the captured graph of {type(model).__name__} does not compute what its forward computes on the example inputs: "
        "its forward depends on values; move such branches out of forward, or prepare its submodules one by one."
    )


def _leaves_of_the_float_model(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    try:
        with _as_in_a_graph(model):
            return tree_leaves(model(*copies(args), **copies(kwargs)))
    except Exception as error:
        said = str(error).partition("\n")[0]
        raise ValueError(
            f"{type(model).__name__} itself cannot run on the example inputs ({said}): write them as its forward is called."
        ) from error


@contextmanager
def _as_in_a_graph(model: nn.Module) -> Iterator[None]:
    with torch.no_grad(), training_mode(model, False), same_attention():
        yield


def _same(a: Any, b: Any) -> bool:
    """Whether two results are equal, NaN included. Opaque objects (a language model's cache) of one type count as equal."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and (torch.equal(a, b) or (a.shape == b.shape and _same_but_for_nan(a, b)))
    return type(a) is type(b) and (a == b or not isinstance(a, bool | int | float | complex | str))


def _same_but_for_nan(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a[~a.isnan()], b[~b.isnan()])


def _close(a: Any, b: Any) -> bool:
    """Whether two results are equal up to the order of sums."""
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.is_floating_point():
        scale = float(a.detach().abs().nan_to_num(0, 0, 0).amax()) if a.numel() else 0.0
        return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)
    return _same(a, b)
