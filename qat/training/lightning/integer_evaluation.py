"""Validation and test on codes: calls of the prepared network run its integer model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qat.capture import call_arguments, installed_graph
from qat.integer import convert, convert_with_loss
from qat.torch_private import tensor_version, tree_map_only
from qat.training.lightning.compilation import without_compilation
from qat.transform import bits_in_force


class IntegerEvaluation:
    """Integer models of a prepared network during an evaluation, converted again when the network has changed."""

    def __init__(self) -> None:
        self._converted: dict[bool, nn.Module] = {}
        self._state: Any = None
        self.conversions = 0
        """How often the network was converted."""

    @contextmanager
    def on(self, network: nn.Module) -> Iterator[None]:
        """Inside the `with`, calls of `network` run its integer model, without gradients and in float32 around it.

        Calls that its graph does not serve run the prepared network.
        """
        before = vars(network).get("forward")
        with without_compilation(network):
            vars(network)["forward"] = _Forward(network, self)
            try:
                yield
            finally:
                del vars(network)["forward"]
                if before is not None:
                    vars(network)["forward"] = before

    def model(self, network: nn.Module, with_loss: bool) -> nn.Module:
        """The integer model of `network` as it is now."""
        state = _state(network)
        if state != self._state:
            self._converted, self._state = {}, state
        if with_loss not in self._converted:
            forward = vars(network).pop("forward")
            try:
                self._converted[with_loss] = (convert_with_loss if with_loss else convert)(network)
            finally:
                vars(network)["forward"] = forward
            self.conversions += 1
        return self._converted[with_loss]

    def forget(self) -> None:
        """Free the integer models: what changes a weight through its `data` before the next evaluation is not noticed."""
        self._converted, self._state = {}, None


class _Forward:
    """The forward of a network in evaluation. A copy of the network gets one of its own."""

    def __init__(self, network: nn.Module, evaluation: IntegerEvaluation) -> None:
        self.network, self.evaluation = network, evaluation

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        network, evaluation = self.network, self.evaluation
        installed, signature = installed_graph(network), inspect.signature(type(network).forward)
        arguments = call_arguments(_without_self(signature), args, kwargs)
        form = None if installed is None else installed[1]
        with torch.no_grad(), torch.autocast(next(network.parameters()).device.type, enabled=False):
            if form is None:
                args, kwargs = tree_map_only(Tensor, _as_float32, (args, kwargs))
                return evaluation.model(network, with_loss=installed is not None)(*args, **kwargs)
            for of_call, with_loss in ((form, True), (form.without_labels, False)):
                if of_call is not None and (inputs := of_call.flat(arguments)) is not None:
                    inputs = tree_map_only(Tensor, _as_float32, inputs)
                    return of_call.result(evaluation.model(network, with_loss)(*inputs))
        return type(network).forward(network, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Forward:
        return _Forward(memo[id(self.network)], IntegerEvaluation())


def _without_self(signature: inspect.Signature) -> inspect.Signature:
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _as_float32(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x


def _state(network: nn.Module) -> Any:
    """Equal as long as no weight, range, statistic or width has changed."""
    tensors = [*network.parameters(), *network.buffers()]
    return [(id(x), tensor_version(x)) for x in tensors], bits_in_force(network)
