"""Zeros and compressed files as tables and sentences."""

from collections.abc import Sequence

from qat.report.results.pruning import FileSize, PruningResult
from qat.report.text.tables import ABSENT, TextTable
from qat.report.text_of_numbers import format_count, format_size


def zeros_table(found: PruningResult) -> TextTable:
    """One line for each layer with integer weights."""
    header = ("layer", "weights", "pruned", "zero codes", "zeros %", "groups that break the pattern")
    cells = [
        (
            layer.layer,
            f"{layer.weights:,}",
            f"{layer.masked:,}",
            f"{layer.zeros:,}",
            f"{100 * layer.zeros / layer.weights:.1f}",
            ABSENT if layer.violations is None else str(layer.violations),
        )
        for layer in found.layers
    ]
    return TextTable(header, cells, text_columns=1)


def pruning_sentence(found: PruningResult) -> str:
    """What was pruned, and whether the integers have these zeros.

    >>> from qat.report.results.pruning import LayerZeros
    >>> pruning_sentence(PruningResult(0.5, "2:4", [LayerZeros("a", 8, 5, 4, 0, 0)]))
    '4 of 8 weights were pruned (2:4); all of them are zero in the integer model, and no group breaks the pattern.'
    """
    weights, masked = (sum(getattr(layer, name) for layer in found.layers) for name in ("weights", "masked"))
    wanted = f"{100 * found.sparsity:.0f} %" if found.pattern is None else found.pattern
    said = []
    if masked or not found.removed:
        wrong = sum(layer.masked_not_zero for layer in found.layers)
        proof = (
            "all of them are zero in the integer model"
            if not wrong
            else f"{wrong:,} of them are NOT zero in the integers"
        )
        broken = sum(layer.violations or 0 for layer in found.layers)
        groups = (
            ""
            if found.pattern is None
            else f", and {broken or 'no'} group{'s' * (broken > 1)} break{'s' * (broken < 2)} the pattern"
        )
        said.append(f"{masked:,} of {weights:,} weights were pruned ({wanted}); {proof}{groups}.")
    if found.removed:
        removed, kept = (sum(getattr(layer, name) for layer in found.removed) for name in ("removed", "kept"))
        said.append(
            f"{removed:,} of {removed + kept:,} channels of {format_count(len(found.removed), 'layer')} were taken out."
        )
    return " ".join(said)


def files_table(files: Sequence[FileSize]) -> TextTable:
    """Files beside their compressed size."""
    header = ("file", "size", "zipped", "of size")
    cells = [
        (
            file.name,
            format_size(file.size_bytes),
            format_size(file.zipped_bytes),
            f"{file.zipped_bytes / file.size_bytes:.2f}×",
        )
        for file in files
    ]
    return TextTable(header, cells, text_columns=1)
