"""The encodings of all tensors whose grid does not depend on their values."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace

from torch import fx, nn

from qat.integer.arithmetic import Encoding
from qat.integer.short_ratios import Addition, with_short_ratios
from qat.operations import Add, Move, Operations, Rectify
from qat.quantizers import Quantizer


def encodings_of(source: nn.Module, operations: Operations, with_codes: Set[fx.Node]) -> dict[fx.Node, Encoding]:
    """The encodings of all tensors with codes.

    Scales of tensors that take part in an add are moved by about 2**-17 of themselves (`short_ratios`).

    Args:
        source: the prepared model.
        operations: the description of every node, in graph order.
        with_codes: the sites, and what moves their codes.
    """
    sites = {
        node: _of_site(source, node, operations)
        for node in operations
        if node in with_codes and not _moves(node, operations)
    }
    scales = with_short_ratios(
        {node: encoding.scale for node, encoding in sites.items()},
        _additions(operations, sites),
        {node: _quantizer(source, node).lookup_table() is None for node in sites},
    )
    encodings = {node: replace(encoding, scale=scales[node]) for node, encoding in sites.items()}
    for node in operations:
        if node in with_codes and node not in encodings:
            encodings[node] = encodings[operations[node].inputs[0]]
    return encodings


def _of_site(source: nn.Module, site: fx.Node, operations: Operations) -> Encoding:
    """The encoding of a quantizer's codes. The bounds of a fused ReLU narrow it."""
    quantizer = _quantizer(source, site)
    encoding, before = Encoding.of_quantizer(quantizer), operations[operations[site].inputs[0]]
    if isinstance(before, Rectify) and quantizer.lookup_table() is None:
        return encoding.after_relu(before.ceiling)
    return encoding


def _additions(operations: Operations, sites: Mapping[fx.Node, Encoding]) -> list[Addition]:
    """The adds of codes whose results are codes, as the sites that own their scales."""
    found = []
    for site in (node for node in operations if node in sites):
        head = operations[site].inputs[0]
        if isinstance(operations[head], Rectify):
            head = operations[head].inputs[0]
        inputs = tuple(_origin(node, operations) for node in operations[head].inputs)
        if isinstance(operations[head], Add) and all(node in sites for node in inputs):
            found.append(Addition(inputs, site))
    return found


def _origin(node: fx.Node, operations: Operations) -> fx.Node:
    """The site whose codes this tensor has; the tensor itself if it is not moved."""
    while _moves(node, operations):
        node = operations[node].inputs[0]
    return node


def _moves(node: fx.Node, operations: Operations) -> bool:
    return isinstance(operations[node], Move)


def _quantizer(source: nn.Module, site: fx.Node) -> Quantizer:
    quantizer = source.get_submodule(str(site.target))
    assert isinstance(quantizer, Quantizer)
    return quantizer
