"""Zeros of the integer model, and the sizes of the files of a fit."""

from __future__ import annotations

import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from qat.export.packed import save_quantized
from qat.integer.layers import IntegerConvTranspose
from qat.nn import inputs_and_outputs_swapped, outputs_first
from qat.report.results.pruning import FileSize, LayerZeros
from qat.sparsity import Pattern, count_zeros, values_of_codes

PACKED = "packed folder"
INSIDE = "layer"
"""What a module that quantizes its input when it runs calls the layer inside."""


def zeros_of_layers(integer: nn.Module, masks: Mapping[str, Tensor], pattern: Pattern | None) -> list[LayerZeros]:
    """Every layer of an integer model: its zeros, and whether they are where the masks want them.

    A layer that is called twice has a module for each call, with the same codes: it counts once. A mask whose layer is in float
    there is held against the float weight, and one whose layer is not found against nothing, so that none of it is proven.

    Args:
        integer: what the artefact was written from.
        masks: layer of the float network -> which weights stay.
        pattern: of the masks, if they have one.
    """
    modules = dict(integer.named_modules())
    masked = {_flat(name): mask.cpu() for name, mask in masks.items()}
    found, seen, held = [], list[Tensor](), set[str]()
    for name, zeros in count_zeros(integer, pattern).items():
        layer = name.removesuffix(f".{INSIDE}") if _flat(name) not in masked else name
        mask = masked.get(_flat(layer))
        values = values_of_codes(modules[name])
        assert values is not None
        if mask is None and any(torch.equal(values, other) for other in seen):
            continue
        seen.append(values)
        held.add(_flat(layer))
        pruned = wrong = 0
        if mask is not None:
            stays = _as_stored(mask, modules[name])
            pruned, wrong = int((~stays).sum()), int((values.cpu().bool() & ~stays).sum())
        violations = zeros.violations if mask is not None else None
        found.append(LayerZeros(layer, zeros.weights, zeros.zeros, pruned, wrong, violations))
    in_float = {_flat(name): tensor.detach().cpu() for name, tensor in integer.state_dict().items()}
    rest = {name: mask.cpu() for name, mask in masks.items() if _flat(name) not in held}
    weights = {name: in_float.get(_flat(f"{name}.weight"), in_float.get(_flat(name))) for name in rest}
    return found + [_zeros_in_float(name, mask, weights[name]) for name, mask in rest.items()]


def _flat(name: str) -> str:
    """The name of a module as a graph has it."""
    return name.replace(".", "_")


def _zeros_in_float(name: str, mask: Tensor, weight: Tensor | None) -> LayerZeros:
    """What a float layer has where its mask wants zeros; nothing is zero in a layer that is not there."""
    values = weight if weight is not None and weight.shape == mask.shape else torch.ones(mask.shape)
    return LayerZeros(
        name, mask.numel(), int((values == 0).sum()), int((~mask).sum()), int(values[~mask].count_nonzero())
    )


def _as_stored(mask: Tensor, module: nn.Module) -> Tensor:
    """The mask of a layer's weight in the shape of `values_of_codes`."""
    if isinstance(module, IntegerConvTranspose):  # a convolution with the mirrored kernel
        return inputs_and_outputs_swapped(mask, module.groups).flip(tuple(range(2, mask.ndim)))
    return outputs_first(getattr(module, "layer", None), mask)


def file_sizes(paths: Iterable[Path | None], integer: nn.Module | None) -> list[FileSize]:
    """The sizes of files, and of the integer model as `qat.save_quantized` packs it, beside their sizes in an archive."""
    found = [_size(path.name, [path]) for path in paths if path is not None and path.is_file()]
    if integer is not None:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                save_quantized(integer, folder)
            except ValueError:  # a part that no file can describe
                return found
            found.append(_size(PACKED, sorted(path for path in Path(folder).rglob("*") if path.is_file())))
    return found


def _size(name: str, paths: list[Path]) -> FileSize:
    with tempfile.TemporaryFile() as archive:
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as zipped:
            for path in paths:
                zipped.write(path, path.name)
        return FileSize(name, sum(path.stat().st_size for path in paths), archive.tell())
