"""Quantizers of layers and of other modules with weights, by the rules of a policy; and models without a graph."""

from __future__ import annotations

import warnings
from dataclasses import replace

from torch import Tensor, nn

from qat.nn import (
    channel_axis,
    is_layer,
    is_layer_of_its_own,
    layer_type,
    matrices_of,
    matrix_type,
    quantize_layer,
    quantize_matrices,
)
from qat.quantizers import Quantizer
from qat.transform.policy import Policy
from qat.transform.rule import Rule
from qat.transform.tensor_rule import TensorRule


def swap_layers(model: nn.Module, policy: Policy) -> tuple[dict[str, Rule], list[str]]:
    """Without a graph, let every layer own the quantizer of its input. In place.

    Returns:
        The rule of each layer, and sentences to show.
    """
    notes: list[str] = []
    for module in model.modules():  # torch's fused transformer layer would bypass the layers that own quantizers
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    named = {name: layer_type(m).__name__ for name, m in model.named_modules() if is_layer(m)}
    others = {name: matrix_type(m) for name, m in model.named_modules() if matrices_of(m)}
    rules = policy.assign(list(named.items()), list(others.items()))
    for name, rule in rules.items():
        layer = model.get_submodule(name)
        takes_reals = not isinstance(layer, nn.Embedding) and (name in named or is_layer_of_its_own(layer))
        input_rule = rule.input_of(type(layer)) if takes_reals else None
        input_quantizer = input_rule.build() if input_rule else None
        if name in others:
            notes += quantize_matrices_by_rule(layer, name, rule.weight, input_quantizer)
        else:
            quantize_by_rule(layer, name, rule.weight, input_quantizer)
    if not any(isinstance(m, Quantizer) for m in model.modules()):
        raise ValueError(
            "the policy quantizes no layer: the model has no Conv1d, Conv2d or Linear, or no rule matches one."
        )
    return rules, notes


def quantize_by_rule(layer: nn.Module, name: str, rule: TensorRule | None, input_quantizer: Quantizer | None) -> None:
    """Turn a float layer into a quantized one, in place.

    Args:
        layer: a convolution, a linear layer or an embedding.
        name: its name in the model, which labels the quantizers and begins an error.
        rule: that of its weight; None leaves the weight in float.
        input_quantizer: quantizer of its input; None leaves the input as it comes.

    Raises:
        ValueError: the rule does not fit the weight.
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    try:
        weight_quantizer = rule.build(tuple(weight.shape), axis=channel_axis(layer)) if rule else None
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}") from None
    for quantizer, suffix in ((weight_quantizer, "weight"), (input_quantizer, "input")):
        if quantizer is not None:
            quantizer.label = f"{name}.{suffix}"
            quantizer.to(weight.device)
    quantize_layer(layer, weight_quantizer, input_quantizer)


def quantize_matrices_by_rule(
    module: nn.Module, name: str, rule: TensorRule | None, input_quantizer: Quantizer | None = None
) -> list[str]:
    """Give each weight matrix a quantizer with one scale per row, or per group where groups divide the rows.

    Returns:
        Sentences about matrices that have other scales than the rule wants.
    """
    found: dict[str, Quantizer] = {}
    notes = []
    for key in matrices_of(module) if rule else ():
        assert rule is not None
        weight, fitting = module.get_parameter(key), rule
        if rule.group_size is not None and (elements := weight[0].numel()) % rule.group_size:
            fitting = replace(rule, granularity="per_channel", group_size=None)
            notes.append(
                f"{name}.{key} has one scale per row: its rows of {elements} are not groups of {rule.group_size}; write a "
                "group_size that divides them."
            )
        axis = channel_axis(module) if is_layer_of_its_own(module) else 0
        found[key] = fitting.build(tuple(weight.shape), axis=axis).to(weight.device)
        found[key].label = f"{name}.{key}"
    if input_quantizer is not None:
        input_quantizer.label = f"{name}.input"
        input_quantizer.to(next(module.parameters()).device)
    if found or input_quantizer is not None:
        quantize_matrices(module, found, input_quantizer)
    if notes:
        more = f" So do {len(notes) - 1} more matrices." if len(notes) > 1 else ""
        warnings.warn(f"{notes[0]}{more}", stacklevel=4)
    return notes
