"""How one tensor is quantized, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from qat.granularity import Granularity, PerChannel, PerGroup, PerTensor
from qat.grid import Grid
from qat.messages import shown
from qat.observers import Observer
from qat.quantizers import Quantizer
from qat.spec import QuantSpec
from qat.transform.class_names import Part, construct, plain_part, resolve, resolve_quantizer


@dataclass(frozen=True)
class TensorRule:
    """How one tensor is quantized.

    Args:
        bits: width of the codes, 2..8.
        granularity: per_tensor, per_channel (output channels of a weight) or per_group (runs of `group_size` weights of one
            output channel).
        group_size: for per_group only.
        symmetric: zero is code 0.
        narrow: drop the lowest code.
        signed: None reads it from the graph (after ReLU: unsigned) or, where the graph proves nothing, from the data.
        quantizer, observer: a class name, a class, or {"_target_": name or class, option: value}; so is a quantizer's option
            `estimator`. Classes are kept by their names, so that a rule is plain data.

    Raises:
        ValueError: an impossible value, an unknown class or option, or a class that cannot be imported by its name.
    """

    bits: int
    granularity: str = "per_tensor"
    group_size: int | None = None
    symmetric: bool = True
    narrow: bool = False
    signed: bool | None = None
    quantizer: Part = "LSQ"
    observer: Part = "MSE"

    def __post_init__(self) -> None:
        Grid(self.bits)
        for name in ("symmetric", "narrow", "signed"):
            value = getattr(self, name)
            if not isinstance(value, bool) and not (name == "signed" and value is None):
                raise ValueError(
                    f"{name}={shown(value)} is neither true nor false: write {name}: false, without quotes."
                )
        if self.granularity not in ("per_tensor", "per_channel", "per_group"):
            raise ValueError(
                f"granularity={shown(self.granularity)} does not exist: write per_tensor, per_channel or per_group."
            )
        if (self.granularity == "per_group") != (self.group_size is not None):
            raise ValueError(
                f"granularity={self.granularity} with group_size={self.group_size}: per_group needs a group_size such as 32, "
                "the others take none."
            )
        self._granularity(0)
        object.__setattr__(self, "quantizer", plain_part(self.quantizer, Quantizer))
        object.__setattr__(self, "observer", plain_part(self.observer, Observer))
        resolve_quantizer(self.quantizer)
        resolve(self.observer, Observer)

    def spec(self, signed: bool = True, axis: int = 0) -> QuantSpec:
        """The QuantSpec. Affine grids are unsigned.

        Args:
            signed: what the graph says, used where this rule leaves it open.
            axis: the axis of the output channels, for per_channel.
        """
        granularity = self._granularity(axis)
        if not self.symmetric:
            return QuantSpec(Grid(self.bits, signed=False, narrow=self.narrow), granularity, symmetric=False)
        signed = signed if self.signed is None else self.signed
        return QuantSpec(Grid(self.bits, signed, self.narrow and signed), granularity)

    def build(self, shape: tuple[int, ...] = (), signed: bool | None = True, axis: int = 0) -> Quantizer:
        """A new quantizer.

        Args:
            shape: that of the weight; () for an activation.
            signed: what the graph says, used where this rule leaves it open. None: nothing, so the data will decide
                (`Quantizer.read_sign_from_data`).
            axis: as in `spec`.
        """
        spec = self.spec(signed is not False, axis)
        observer_class, observer_options = resolve(self.observer, Observer)
        quantizer_class, quantizer_options = resolve_quantizer(self.quantizer)
        observer = construct(observer_class, spec, **observer_options)
        quantizer: Quantizer = construct(quantizer_class, spec, shape, observer, **quantizer_options)
        if signed is None and self.signed is None:
            quantizer.read_sign_from_data()
        return quantizer

    @property
    def is_dynamic(self) -> bool:
        """Whether every tensor gets a range of its own at run time."""
        return self.quantizer_class.is_dynamic

    @property
    def quantizer_class(self) -> type[Quantizer]:
        """The class that `quantizer` names."""
        return resolve_quantizer(self.quantizer)[0]

    def _granularity(self, axis: int) -> Granularity:
        if self.group_size is not None:
            return PerGroup(self.group_size)
        return PerChannel(axis) if self.granularity == "per_channel" else PerTensor()
