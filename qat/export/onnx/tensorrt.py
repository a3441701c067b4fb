"""ONNX as TensorRT wants it: int8 codes with zero-points of 0, nothing but floats between them.

TensorRT's rules for explicit quantization (developer guide, "Working with quantized types"): zero-points are 0 and nothing is
uint8; a QuantizeLinear is read by DequantizeLinear alone; ReLU stands before QuantizeLinear, with which it is fused into the
layer before it; biases are floats; both inputs of a residual add are dequantized. Codes are those of the integer model less its
zero-point.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from qat.export.onnx.portable import Rewriter
from qat.integer import Encoding


def make_tensorrt(model: onnx.ModelProto, encodings: Mapping[str, Encoding]) -> None:
    """Rewrite a file in the dialect of ONNX Runtime, in place. Names of sites, inputs and outputs stay.

    Args:
        model: the file.
        encodings: of the codes of its sites, by the names of their tensors.

    Raises:
        ValueError: a site has codes that do not fit int8 with a zero-point of 0: the network was not prepared for this target.
    """
    rewriter = _Signed(model, encodings)
    rewriter.wrap_moves()
    rewriter.read_codes_as_floats()
    rewriter.bound_before_quantizing()
    rewriter.make_signed()
    rewriter.make_biases_float()
    rewriter.write_zero_points()
    rewriter.finish()


class _Signed(Rewriter):
    def read_codes_as_floats(self) -> None:
        """Let what computes with codes as numbers (an index, a sum) read them from the dequantized value.

        code = rint(value / scale) + zero-point, which is exact. Codes that are computed as numbers, or looked up in a table,
        become floats that are quantized.
        """
        nodes: list[onnx.NodeProto] = []
        for node in self.graph.node:
            codes = node.input[0] if node.input else ""
            if node.op_type == "Cast" and codes in self.grids:
                nodes += self._number(node, codes)
            elif node.op_type == "Cast" and node.output[0] in self.grids:
                nodes += self._counted(node)
            elif node.op_type == "Gather" and codes in self.constants and node.output[0] in self.grids:
                nodes += self._looked_up(node)
            else:
                nodes.append(node)
        self.replace(nodes)

    def _number(self, node: onnx.NodeProto, codes: str) -> Iterator[onnx.NodeProto]:
        """A Cast of codes to numbers: of the numbers computed from the dequantized value."""
        scale, zero_point = self.grids[codes]
        names = [self.names.new(f"{codes}_{part}") for part in ("value", "steps", "whole", "number")]
        shift = self.constant(self.value(zero_point).astype(np.float32), f"{codes}_shift")
        yield helper.make_node("DequantizeLinear", [codes, scale, zero_point], [names[0]], names[0])
        yield helper.make_node("Div", [names[0], scale], [names[1]], names[1])
        yield helper.make_node("Round", [names[1]], [names[2]], names[2])
        yield helper.make_node("Add", [names[2], shift], [names[3]], names[3])
        node.input[0] = names[3]
        yield node

    def _counted(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """A Cast of computed numbers to codes: their values, quantized."""
        codes, (scale, zero_point) = node.output[0], self.grids[node.output[0]]
        names = [self.names.new(f"{codes}_{part}") for part in ("centred", "value")]
        shift = self.constant(self.value(zero_point).astype(np.float32), f"{codes}_shift")
        self.on_grid.add(codes)
        yield helper.make_node("Sub", [node.input[0], shift], [names[0]], names[0])
        yield helper.make_node("Mul", [names[0], scale], [names[1]], names[1])
        yield helper.make_node("QuantizeLinear", [names[1], scale, zero_point], [codes], codes)

    def _looked_up(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """A table of codes: a table of their values, quantized."""
        codes, grid = node.output[0], self.grids[node.output[0]]
        node.input[0] = self.constant(self.real(node.input[0], grid), f"{codes}_table")
        node.output[0] = node.name = self.names.new(f"{codes}_value")
        self.on_grid.add(codes)
        yield node
        yield helper.make_node("QuantizeLinear", [node.output[0], *grid], [codes], codes)

    def bound_before_quantizing(self) -> None:
        """QuantizeLinear - DequantizeLinear - Clip - QuantizeLinear becomes Relu, or Clip, and one QuantizeLinear."""
        producers = {name: node for node in self.graph.node for name in node.output}
        readers: dict[str, int] = {}
        for name in (name for node in self.graph.node for name in node.input):
            readers[name] = readers.get(name, 0) + 1
        gone: set[str] = set()
        for clip in self.graph.node:
            dequantize = producers.get(clip.input[0]) if clip.op_type == "Clip" else None
            if dequantize is None or dequantize.op_type != "DequantizeLinear":
                continue
            quantize = producers.get(dequantize.input[0])
            if quantize is None or quantize.op_type != "QuantizeLinear" or readers[quantize.output[0]] != 1:
                continue
            gone |= {quantize.name, dequantize.name}
            clip.input[0] = quantize.input[0]
            scale, zero_point = (self.value(name) for name in quantize.input[1:])
            lowest, highest = (np.rint(self.value(bound) / scale) for bound in clip.input[1:])
            if lowest == 0 and highest >= 127 and zero_point == 128:
                clip.op_type = "Relu"
                del clip.input[1:]
        self.replace([node for node in self.graph.node if node.name not in gone])

    def make_signed(self) -> None:
        """Subtract the zero-points of activations.

        Raises:
            ValueError: codes do not fit int8 then.
        """
        bounded = {name for node in self.graph.node if node.op_type == "Clip" for name in node.output}
        zeros = {}
        for node in self.graph.node:
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 3:
                continue
            name = node.input[2]
            if name not in self.constants or self.constants[name].data_type != TensorProto.UINT8:
                continue
            shift, saturates = int(self.value(name)), node.op_type == "QuantizeLinear"
            if saturates and shift != 128 and node.output[0] not in self.on_grid and node.input[0] not in bounded:
                raise ValueError(
                    f"{node.output[0]!r} has codes from {-shift} to {255 - shift}, which do not fit int8: prepare the network "
                    'for its target, qat.prepare(model, policy, target="tensorrt").'
                )
            if name not in zeros:
                zeros[name] = self.constant(np.array(0, dtype=np.int8), f"{name}_int8")
            node.input[2] = zeros[name]

    def make_biases_float(self) -> None:
        """Biases as floats: codes times scale, rounded once."""
        for node in list(self.graph.node):
            if node.op_type == "DequantizeLinear" and node.input[0] in self.constants:
                codes = self.value(node.input[0])
                if codes.dtype == np.int32:
                    real = codes.astype(np.float64) * self.value(node.input[1])
                    name = self.constant(real.astype(np.float32), f"{node.output[0]}_float")
                    for reader in self.graph.node:
                        reader.input[:] = [name if i == node.output[0] else i for i in reader.input]
                    self.graph.node.remove(node)
