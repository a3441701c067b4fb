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
        return not self.failure

    @property
    def failure(self) -> str:
        """Why the integers are not pruned as they were to be, in one sentence; "" if they are."""
        if wrong := [layer for layer in self.layers if layer.masked_not_zero]:
            codes, masked = (sum(getattr(layer, name) for layer in wrong) for name in ("masked_not_zero", "masked"))
            return (
                f"{codes:,} of {masked:,} pruned weights of {', '.join(layer.layer for layer in wrong)} are not zero in the "
                "integer model, so something changed them after they were pruned: let no other callback write weights."
            )
        if broken := [layer for layer in self.layers if layer.violations]:
            groups = sum(layer.violations or 0 for layer in broken)
            return (
                f"{groups:,} groups of {', '.join(layer.layer for layer in broken)} break the pattern {self.pattern} in the "
                "integer model, so something changed them after they were pruned: let no other callback write weights."
            )
        return ""


@dataclass(frozen=True)
class FileSize(Record):
    """A file or folder of the run: its bytes, and what they are in a zip archive (DEFLATE, level 9)."""

    name: str
    size_bytes: int
    zipped_bytes: int
