"""Zeros in the weights of the artefact, and what files need when they are compressed."""

from dataclasses import dataclass, field

from qat.report.results.json_records import Record, SchemaError


@dataclass(frozen=True)
class LayerZeros(Record):
    """One layer of the integer model, whose codes a verified file holds.

    `masked` weights were pruned; `masked_not_zero` of their codes are not zero, and must be none. `zeros` counts all codes that
    mean zero, also those that were rounded to it. `violations` are groups that break the pattern, None if there is none.
    """

    layer: str
    weights: int
    zeros: int
    masked: int = 0
    masked_not_zero: int = 0
    violations: int | None = None

    def __post_init__(self) -> None:
        if not self.masked_not_zero <= self.masked <= self.weights:
            raise SchemaError(f"LayerZeros {self.layer!r}: {self.masked} of {self.weights} weights cannot be masked")


@dataclass(frozen=True)
class RemovedChannels(Record):
    """Output channels that were taken out of one layer, and those that stay."""

    layer: str
    removed: int
    kept: int


@dataclass(frozen=True)
class PruningResult(Record):
    """What was pruned: the share of zeros or the pattern that was asked for, and what the integer model has."""

    sparsity: float
    pattern: str | None
    layers: list[LayerZeros] = field(default_factory=list)
    removed: list[RemovedChannels] = field(default_factory=list)

    @property
    def proven(self) -> bool:
        """Whether every pruned weight is zero in the integers, and no group breaks the pattern."""
        return all(layer.masked_not_zero == 0 and not layer.violations for layer in self.layers)


@dataclass(frozen=True)
class FileSize(Record):
    """A file or folder of the run: its bytes, and what they are in a zip archive (DEFLATE, level 9)."""

    name: str
    size_bytes: int
    zipped_bytes: int
