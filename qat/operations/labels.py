"""Labels: inputs that only a loss reads. Many networks (Hugging Face's) compute a loss in forward if they are given labels.

The loss belongs to training, not to the integer model or its file.
"""

from __future__ import annotations

import re
from typing import Any

from torch import fx

_LABEL = re.compile(r"(\w+_)?(label|labels|label_ids)|(start|end)_positions")


def is_label(argument: str) -> bool:
    """Whether an argument of forward has the name of labels.

    >>> [name for name in ("labels", "next_sentence_label", "start_positions", "label_embedding") if is_label(name)]
    ['labels', 'next_sentence_label', 'start_positions']
    """
    return _LABEL.fullmatch(argument) is not None


def reached_by_labels(graph: fx.Graph) -> set[fx.Node]:
    """The labels, and everything that is calculated from them."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        is_one = node.op == "placeholder" and is_label(str(node.target))
        if is_one or (node.op != "output" and any(n in found for n in node.all_input_nodes)):
            found.add(node)
    return found


def loss_nodes(graph: fx.Graph) -> set[fx.Node]:
    """The labels, what is calculated from them, and what only these read. Empty if every output depends on labels."""
    found = reached_by_labels(graph)
    results = next(iter(reversed(graph.nodes))).all_input_nodes
    if not found or all(n in found for n in results):
        return set()
    for node in reversed(graph.nodes):
        if node.op not in ("placeholder", "output") and node.users and all(user in found for user in node.users):
            found.add(node)
    return found


def without_labels(graph: fx.Graph) -> fx.Graph | None:
    """A copy of the graph without `loss_nodes`, and without the outputs that they calculate; None if there are none."""
    loss = loss_nodes(graph)
    if not loss:
        return None
    copies: dict[fx.Node, fx.Node] = {}
    rest = fx.Graph()
    rest.graph_copy(graph, copies)
    result = next(node for node in graph.nodes if node.op == "output").args[0]
    rest.output(fx.map_arg(_without(result, loss), copies.__getitem__))
    for node in reversed(graph.nodes):
        if node in loss:
            rest.erase_node(copies[node])
    return rest


def _without(value: Any, dropped: set[fx.Node]) -> Any:
    """Nested outputs without those in `dropped`."""
    if isinstance(value, dict):
        return {key: _without(item, dropped) for key, item in value.items() if not _is_dropped(item, dropped)}
    if isinstance(value, list | tuple):
        return type(value)(_without(item, dropped) for item in value if not _is_dropped(item, dropped))
    return value


def _is_dropped(value: Any, dropped: set[fx.Node]) -> bool:
    return isinstance(value, fx.Node) and value in dropped
