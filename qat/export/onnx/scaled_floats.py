"""ONNX forms of weights in floating-point formats (`qat.quantizers.ScaledFloat`)."""

from __future__ import annotations

import numpy as np
import torch
from onnx import TensorProto, helper
from torch import Tensor, fx

from qat.export.onnx.graph_writer import GraphWriter
from qat.export.onnx.qdq_graph import QdqGraph, tensor_name
from qat.floating_point import E4M3, power_of_two_scales
from qat.granularity import PerBlock
from qat.quantizers import MX, NVFP4, FP8Static, ScaledFloat

NATIVE = {"E4M3": TensorProto.FLOAT8E4M3FN, "E5M2": TensorProto.FLOAT8E5M2}
"""The formats whose ONNX types ONNX Runtime reads; it has no kernel that reads FLOAT4E2M1, and ONNX has no type for 6 bits."""


def dequantized_floats(graph: GraphWriter, codes: Tensor, quantizer: ScaledFloat, name: str) -> str:
    """The float weight of these codes; returns its name. The runtime computes it once, when it loads the file.

    FP8 is stored in its own type, other elements as integers of 4 or 8 bits, the ranks of the values, which a table turns into
    values. E4M3 scales have their own type, E8M0 scales are bytes and a table.
    """
    granularity = quantizer.spec.granularity
    if not isinstance(granularity, PerBlock):
        view = granularity.view(codes)
        scale = granularity.broadcastable(quantizer.qparams().scale, tuple(codes.shape))
        scaled = graph.node(
            "Mul", [_values(graph, view, quantizer, name), graph.constant(scale.numpy())], f"{name}_scaled"
        )
        if view.shape == codes.shape:
            return scaled
        return graph.node("Reshape", [scaled, _sizes(graph, codes.shape)], name)
    rows = granularity.rows(codes)  # one block each, the axis of the blocks last
    moved = codes.movedim(granularity.axis, -1)
    scaled = graph.node(
        "Mul", [_values(graph, rows, quantizer, name), _scales(graph, quantizer, name)], f"{name}_scaled"
    )
    whole = graph.node("Reshape", [scaled, _sizes(graph, (*moved.shape[:-1], -1))], f"{name}_rows")
    if rows.numel() > codes.numel():
        ends = [_sizes(graph, [n]) for n in (0, moved.shape[-1], -1)]
        whole = graph.node("Slice", [whole, *ends], f"{name}_cut")
    if granularity.axis in (-1, codes.ndim - 1):
        return whole
    back = torch.arange(codes.ndim - 1).tolist()
    back.insert(granularity.axis, codes.ndim - 1)
    return graph.node("Transpose", [whole], name, perm=back)


def _values(graph: GraphWriter, codes: Tensor, quantizer: ScaledFloat, name: str) -> str:
    """The values of codes, without their scales."""
    element = quantizer.format
    if quantizer.element in NATIVE and graph.packs_weights:
        bits = element.bit_patterns(codes).numpy()
        return _cast(graph, bits.tobytes(), codes.shape, NATIVE[quantizer.element], f"{name}_codes")
    stored = graph.stored_weight(codes.to(torch.int8).numpy(), f"{name}_codes", TensorProto.INT32)
    highest = element.highest_code
    ranks = graph.node("Add", [stored, graph.constant(np.array(highest, dtype=np.int32))], f"{name}_ranks")
    table = element.values(torch.arange(-highest, highest + 1))
    return graph.node("Gather", [graph.constant(table.numpy()), ranks], f"{name}_values")


def _scales(graph: GraphWriter, quantizer: ScaledFloat, name: str) -> str:
    """The scales of blocks: (blocks, 1)."""
    if isinstance(quantizer, MX):
        exponents = graph.constant(quantizer.shared_exponent[:, None].numpy())
        index = graph.node("Cast", [exponents], f"{name}_exponents", to=TensorProto.INT32)
        table = power_of_two_scales(torch.arange(255, dtype=torch.uint8))
        return graph.node("Gather", [graph.constant(table.numpy()), index], f"{name}_scales")
    assert isinstance(quantizer, NVFP4)
    stored = quantizer.block_scale[:, None]
    if graph.packs_weights:
        blocks = _cast(graph, stored.numpy().tobytes(), stored.shape, NATIVE["E4M3"], f"{name}_block_scales")
    else:
        blocks = graph.constant(E4M3.values(stored.float()).numpy())
    return graph.node("Mul", [blocks, graph.constant(quantizer.tensor_scale.numpy())], f"{name}_scales")


def _cast(graph: GraphWriter, content: bytes, shape: torch.Size, kind: int, name: str) -> str:
    stored = graph.unique(f"{name}_stored")
    graph.constants.append(helper.make_tensor(stored, kind, shape, content, raw=True))
    return graph.node("Cast", [stored], name, to=TensorProto.FLOAT)


def _sizes(graph: GraphWriter, shape: tuple[int, ...] | torch.Size | list[int]) -> str:
    return graph.constant(np.array(shape, dtype=np.int64))


def write_static_floats(graph: QdqGraph, node: fx.Node, quantizer: FP8Static) -> str:
    """The input of a layer in FP8 with a calibrated scale: QuantizeLinear and DequantizeLinear of ONNX's own type.

    Raises:
        ValueError: the target has no FP8 types.
    """
    name = tensor_name(node)
    if not graph.packs_weights:
        raise ValueError(
            f"{name} is {quantizer.format_name}, a type that this target lacks: write target='onnxruntime'."
        )
    real_scale = quantizer.qparams().scale.reshape(())
    largest = graph.constant((real_scale * quantizer.format.largest).numpy())
    # QuantizeLinear saturates, too. But ONNX Runtime drops a Relu or Clip right before it, as if the type had no sign.
    real = graph.node("Min", [graph.input(node), largest], f"{name}_saturated")
    scale = graph.constant(real_scale.numpy())
    zero = graph.unique(f"{name}_zero")
    graph.constants.append(helper.make_tensor(zero, NATIVE[quantizer.element], (), b"\0", raw=True))
    codes = graph.node("QuantizeLinear", [real, scale, zero], f"{name}_codes", saturate=1)
    return graph.node("DequantizeLinear", [codes, scale, zero], name)


def refuse_input(graph: QdqGraph, node: fx.Node, quantizer: ScaledFloat) -> str:
    """Inputs of layers in floating-point formats have no ONNX form.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"{tensor_name(node)} is quantized to {quantizer.format_name} in every call, for which ONNX Runtime has no kernel: "
        "keep this network as a packed folder (qat.save_quantized), or prepare it with weights alone in this format (policy "
        "nvfp4_weights, mxfp4_weights, fp8_weights, ...)."
    )
