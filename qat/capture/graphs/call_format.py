"""From a call of forward, with names, defaults and nested values, to the inputs of a graph, and back from its outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qat.capture.graphs.arguments import Arguments
from qat.torch_private import TreeSpec, tree_flatten, tree_unflatten


@dataclass(frozen=True)
class CallFormat:
    """How a call of forward becomes the inputs of a graph, and its outputs the result.

    Attributes:
        inputs: the structure of the arguments by name.
        names: their names.
        is_tensor: for each leaf of `inputs`, whether it is a tensor.
        constants: the leaves that are not tensors.
        output: the structure of the result.
        others_allowed: whether the original forward can serve calls of another format.
        without_labels: the format of calls without labels, if calls of this one have some; a part of the graph serves them.
        implied: arguments that the graph was made with, and that calls may leave out.
        parameters: the inputs of the graph in order, each with its value in calls that leave it out.
    """

    inputs: TreeSpec
    names: tuple[str, ...]
    is_tensor: tuple[bool, ...]
    constants: tuple[Any, ...]
    output: TreeSpec
    others_allowed: bool = True
    without_labels: CallFormat | None = None
    implied: tuple[tuple[str, Any], ...] = ()
    parameters: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of_call(cls, arguments: Arguments, output: TreeSpec) -> CallFormat:
        """The format of this call, whose result has the structure `output`."""
        leaves, spec = tree_flatten(dict(arguments))
        is_tensor = tuple(isinstance(leaf, Tensor) for leaf in leaves)
        constants = tuple(leaf for leaf in leaves if not isinstance(leaf, Tensor))
        return cls(spec, tuple(arguments), is_tensor, constants, output)

    def flat(self, arguments: Arguments) -> list[Any] | None:
        """The inputs of the graph, as nested as they are in the call; None if it is another kind of call."""
        arguments = {name: value for name, value in arguments.items() if (name, value) not in self.implied}
        if set(arguments) != set(self.names):
            return None
        leaves, spec = tree_flatten({name: arguments[name] for name in self.names})
        if spec != self.inputs or tuple(isinstance(leaf, Tensor) for leaf in leaves) != self.is_tensor:
            return None
        constants = [leaf for leaf, tensor in zip(leaves, self.is_tensor, strict=True) if not tensor]
        same = all(type(a) is type(b) and a == b for a, b in zip(constants, self.constants, strict=True))
        return [arguments.get(name, default) for name, default in self.parameters] if same else None

    def result(self, outputs: Any) -> Any:
        """What forward returns, from what the graph returns."""
        return tree_unflatten(tree_flatten(outputs)[0], self.output)
