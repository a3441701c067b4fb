"""Weights that still swing between two codes at the end of the training."""

from dataclasses import dataclass

from qat.report.results.json_records import Record


@dataclass(frozen=True)
class LayerOscillations(Record):
    """Numbers of weights in one layer at the end of the training: all, those that oscillate, those that are frozen."""

    layer: str
    weights: int
    oscillating: int
    frozen: int


@dataclass(frozen=True)
class OscillationResult(Record):
    """Weights whose integer code still changed back and forth more often than `threshold` when the training ended."""

    threshold: float
    momentum: float
    layers: list[LayerOscillations]

    @property
    def weights(self) -> int:
        """Number of weights in all layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def oscillating(self) -> float:
        """Fraction of all weights that oscillate."""
        return sum(layer.oscillating for layer in self.layers) / self.weights

    @property
    def frozen(self) -> float:
        """Fraction of all weights that are frozen."""
        return sum(layer.frozen for layer in self.layers) / self.weights
