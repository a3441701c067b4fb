"""Layers and other modules whose weights are stored as codes and whose arithmetic is float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qat.fixed_dtypes import FixedDtypes
from qat.granularity import PerBlock
from qat.nn import as_quantized, compute_with
from qat.quantizers import ScaledFloat


def of_wrapped(wrapper: nn.Module, name: str, wrapped: str, own: Callable[[str], Any]) -> Any:
    """The attribute `name` of a module, or of its submodule `wrapped` if it has none. own: finds attributes of the module."""
    parts = (vars(wrapper).get(kind, ()) for kind in ("_buffers", "_modules", "_parameters"))
    is_own = name == wrapped or name.startswith("__") or any(name in part for part in parts)
    return own(name) if is_own else getattr(own(wrapped), name)


class StoredWeight(FixedDtypes):
    """A weight as codes.

    Args:
        codes: weight codes; stored as int8, or as uint8 if none is negative.
        scale: one per channel or group; broadcasts against `view`. Stored as float32.
        zero_point: likewise.
        view: shape of the weight in which scale and zero_point broadcast.
        bits: how many bits the codes need.
        scaled_float: the quantizer of the codes, if their values are not multiples of a scale; it then has the scales, in the
            bits of its format, and `scale` and `zero_point` are ignored.
    """

    weight_scale: Tensor
    weight_zero_point: Tensor
    scaled_float: ScaledFloat | None

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        view: torch.Size,
        bits: int,
        scaled_float: ScaledFloat | None = None,
    ) -> None:
        super().__init__()
        self.view, self.weight_bits = view, bits
        self.register_buffer("weight", codes.to(torch.int8 if int(codes.min()) < 0 else torch.uint8))
        self.register_module("scaled_float", scaled_float)
        if scaled_float is None:
            self.register_buffer("weight_scale", scale.float())
            self.register_buffer("weight_zero_point", zero_point)

    @property
    def codes(self) -> Tensor:
        """The weight codes, in the shape of the layer's weight; the buffer `weight`."""
        codes = self._buffers["weight"]
        assert codes is not None
        return codes

    def in_blocks(self) -> Tensor:
        """The codes as a file stores them: a row for each block if blocks share scales, otherwise in the shape `view`."""
        if self.scaled_float is not None and isinstance(granularity := self.scaled_float.spec.granularity, PerBlock):
            return granularity.rows(self.codes)
        return self.codes.reshape(self.view)

    def dequantized(self) -> Tensor:
        """The float weight, in the shape of the layer's weight."""
        if self.scaled_float is not None:
            return self.scaled_float.dequantize(self.codes.float())
        codes = self.codes.reshape(self.view).float()
        return ((codes - self.weight_zero_point) * self.weight_scale).reshape(self.codes.shape)


class WeightOnlyLayer(StoredWeight):
    """A layer whose weight is stored as codes and whose arithmetic is float32: weight-only and per-group quantization.

    Args:
        layer: the float layer; its own weight is not used.
        stored: the arguments of `StoredWeight`.
    """

    def __init__(self, layer: nn.Module, *stored: Any) -> None:
        super().__init__(*stored)
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        """`weight` is the float weight; attributes that this module does not have are those of the layer."""
        if name == "weight" and "weight" in self._buffers:
            return self.dequantized()
        own = super().__getattr__
        return own(name) if name.endswith("quantizer") else of_wrapped(self, name, "layer", own)

    def forward(self, input: Tensor, *others: Any, **named: Any) -> Tensor:
        layer = as_quantized(self.layer)
        x = input.float() if input.is_floating_point() else input  # half and double networks pass their own dtype
        x = x if layer.input_quantizer is None else layer.input_quantizer(x)
        return layer.compute(x, self.dequantized(), *others, **named)


class StoredMatrix(StoredWeight):
    """One matrix of a module, as codes; forward returns it as float32. label: its name in the model."""

    def __init__(self, label: str, *stored: Any) -> None:
        super().__init__(*stored)
        self.label = label

    def forward(self) -> Tensor:
        return self.dequantized()


class WeightOnlyModule(FixedDtypes):
    """A module with matrices (`qat.nn.MATRICES`) that are stored as codes; its arithmetic is float32.

    Args:
        module: the module without its matrices (`drop_matrices`).
        stored: name of a matrix -> its codes; empty if every call is given the matrices.
    """

    def __init__(self, module: nn.Module, stored: Mapping[str, StoredMatrix]) -> None:
        super().__init__()
        self.module, self.matrices = module, tuple(stored)
        self.stored = nn.ModuleList(stored.values())

    def __getattr__(self, name: str) -> Any:
        """Attributes that this module does not have are those of the wrapped one: callers read its options (`batch_first`)."""
        return of_wrapped(self, name, "module", super().__getattr__)

    def forward(self, *args: Any, given: Mapping[str, Tensor] | None = None, **kwargs: Any) -> Any:
        """given: the matrices by name, in place of the stored ones."""
        weights = (
            dict(zip(self.matrices, (weight() for weight in self.stored), strict=True)) if given is None else given
        )
        return compute_with(self.module, weights, *args, **kwargs)


def stored_weights(model: nn.Module) -> dict[str, tuple[str, StoredWeight]]:
    """All weights whose layers compute in float: name of the codes in a file -> (name in the model, weight)."""
    return {
        name if isinstance(m, StoredMatrix) else f"{name}_weight": (
            m.label if isinstance(m, StoredMatrix) else f"{name}.weight",
            m,
        )
        for name, m in model.named_modules()
        if isinstance(m, StoredWeight)
    }
