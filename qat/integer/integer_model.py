"""The result of `convert`: a graph of integer modules."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from qat.capture.graphs.graph_record import NodeRecord, graph_of_record, record_graph
from qat.fixed_dtypes import FixedDtypes
from qat.integer.modules import IntegerModule
from qat.torch_private import TreeSpec, tree_flatten, tree_map, tree_unflatten


class IntegerModel(FixedDtypes, fx.GraphModule):
    """A network on integer codes, float in and float out. `codes(x)` also returns the codes of every site.

    Its floats are float32, also under autocast and after `.half()`: inputs of other precisions are converted. It returns what
    forward of the prepared network returns, in the same classes, and takes its keyword arguments; labels of a loss that it
    leaves out are ignored.

    It can be copied and pickled (`torch.save`, and `torch.load(..., weights_only=False)`) and comes back as what it was.
    """

    policy: Any = None
    """The policy of the prepared network as plain data, if it is known."""
    result: TreeSpec | None = None
    """The structure of the result if it has classes that a graph cannot return; None: the graph's own result."""
    left_out: tuple[str, ...] = ()
    """The labels that the prepared network takes and this one does not."""

    def __init__(self, root: nn.Module | dict[str, Any], graph: fx.Graph, class_name: str = "IntegerModel") -> None:
        super().__init__(root, graph, class_name)
        self.register_forward_pre_hook(_as_the_graph_takes, with_kwargs=True)
        self.register_forward_hook(_as_forward_returns)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own = next(chain(self.buffers(), self.parameters()), None)
        device = "cpu" if own is None else own.device.type
        if not torch.is_autocast_enabled(device):
            return super().__call__(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return super().__call__(*args, **kwargs)

    def codes(self, *inputs: Any, values: dict[str, Tensor] | None = None) -> tuple[Any, dict[str, Tensor]]:
        """(output, {site: uint8 codes}) for one batch. values: gets what the codes of dynamic sites stand for."""
        codes: dict[str, Tensor] = {}

        def keep(name: str, made: Any) -> None:
            codes[name] = made if isinstance(made, Tensor) else made[0]
            if values is not None and not isinstance(made, Tensor):
                of_site, scale, zero_point = made
                values[name] = (of_site.float() - zero_point.float()) * scale

        hooks = [
            module.register_forward_hook(lambda _m, _i, made, name=name: keep(name, made))
            for name, module in self.named_modules()
            if isinstance(module, IntegerModule) and module.makes_codes
        ]
        try:
            return self(*inputs), codes
        finally:
            for hook in hooks:
                hook.remove()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Refuse numbers of another model, because the scales of activations are not in a state dict.

        Raises:
            ValueError: a tensor differs from that of this model.
        """
        own = self.state_dict()
        others = [
            name for name in own if (new := state_dict.get(prefix + name)) is not None and not _equal(new, own[name])
        ]
        if others:
            raise ValueError(
                f"a state dict of another integer model ({others[0]} differs) lacks the scales of its codes: load the state "
                "dict of the prepared network and convert that, or save the integer model itself with qat.save_quantized."
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        # A GraphModule pickles as source code that is traced again, as a plain GraphModule.
        root = nn.Module()
        # Not named_children and the like, which leave out repeated modules (a layer that is called twice) and tied weights.
        for name, child in self._modules.items():
            root.add_module(name, child)
        for name, parameter in self._parameters.items():
            root.register_parameter(name, parameter)
        for name, buffer in self._buffers.items():
            root.register_buffer(name, buffer)
        own = {name: getattr(self, name) for name in ("policy", "result", "left_out", "training")}
        return _restore, (root, record_graph(self.graph), self._get_name(), own)

    def __deepcopy__(self, memo: Any) -> IntegerModel:
        restore, arguments = self.__reduce__()
        result: IntegerModel = restore(*copy.deepcopy(arguments, memo))
        return result

    def __copy__(self) -> IntegerModel:
        restore, arguments = self.__reduce__()
        result: IntegerModel = restore(*arguments)
        return result


def _as_the_graph_takes(
    model: IntegerModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs of half and double precision as float32, and no labels."""

    def converted(x: Any) -> Any:
        other = isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float32
        return x.float() if other else x

    taken = {name: value for name, value in kwargs.items() if name not in model.left_out}
    return tree_map(converted, args), tree_map(converted, taken)


def _as_forward_returns(model: IntegerModel, _: Any, outputs: Any) -> Any:
    return outputs if model.result is None else tree_unflatten(tree_flatten(outputs)[0], model.result)


def _restore(root: nn.Module, records: list[NodeRecord], name: str, own: dict[str, Any]) -> IntegerModel:
    model = IntegerModel(root, graph_of_record(records), name)
    vars(model).update(own)
    return model


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.to(b.device), b)
