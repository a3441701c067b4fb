"""Zeros of the integer model, and the sizes of the files of a fit."""

from __future__ import annotations

import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qat.export.packed import save_quantized
from qat.integer.layers import DynamicLayer, IntegerConvTranspose
from qat.integer.weight_only import StoredMatrix
from qat.nn import inputs_and_outputs_swapped, outputs_first
from qat.report.results.pruning import FileSize, LayerZeros
from qat.sparsity import Pattern, count_zeros, values_of_codes

PACKED = "packed folder"
INSIDE = "layer"
"""The name of the layer inside a module that quantizes its input dynamically."""
COPY = r"[_\d]*"
"""What a graph appends to a name that another module has, such as a second call of the same layer."""


class Stored(NamedTuple):
    """A weight in an integer model. values: codes less zero-points, or floats. stays: a mask -> the same in its layout."""

    layer: str
    values: Tensor
    stays: Callable[[Tensor], Tensor]

    def not_zero(self, mask: Tensor) -> int | None:
        """How many weights that the mask prunes are not zero; None if it is the mask of a weight of another shape."""
        stays = self.stays(mask)
        return int((self.values.bool() & ~stays).sum()) if stays.shape == self.values.shape else None


def zeros_of_layers(integer: nn.Module, masks: Mapping[str, Tensor], pattern: Pattern | None) -> list[LayerZeros]:
    """Every layer of an integer model: its zeros, and whether they are where the masks want them.

    A layer that is called twice has a module for each call, with the same codes: it counts once. A mask whose layer stays in
    float is compared with the float weight. A mask whose layer is not found is not proven: all of its zeros count as missing.

    Args:
        integer: what the artefact was written from.
        masks: layer of the float network -> which weights stay.
        pattern: of the masks, if they have one.
    """
    masks = {name: mask.cpu() for name, mask in masks.items()}
    modules, counted = dict(integer.named_modules()), count_zeros(integer, pattern)
    stored = {name: _stored(name, modules) for name in counted}
    masked = _places(masks, stored)
    found, seen = [], list[Tensor]()
    for name, zeros in counted.items():
        weight = stored[name]
        mask = masks[masked[name]] if name in masked else None
        if mask is None and any(torch.equal(weight.values, other) for other in seen):
            continue
        seen.append(weight.values)
        pruned, wrong = (0, 0) if mask is None else (int((~mask).sum()), weight.not_zero(mask) or 0)
        violations = zeros.violations if mask is not None else None
        found.append(LayerZeros(weight.layer, zeros.weights, zeros.zeros, pruned, wrong, violations))
    rest = {name: mask for name, mask in masks.items() if name not in masked.values()}
    floats = {
        name: Stored(name.removesuffix(".weight"), tensor.detach().cpu(), lambda mask: mask)
        for name, tensor in integer.state_dict().items()
        if tensor.is_floating_point()
    }
    places = {mask: name for name, mask in _places(rest, floats).items()}
    return found + [_zeros_in_float(name, mask, floats.get(places.get(name, ""))) for name, mask in rest.items()]


def _stored(name: str, modules: Mapping[str, nn.Module]) -> Stored:
    """The weight of a module that `count_zeros` counts, and the layer that it is of."""
    module, (owner, _, last) = modules[name], name.rpartition(".")
    layer = module.label if isinstance(module, StoredMatrix) else name
    if last == INSIDE and isinstance(modules[owner], DynamicLayer):
        layer = owner
    values = values_of_codes(module)
    assert values is not None
    return Stored(layer, values.cpu(), partial(_as_stored, module=module))


def _places(masks: Mapping[str, Tensor], weights: Mapping[str, Stored]) -> dict[str, str]:
    """Weight -> its mask.

    Graphs have underscores for dots, so several layers may have one name. Each mask then gets a weight of its own: the one with
    the fewest weights that should be zero and are not.
    """
    places = dict[str, str]()
    for name, mask in masks.items():
        called = re.compile(re.escape(_flat(name)) + COPY)
        fitting = [key for key, w in weights.items() if key not in places and called.fullmatch(_flat(w.layer))]
        counts = {key: weights[key].not_zero(mask) for key in fitting}
        wrong = {key: count for key, count in counts.items() if count is not None}
        exact_first = sorted(wrong, key=lambda key: (wrong[key], len(weights[key].layer)))
        if exact_first:
            places[exact_first[0]] = name
    return places


def _flat(name: str) -> str:
    """The name of a module as a graph has it."""
    return name.replace(".", "_")


def _zeros_in_float(name: str, mask: Tensor, weight: Stored | None) -> LayerZeros:
    """What a float layer has where its mask wants zeros; nothing is zero in a layer that is not there."""
    values = torch.ones(mask.shape) if weight is None else weight.values
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
