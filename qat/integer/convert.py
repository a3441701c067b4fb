"""From a prepared, calibrated model to its integer model."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from qat.capture import CaptureError, call_arguments, capture, copy_model, is_plain, stop_following
from qat.integer.convert_layer import weight_only
from qat.integer.graph_converter import GraphConverter
from qat.integer.integer_model import IntegerModel
from qat.integer.order import fix_order
from qat.nn import quantized_weights, with_replaced
from qat.operations import is_fixed, without_labels
from qat.quantizers import Quantizer
from qat.quantizers.own_classes import check_own_class
from qat.transform.batches import is_usable
from qat.transform.example import arguments_of, zeros_like_example
from qat.transform.mode import quantizers
from qat.transform.policy_record import plain_data
from qat.transform.record import LAYERS, record_of


def convert(model: nn.Module) -> nn.Module:
    """Make the integer model of a prepared model. The given model is not changed.

    Quantized segments become integer modules: uint8 activations, int8 weight codes, int32 bias, BatchNorm absorbed, one
    float32 multiplier per output channel. What `prepare` left in float stays float. Layers quantized per group or in their
    weight alone keep integer weights and compute in float. Layers with dynamic inputs multiply integers and return float.
    A loss that forward calculates from labels is left out, and labels are ignored. A model that has no graph gets weight-only
    layers, and its input quantizers stay as they are.

    Args:
        model: a prepared model whose quantizers all have a range.

    Returns:
        An `IntegerModel`, or a plain module if the model has no graph.

    Raises:
        ValueError: the model is not prepared, a quantizer has no range yet, a weight is not finite, or a layer has no integer
            form, or a quantizer class of your own rounds otherwise than it says.
    """
    return _converted(model, with_loss=False)


def convert_with_loss(model: nn.Module) -> nn.Module:
    """`convert`, but with the loss that forward calculates from labels, in float, for validation."""
    return _converted(model, with_loss=True)


def _converted(model: nn.Module, with_loss: bool) -> nn.Module:
    _check_ready(model)
    source = copy_model(model).eval().float()  # the artefact is float32, also that of a half or double model
    for quantizer, weight in _quantizers_with_weights(source):
        check_own_class(quantizer, weight)
    try:
        captured = capture(source)
    except CaptureError:
        return with_weight_only_layers(source)
    if not _serves_its_example(model, captured.graph):
        return with_weight_only_layers(copy_model(model).eval().float())
    graph, form = captured.graph, captured.form
    if not with_loss and (deployed := without_labels(graph)) is not None:
        graph, form = deployed, None if form is None else form.without_labels
    stop_following(source, graph)
    _compute_in_float32(graph, {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32})
    fix_order(source, graph)
    with torch.no_grad():
        integer = GraphConverter(source, graph).convert()
    integer.result = None if form is None or is_plain(form.output) else form.output
    integer.left_out = tuple(name for name in _inputs(captured.graph) if name not in _inputs(graph))
    record = record_of(model)
    integer.policy = None if record is None else plain_data(record.policy)
    return integer


def _serves_its_example(model: nn.Module, graph: fx.Graph) -> bool:
    """Whether the graph of a model that was prepared layer by layer has the optional arguments of its example inputs."""
    record = record_of(model)
    if record is None or record.way != LAYERS or record.example is None:
        return True
    args, kwargs = arguments_of(zeros_like_example(record.example))
    given = call_arguments(inspect.signature(model.forward), args, kwargs)
    optional = [node for node in graph.nodes if node.op == "placeholder" and node.args and is_fixed(node)]
    return all(node.args[0] is not None or given.get(str(node.target)) is None for node in optional)


_CASTS = {"double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16}


def _compute_in_float32(graph: fx.Graph, dtypes: set[torch.dtype]) -> None:
    """Let a graph cast to float32 where it casts to one of these dtypes, in place."""

    def as_float32(leaf: Any) -> Any:
        return torch.float32 if isinstance(leaf, torch.dtype) and leaf in dtypes else leaf

    for node in graph.nodes if dtypes else ():
        if node.op == "call_method" and _CASTS.get(str(node.target)) in dtypes:
            node.target = "float"
        node.args, node.kwargs = map_aggregate(node.args, as_float32), map_aggregate(node.kwargs, as_float32)


def _inputs(graph: fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op == "placeholder"]


def _check_ready(model: nn.Module) -> None:
    if isinstance(model, IntegerModel):
        raise ValueError("the model is an integer model already: pass what qat.prepare returned.")
    model_quantizers = quantizers(model)
    if not model_quantizers:
        raise ValueError(
            "the model has no quantizers: call qat.prepare(model, policy) and calibrate or train it first."
        )
    for name, quantizer in model_quantizers.items():
        if not quantizer.ready:
            raise ValueError(
                f"quantizer {name!r} has no range yet: call qat.calibrate(model, batches) before qat.convert."
            )
    statistics = [pair for pair in model.named_buffers() if pair[0].endswith(("running_mean", "running_var"))]
    for name, tensor in [*model.named_parameters(), *statistics]:
        if tensor.is_floating_point() and tensor.numel() and not bool(is_usable(tensor.detach())):
            raise ValueError(
                f"{name!r} is not finite: its training diverged; lower the learning rate, or look for NaN in the loss and in "
                "the data."
            )


def _quantizers_with_weights(model: nn.Module) -> list[tuple[Quantizer, Tensor | None]]:
    """Each quantizer with the weight that it quantizes; None: activations."""
    weights = {found.quantizer: found.weight for module in model.modules() for found in quantized_weights(module)}
    return [(quantizer, weights.get(quantizer)) for quantizer in quantizers(model).values()]


def with_weight_only_layers(model: nn.Module) -> nn.Module:
    """The model with its quantized weights as codes, changed in place; input quantizers keep rounding."""
    return with_replaced(
        model, {module: weight_only(module) for module in model.modules() if quantized_weights(module)}
    )
