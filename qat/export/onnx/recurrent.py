"""LSTM, GRU and RNN as the one operation that ONNX has for each.

torch.onnx follows a recurrent layer step by step, several times, so that its time grows with the sequence; of an RNN it also
writes every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kind:
    """A kind of recurrent layer.

    Attributes:
        function: of torch, behind the module.
        operation: of ONNX.
        gates: the places of the gates in torch, in the order in which ONNX reads them.
        activation: of an RNN; "" for the others, whose activations are the defaults.
    """

    function: Callable[..., Any]
    operation: str
    gates: tuple[int, ...] = (0,)
    activation: str = ""


KINDS = (
    Kind(torch.lstm, "LSTM", (0, 3, 1, 2)),  # ONNX: input, output, forget, cell; torch: input, forget, cell, output
    Kind(torch.gru, "GRU", (1, 0, 2)),  # ONNX: update, reset, new; torch: reset, update, new
    Kind(torch.rnn_tanh, "RNN", activation="Tanh"),
    Kind(torch.rnn_relu, "RNN", activation="Relu"),
)


def recurrent(kind: Kind) -> Callable[..., Any]:
    """The function of torch in terms of the operation of ONNX; only torch.onnx.export can call it."""

    def write(
        input: Tensor,
        hx: Any,
        params: Any,
        has_biases: Any,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        """Arguments as torch has them; a packed sequence, whose arguments are others, and projections are left to torch."""
        states = [hx] if isinstance(hx, Tensor) else list(hx)
        if not isinstance(has_biases, bool) or len({state.shape[-1] for state in states}) > 1:
            return kind.function(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)
        directions, each = 1 + bidirectional, 4 if has_biases else 2
        x, last = input.transpose(0, 1) if batch_first else input, []
        for layer in range(num_layers):
            rows = slice(layer * directions, (layer + 1) * directions)
            weights = [params[i * each : (i + 1) * each] for i in range(rows.start, rows.stop)]
            x, *after = _layer(kind, x, [state[rows] for state in states], weights)
            last.append(after)
        after = [torch.cat(layer) for layer in zip(*last, strict=True)]
        return x.transpose(0, 1) if batch_first else x, *after

    return write


def _layer(kind: Kind, x: Tensor, states: Sequence[Tensor], weights: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """One layer: its outputs (time, batch, directions * hidden) and its states behind the last step.

    Args:
        x: (time, batch, features).
        states: before the first step, each (directions, batch, hidden).
        weights: of each direction: of the input, of the state and, if there are biases, one for each of them.
    """
    directions, batch, hidden = states[0].shape
    first, second, *biases = ([_in_order(w, kind.gates) for w in same] for same in zip(*weights, strict=True))
    bias = torch.stack([torch.cat(both) for both in zip(*biases, strict=True)]) if biases else None
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": "bidirectional" if directions == 2 else "forward"}
    if kind.activation:
        attributes["activations"] = [kind.activation] * directions
    if kind.operation == "GRU":
        attributes["linear_before_reset"] = 1
    outputs, *after = torch.onnx.ops.symbolic_multi_out(
        kind.operation,
        [x, torch.stack(first), torch.stack(second), bias, None, *states],
        attributes,
        dtypes=[x.dtype] * (1 + len(states)),
        shapes=[(x.shape[0], directions, batch, hidden), *(state.shape for state in states)],
    )
    return outputs.transpose(1, 2).flatten(2), *after


def _in_order(weight: Tensor, gates: Sequence[int]) -> Tensor:
    """A weight or bias of all gates, (gates * hidden, ...), with the gates in this order."""
    parts = weight.chunk(len(gates))
    return torch.cat([parts[gate] for gate in gates])


RECURRENT: dict[Any, Callable[..., Any]] = {kind.function: recurrent(kind) for kind in KINDS}
