"""The tensors a network returns, and their names in the file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx

from qat.torch_private import MappingKey, SequenceKey, tree_flatten_with_path


def named_outputs(returned: Any) -> dict[str, Any]:
    """Name every tensor, or node of a graph, in nested tuples, lists and dicts; numbers and None are left out.

    >>> x = Tensor([1.0])
    >>> list(named_outputs(x)), list(named_outputs((x, [x, 3]))), list(named_outputs({"logits": x, "loss": None}))
    (['output'], ['output_0', 'output_1_0'], ['output_logits'])
    """
    outputs = {}
    for path, leaf in tree_flatten_with_path(returned)[0]:
        if isinstance(leaf, Tensor | fx.Node):
            name = joined_name("output", path)
            while name in outputs:  # {"a_b": x, "a": {"b": y}}
                name += "_"
            outputs[name] = leaf
    return outputs


def joined_name(name: str, path: Iterable[Any]) -> str:
    """The name of a tensor in nested tuples, lists and dicts: name, name_0, name_logits, name_0_1, ..."""
    return "_".join([name, *(_key(step) for step in path)])


def _key(step: Any) -> str:
    return str(step.idx if isinstance(step, SequenceKey) else step.key if isinstance(step, MappingKey) else step.name)
