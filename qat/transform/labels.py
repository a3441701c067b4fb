"""Labels among the arguments of a network: what `prepare` says about them, and what it refuses."""

from __future__ import annotations

import inspect

from torch import fx, nn

from qat.nn import is_layer
from qat.operations import is_label, loss_nodes, reached_by_labels


def sentences_on_labels(graph: fx.Graph) -> list[str]:
    """At most one sentence, about a loss that the artefact leaves out."""
    names = _labels(graph)
    if not names:
        return []
    if loss_nodes(graph):
        return [f"{names}: for training alone; convert leaves out the loss that forward calculates of it."]
    return [f"forward returns nothing without {names}: give it a default of None, and return predictions too."]


def check_labels(model: nn.Module, graph: fx.Graph) -> None:
    """Refuse labels that reach layers, which the artefact would leave out with the loss.

    Networks with a decoder shift labels to the right, and feed them to it, if they get no `decoder_input_ids`.

    Raises:
        ValueError: some do.
    """
    both = reached_by_labels(graph) & loss_nodes(graph)
    layers = [str(n.target) for n in graph.nodes if n in both and n.op == "call_module"]
    layer = next((name for name in layers if is_layer(model.get_submodule(name))), None)
    if layer is None:
        return
    what = f"{type(model).__name__} feeds {_labels(graph)} to {layer!r}, and labels are for a loss alone"
    if "decoder_input_ids" in inspect.signature(model.forward).parameters:
        can_shift = hasattr(model, "prepare_decoder_input_ids_from_labels")
        how = ", as transformers.DataCollatorForSeq2Seq(tokenizer, model=model) does" if can_shift else ""
        raise ValueError(f"{what}: add decoder_input_ids, the labels shifted to the right, to every batch{how}.")
    raise ValueError(f"{what}: give that argument of forward another name, such as 'condition'.")


def _labels(graph: fx.Graph) -> str:
    return ", ".join(str(n.target) for n in graph.nodes if n.op == "placeholder" and is_label(str(n.target)))
