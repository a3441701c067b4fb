"""From layers, harms and costs to the choices of the integer program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product

from qat.search.budget import Budget
from qat.search.costs import bits_of, layer_costs
from qat.search.harm import Harms
from qat.search.layers import Layer
from qat.search.solve import Choice, Link, Option, Problem


def make_problem(
    layers: Sequence[Layer],
    searched: Sequence[Layer],
    widths: tuple[Sequence[int], Sequence[int]],
    harms: Harms,
    constant: Mapping[str, float],
    budget: Budget,
) -> Problem:
    """One choice for each layer, in the order of `layers`, and links between those that share a weight or an input.

    Args:
        layers: all quantized layers; those that are not searched have one option, their own bits.
        searched: those whose bits are chosen.
        widths: of weights and of inputs; the latter may be empty.
        harms: what `find_harms` found; a harm that is missing is 0.
        constant: costs beside the layers.
        budget: has the table of latencies, if they are a cost.
    """
    elements = sum(layer.elements for layer in layers)
    names = {layer.name for layer in searched}
    links = [*_links(searched, layers, "weight"), *(_links(searched, layers, "activation") if widths[1] else ())]
    choices = []
    for place, layer in enumerate(layers):
        of_weight, of_input = _widths(layer, layer.name in names, widths)
        same_input = any(layer.inputs.keys() == other.inputs.keys() for other in layers[:place] if other.name in names)
        options = [
            Option(
                weight, activation,
                harm=harms.weights.get((layer.name, weight or 0), 0.0)
                + (0.0 if same_input else harms.inputs.get((layer.name, activation or 0), 0.0)),
                costs=layer_costs(layer, (weight, activation), _code_bits(layer, weight, harms), elements, budget),
            )
            for weight, activation in product(of_weight, of_input)
        ]  # fmt: skip
        choices.append(Choice(layer.name, options))
    return Problem(choices, links, constant)


def _widths(
    layer: Layer, is_searched: bool, widths: tuple[Sequence[int], Sequence[int]]
) -> tuple[Sequence[int | None], Sequence[int | None]]:
    weight, activation = bits_of(layer.rule.weight), bits_of(layer.rule.activation)
    if not layer.weights:
        weight = None
    chooses_input = is_searched and widths[1] and activation is not None and has_static_input(layer)
    return (
        widths[0] if is_searched and weight is not None else [weight],
        widths[1] if chooses_input else [activation],
    )


def has_static_input(layer: Layer) -> bool:
    """Whether the bits of its input can be chosen: it has an integer grid that is calibrated."""
    rule = layer.rule.activation
    return rule is not None and not rule.quantizer_class.for_layer_inputs and bool(layer.inputs)


def _code_bits(layer: Layer, weight: int | None, harms: Harms) -> int | None:
    """Bits in which a code of the weight is stored: more than `weight` if the quantizer has levels of its own."""
    if weight is None:
        return None
    own = layer.weights[0].spec.grid.bits if bits_of(layer.rule.weight) == weight else weight
    return harms.stored.get((layer.name, weight), own)


def _links(searched: Sequence[Layer], layers: Sequence[Layer], tensor: str) -> list[Link]:
    """A link from each layer to the first one that shares the tensor with it, directly or through others."""
    place = {layer.name: i for i, layer in enumerate(layers)}
    group = {layer.name: layer.name for layer in searched}
    for a, b in combinations(searched, 2):
        shares = a.stored & b.stored if tensor == "weight" else a.inputs.keys() & b.inputs.keys()
        if shares and (tensor == "weight" or (has_static_input(a) and has_static_input(b))):
            old, new = group[b.name], group[a.name]
            group = {name: new if first == old else first for name, first in group.items()}
    return [Link(place[first], place[name], tensor) for name, first in group.items() if first != name]
