"""LSTM, GRU, RNN and their cells, which torch.export writes as one operation, as calls of the modules that own the weights."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from qat.capture.graphs.rewriting import erase_unused, owner_of
from qat.nn import matrices_of

_LAYERS: dict[str, type[nn.RNNBase]] = {
    "aten.lstm.input": nn.LSTM,
    "aten.gru.input": nn.GRU,
    "aten.rnn_tanh.input": nn.RNN,
    "aten.rnn_relu.input": nn.RNN,
}
_CELLS: dict[str, type[nn.RNNCellBase]] = {
    "aten.lstm_cell.default": nn.LSTMCell,
    "aten.gru_cell.default": nn.GRUCell,
    "aten.rnn_tanh_cell.default": nn.RNNCell,
    "aten.rnn_relu_cell.default": nn.RNNCell,
}


def recurrent_as_modules(model: nn.Module, graph: fx.Graph) -> None:
    """Replace operations of aten by calls of the modules, whose weights can be quantized, in place."""
    for node in list(graph.nodes):
        if node.op != "call_function" or str(node.target) not in (*_LAYERS, *_CELLS):
            continue
        is_layer = str(node.target) in _LAYERS
        weights = [n for n in (node.args[2] if is_layer else node.args[2:]) if n is not None]
        name = _owner(model, weights, (_LAYERS | _CELLS)[str(node.target)])
        if name is None:
            continue
        state = tuple(node.args[1]) if isinstance(node.args[1], list | tuple) else node.args[1]
        with graph.inserting_before(node):
            call = graph.call_module(name, (node.args[0], state))
            call.meta = {"nn_module_stack": node.meta.get("nn_module_stack")}
            if is_layer:
                _read_layer(graph, node, call, isinstance(state, tuple))
            else:
                node.replace_all_uses_with(call)  # (h, c), or h, as the operation returns them
        erase_unused([node])


def _read_layer(graph: fx.Graph, node: fx.Node, call: fx.Node, is_lstm: bool) -> None:
    """Let readers of part i of (output, h, c) read it from (output, (h, c)), or from (output, h)."""
    for user in list(node.users):
        index = int(user.args[1])  # type: ignore[arg-type]
        part = graph.call_function(operator.getitem, (call, min(index, 1)))
        if is_lstm and index:
            part = graph.call_function(operator.getitem, (part, index - 1))
        part.meta = dict(user.meta)
        user.replace_all_uses_with(part)
        graph.erase_node(user)


def _owner(model: nn.Module, weights: Sequence[Any], kind: type[nn.Module]) -> str | None:
    """The name of the module that owns all these weights, if it computes with them as its class in torch.nn does."""
    owners = {owner_of(weight) for weight in weights}
    name = owners.pop() if len(owners) == 1 else None
    module = None if name is None else model.get_submodule(name)
    if not isinstance(module, kind) or type(module).forward is not kind.forward or not matrices_of(module):
        return None
    return name
