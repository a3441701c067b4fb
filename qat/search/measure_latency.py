"""Measured times of layers, for a budget of latency: each layer alone, in every format, in ONNX Runtime."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qat.arguments import check_count, check_network
from qat.capture import copy_model
from qat.integer import convert
from qat.nn import is_quantized, owning_layer
from qat.quantizers import Mode
from qat.search.begin import WIDTHS
from qat.search.budget import FLOAT, LatencyTable, checked_widths, format_name
from qat.search.costs import bits_of
from qat.search.harm import Widths
from qat.search.layers import Layer, find_layers
from qat.transform import Policy, calibrate, is_prepared, load_policy, mode, prepare
from qat.transform.batches import call_model, call_of
from qat.transform.rule import Rule


def measure_latency(
    model: nn.Module,
    policy: Policy | str | Path | Mapping[str, Any],
    batch: Any,
    *,
    weight_bits: Iterable[int] = WIDTHS,
    activation_bits: Iterable[int] = (),
    threads: int = 1,
    rounds: int = 50,
) -> LatencyTable:
    """The milliseconds of every layer in each format that `allocate` may choose, and in float.

    Each layer is cut out with the input that it gets in the network, prepared, calibrated, exported and run in ONNX Runtime on
    this machine. The files of a layer take turns, so that a busy machine slows all formats alike. A quantized layer quantizes
    its input and dequantizes its output, which layers in a row share in the network: the sum over layers is above the time of
    the network. A layer that runs several times counts as often.

        table = measure_latency(model, "w8a8", batch, weight_bits=(4, 8))
        table.write("times.yaml")
        allocation = allocate(model, "w8a8", batches, latency=0.8, latency_table=table, weight_bits=(4, 8))

    Args:
        model: in float; it is not changed.
        policy: as for `allocate`.
        batch: one batch, of the size that will be deployed.
        weight_bits: widths of weights.
        activation_bits: those of the inputs of layers; none: the policy's.
        threads: of ONNX Runtime.
        rounds: how often each file runs.

    Raises:
        ValueError: the model is prepared already, a layer cannot run alone, or widths, threads or rounds are impossible.
    """
    check_network(model)
    if is_prepared(model):
        raise ValueError("the model is prepared already: measure the layers of the float model.")
    chosen, (weights, inputs) = load_policy(policy), checked_widths(weight_bits, activation_bits)
    for name, number in (("threads", threads), ("rounds", rounds)):
        check_count(name, number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about training, and these networks are not trained
        prepared = prepare(model, chosen, call_of(model, batch).example_inputs).eval()
        layers = find_layers(prepared)
        seen = _inputs_of_layers(prepared, layers, batch)
        times, own = {}, dict(model.named_modules())
        for layer in layers:
            x, calls = seen[layer.name]
            module = prepared.get_submodule(layer.name)
            alone = owning_layer(module) if is_quantized(module) else copy_model(own[layer.name])
            found = _times(alone.eval(), chosen, layer.rule, x, _formats(layer, weights, inputs), threads, rounds)
            times[layer.name] = {name: calls * time for name, time in found.items()}
    return LatencyTable(times)


def _formats(layer: Layer, weights: tuple[int, ...], inputs: tuple[int, ...]) -> list[Widths]:
    """The widths of weight and input that can be chosen for a layer, and those of the policy."""
    weight, activation = bits_of(layer.rule.weight), bits_of(layer.rule.activation)
    of_weight = [None] if weight is None else sorted({*weights, weight})
    of_input = [None] if activation is None else sorted({*inputs, activation})
    return list(product(of_weight, of_input))


def _inputs_of_layers(prepared: nn.Module, layers: list[Layer], batch: Any) -> dict[str, tuple[Tensor, int]]:
    """Layer -> its first input in the float network, and how often it runs."""
    seen: dict[str, list[Any]] = {layer.name: [] for layer in layers}
    hooks = [
        prepared.get_submodule(name).register_forward_pre_hook(
            lambda _, args, kwargs, found=found: found.append((*args, *kwargs.values())), with_kwargs=True
        )
        for name, found in seen.items()
    ]
    try:
        with torch.no_grad(), mode(prepared, Mode.OFF):
            call_model(prepared, batch)
    finally:
        for hook in hooks:
            hook.remove()
    for name, calls in seen.items():
        if not calls or len(calls[0]) != 1 or not isinstance(calls[0][0], Tensor):
            what = "runs in no call of this batch" if not calls else "takes more than one tensor"
            raise ValueError(
                f"the time of layer {name} cannot be measured, because it {what}: write its times into the table by hand."
            )
    return {name: (calls[0][0].detach(), len(calls)) for name, calls in seen.items()}


def _times(
    layer: nn.Module, policy: Policy, rule: Rule, x: Tensor, formats: list[Widths], threads: int, rounds: int
) -> dict[str, float]:
    """Format -> milliseconds of this layer."""
    from qat.export import export_float_onnx, export_onnx, latency  # late: `allocate` does not wait for a runtime

    with tempfile.TemporaryDirectory() as folder:
        files = {FLOAT: Path(folder) / "float.onnx"}
        export_float_onnx(nn.Sequential(copy_model(layer)).eval(), x, files[FLOAT])
        for weight, activation in formats:
            if (name := format_name(weight, activation)) in files:
                continue
            own = None if rule.weight is None else replace(rule.weight, bits=weight or rule.weight.bits)
            of_input = (
                None if rule.activation is None else replace(rule.activation, bits=activation or rule.activation.bits)
            )
            alone = replace(policy, rules={"all": Rule("*", own, of_input)})
            ready = prepare(nn.Sequential(copy_model(layer)), alone, x).eval()
            calibrate(ready, [x])
            files[name] = Path(folder) / f"{name}.onnx"
            export_onnx(convert(ready), x, files[name])
        found = latency(files, x, (len(x),), rounds, threads)
    return {name: of_sizes[len(x)] for name, of_sizes in found.items()}
