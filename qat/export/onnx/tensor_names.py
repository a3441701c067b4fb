"""Names of the tensors in a file: no two are equal, and those that users rely on come first."""

from __future__ import annotations

from collections.abc import Iterable


class TensorNames:
    """Hands out names. A name that is taken gets underscores behind it.

    Args:
        documented: names of inputs and outputs, which nothing else may have.

    >>> names = TensorNames(["x", "output"])
    >>> names.reserve(["conv", "output"])
    {'conv': 'conv', 'output': 'output_'}
    >>> names.new("conv"), names.new("conv_real"), names.new("conv_real")
    ('conv_', 'conv_real', 'conv_real_')
    """

    def __init__(self, documented: Iterable[str] = ()) -> None:
        self._taken = set(documented)

    def new(self, wanted: str) -> str:
        """A name for one tensor."""
        name = wanted
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def reserve(self, wanted: Iterable[str]) -> dict[str, str]:
        """Names for tensors that will be written later: wanted -> the name."""
        return {name: self.new(name) for name in wanted}

    def again(self, name: str) -> str:
        """Take a reserved name again that was released with what was not written."""
        self._taken.add(name)
        return name

    def release(self, names: Iterable[str]) -> None:
        """Give names back, of tensors that were not written after all."""
        self._taken -= set(names)
