"""The size of a model whose numbers are each stored in the bits they need."""

from __future__ import annotations

from torch import nn

from qat.arguments import check_network
from qat.nn import quantized_weights


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers. Quantized weights count with their bits, and their scales with the bits that a file
    needs for them, four bytes unless the format has smaller ones.

    >>> stored_bytes(nn.Linear(4, 2))
    40

    Raises:
        ValueError: `model` is not a network.
    """
    check_network(model)
    bits = 0
    counted: set[int] = set()
    for module in model.modules():
        for _, weight, quantizer in quantized_weights(module):
            bits += weight.numel() * quantizer.spec.grid.bits + quantizer.scale_bits * quantizer.n_qparams
            counted |= {id(weight), *(id(t) for t in (*quantizer.parameters(), *quantizer.buffers()))}
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    bits += sum(t.numel() * t.element_size() * 8 for key, t in tensors.items() if key not in counted)
    return -(-bits // 8)
