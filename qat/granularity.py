"""Which elements share one scale and zero-point: the only module that knows axes.

qparams are vectors of shape (n_qparams,). `view(x)` reshapes a tensor and `broadcastable(p, shape)` reshapes such a vector so
that the two broadcast. `rows(x)` groups the elements in the same way for observers.

| granularity    | x         | n_qparams     | view(x)      | broadcastable(p) |
|----------------|-----------|---------------|--------------|------------------|
| PerTensor()    | [N, C, H] | 1             | [N, C, H]    | []               |
| PerChannel()   | [O, I, K] | O             | [O, I, K]    | [O, 1, 1]        |
| PerGroup(g)    | [O, I, K] | O*I*K/g       | [O*I*K/g, g] | [O*I*K/g, 1]     |
| PerBlock(b, 1) | [O, I, K] | O*K*ceil(I/b) | [O, I, K]    | [O, I, K]        |
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch.nn.functional as F
from torch import Tensor

from qat.arguments import is_whole_number


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""

    def n_qparams(self, shape: tuple[int, ...]) -> int:
        """Always 1."""
        return 1

    def rows(self, x: Tensor) -> Tensor:
        """[...] -> [1, elements]."""
        return x.reshape(1, -1)

    def view(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def broadcastable(self, p: Tensor, shape: tuple[int, ...]) -> Tensor:
        """[1] -> []."""
        return p.reshape(())


@dataclass(frozen=True)
class PerChannel:
    """One scale for each index of `axis` (0: the output channels of a Conv or Linear weight)."""

    axis: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.axis, int) or isinstance(self.axis, bool):
            raise ValueError(f"axis={self.axis!r} of PerChannel is not an axis: write a whole number such as 0.")

    def n_qparams(self, shape: tuple[int, ...]) -> int:
        """The length of `axis`.

        Raises:
            ValueError: a tensor of this shape does not have the axis.
        """
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(f"per_channel axis={self.axis} does not exist in a tensor of shape {shape}.")
        return shape[self.axis]

    def rows(self, x: Tensor) -> Tensor:
        """[..., C, ...] -> [C, elements]."""
        return x.movedim(self.axis, 0).reshape(x.shape[self.axis], -1)

    def view(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def broadcastable(self, p: Tensor, shape: tuple[int, ...]) -> Tensor:
        """[C] -> [1, .., C, .., 1]."""
        axis = self.axis % len(shape)
        return p.reshape(-1, *[1] * (len(shape) - axis - 1))


@dataclass(frozen=True)
class PerGroup:
    """One scale for each group of `size` consecutive weights of one output channel (inputs, then kernel positions)."""

    size: int

    def __post_init__(self) -> None:
        if not is_whole_number(self.size):
            raise ValueError(
                f"group_size={self.size!r} is not a valid group size: write a positive whole number such as 32."
            )

    def n_qparams(self, shape: tuple[int, ...]) -> int:
        """The number of groups; a group never crosses an output channel.

        Raises:
            ValueError: `size` does not divide the weights of an output channel.
        """
        row = prod(shape[1:])
        if len(shape) < 2 or row % self.size:
            divisors = [d for d in range(1, row + 1) if row % d == 0]
            nearest = min(divisors, key=lambda d: abs(d - self.size))
            raise ValueError(
                f"group_size={self.size} does not divide the {row} weights of each output channel of a weight of shape "
                f"{tuple(shape)}: write a rule for this layer with group_size={nearest} or granularity=per_channel."
            )
        return shape[0] * row // self.size

    def rows(self, x: Tensor) -> Tensor:
        """[O, ...] -> [groups, size]."""
        return x.reshape(-1, self.size)

    def view(self, x: Tensor) -> Tensor:
        """[O, ...] -> [groups, size]."""
        return x.reshape(-1, self.size)

    def broadcastable(self, p: Tensor, shape: tuple[int, ...]) -> Tensor:
        """[groups] -> [groups, 1]."""
        return p.reshape(-1, 1)


@dataclass(frozen=True)
class PerBlock:
    """One scale for each block of `size` consecutive elements along `axis`; the last block may be shorter.

    size: None makes the whole axis one block.
    axis: in a weight that of the inputs, over which products are summed. The number of an activation's scales depends on its
    shape.
    """

    size: int | None
    axis: int = -1

    def n_qparams(self, shape: tuple[int, ...]) -> int:
        """The number of blocks; 1 for the shape (), which stands for an activation of unknown shape."""
        if not shape:
            return 1
        length = shape[self.axis]
        return prod(shape) // length * self._blocks(length)

    def rows(self, x: Tensor) -> Tensor:
        """[..., I, ...] -> [blocks, min(size, I)]; a shorter last block is filled with zeros."""
        x = x.movedim(self.axis, -1)
        length = x.shape[-1]
        size = min(self.size or length, length)
        return F.pad(x, (0, self._blocks(length) * size - length)).reshape(-1, size)

    def view(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def broadcastable(self, p: Tensor, shape: tuple[int, ...]) -> Tensor:
        """[blocks] -> [..., I, ...]: the qparam of every element."""
        length = shape[self.axis]
        axis = self.axis % len(shape)
        outer = [*shape[:axis], *shape[axis + 1 :]]
        each = p.reshape(*outer, self._blocks(length), 1).expand(*outer, -1, self.size or length)
        return each.flatten(-2)[..., :length].movedim(-1, axis)

    def _blocks(self, length: int) -> int:
        return -(-length // (self.size or max(1, length)))


Granularity = PerTensor | PerChannel | PerGroup | PerBlock
