"""What a network may cost: bytes, bit operations, mean bits, milliseconds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qat.arguments import as_path, is_number, is_whole_number
from qat.files import write_atomically
from qat.reading.malformed import malformed
from qat.reading.yaml_file import read_yaml

UNITS = {"size": "bytes", "bops": "bit operations", "mean_bits": "bits a weight", "latency": "ms"}
"""The costs that can be limited, and their units."""
FLOAT = "float"
"""The format of a layer that is not quantized."""


@dataclass(frozen=True)
class LatencyTable:
    """Measured times of layers: layer -> format -> milliseconds. A format is "w4a8", "w4" (input in float), or "float".

    The time of a network is the sum over its layers: what lies between them is not in it.
    """

    times: Mapping[str, Mapping[str, float]]

    @classmethod
    def read(cls, path: str | Path) -> LatencyTable:
        """From a YAML or JSON file, `{layer1.0.conv1: {w4a8: 0.12, w8a8: 0.10}, ...}`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not such a table.
        """
        path = as_path(path)
        if not path.is_file():
            raise FileNotFoundError(f"latency table {path} does not exist.")
        with malformed(path, "is not a table of layer times", "correct it"):
            return cls.checked(read_yaml(path), str(path))  # every JSON file is a YAML file

    def write(self, path: str | Path) -> Path:
        """Write what `read` reads, whole or not at all. Returns `path`."""
        rows = (
            f"{json.dumps(layer)}: {{{', '.join(f'{name}: {time:.6g}' for name, time in times.items())}}}\n"
            for layer, times in self.times.items()
        )
        return write_atomically(path, "# milliseconds of each layer in each format\n" + "".join(rows))

    @classmethod
    def checked(cls, content: Any, where: str = "latency_table") -> LatencyTable:
        """The table with this content; `where` names it in the message.

        Raises:
            ValueError: the content is not layer -> format -> milliseconds.
        """
        example = "{conv1: {w4a8: 0.12, w8a8: 0.10}}"
        if not isinstance(content, Mapping):
            raise ValueError(f"{where} is not a table of layer times: write for example {example}.")
        for layer, times in content.items():
            if not isinstance(times, Mapping) or not all(_is_time(t) for t in times.values()):
                raise ValueError(f"{where}: {layer}={times!r} is not possible: write milliseconds, as {example}.")
        return cls({str(name): {str(f): float(t) for f, t in times.items()} for name, times in content.items()})

    def time(self, layer: str, weight: int | None, activation: int | None) -> float:
        """Milliseconds of a layer.

        Raises:
            ValueError: the table does not have them.
        """
        key = format_name(weight, activation)
        try:
            return self.times[layer][key]
        except KeyError:
            known = ", ".join(self.times.get(layer, ())) or "nothing"
            raise ValueError(
                f"the latency table has no time of {layer} in {key} (it has {known}): add it, or leave this width out."
            ) from None


@dataclass(frozen=True)
class Budget:
    """The largest value of each cost; None: not limited.

    size: bytes of all that is stored: codes and scales of weights, and what stays in float. A file whose format has no
        codes of some width is larger (docs/mixed_precision.md).
    bops: bit operations of one sample: multiply-adds times the bits of the weight times those of the input; float counts 32.
    mean_bits: of the weights of all quantized layers.
    latency: milliseconds, by `latency_table`.
    """

    size: float | None = None
    bops: float | None = None
    mean_bits: float | None = None
    latency: float | None = None
    latency_table: LatencyTable | None = None

    def __post_init__(self) -> None:
        for name, limit in self.limits.items():
            if not is_number(limit) or limit <= 0:
                raise ValueError(f"budget.{name}={limit!r} is not possible: write a number of {UNITS[name]} above 0.")
        if not self.limits:
            raise ValueError("the budget limits nothing: write one of size, bops, mean_bits or latency.")
        if (self.latency is None) != (self.latency_table is None):
            raise ValueError("a budget of latency needs a latency_table, and a table a latency: write both, or none.")

    @property
    def limits(self) -> dict[str, float]:
        """Name -> limit, of those that are given."""
        return {name: limit for name in UNITS if (limit := getattr(self, name)) is not None}


def format_name(weight: int | None, activation: int | None) -> str:
    """The name of a format.

    >>> format_name(4, 8), format_name(4, None), format_name(None, None)
    ('w4a8', 'w4', 'float')
    """
    if weight is None:
        return FLOAT
    return f"w{weight}" + ("" if activation is None else f"a{activation}")


def checked_widths(
    weight_bits: Iterable[Any], activation_bits: Iterable[Any]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The widths of weights and of inputs in ascending order; those of inputs may be empty.

    Raises:
        ValueError: there are none for weights, or one is not a whole number from 1 to 8.
    """
    inputs = list(activation_bits) if isinstance(activation_bits, Iterable) else activation_bits
    return _widths(weight_bits, "weight_bits"), () if inputs == [] else _widths(inputs, "activation_bits")


def _widths(widths: Any, what: str) -> tuple[int, ...]:
    found = list(widths) if isinstance(widths, Iterable) else widths
    if not isinstance(found, list) or not found or not all(is_whole_number(bits) and bits <= 8 for bits in found):
        raise ValueError(f"{what}={found!r} is not possible: write widths from 1 to 8, as [2, 3, 4, 6, 8].")
    return tuple(sorted({int(bits) for bits in found}))


def _is_time(value: Any) -> bool:
    return is_number(value) and value >= 0
