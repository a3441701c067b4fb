"""Runtimes of devices, which show no sites: outputs, decisions, bytes and integer kernels are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from qat.export.comparison import FileOutputs, compare, with_graph
from qat.export.onnx.example_inputs import resized
from qat.export.verification import StoredDifference, Verification
from qat.integer.layers import IntegerLayer
from qat.torch_private import tree_map_only
from qat.transform.batches import positional_arguments


class Written(NamedTuple):
    """A file for a device, in memory.

    Attributes:
        content: of the file.
        operators: how often each occurs, and what computes it: "convolution (XNNPACK)".
        integer_layers: how many layers are computed in integers.
    """

    content: bytes
    operators: dict[str, int]
    integer_layers: int


class FixedNetwork(Protocol):
    """A file in a runtime that shows no sites, with a fixed batch."""

    @property
    def fixed_batch(self) -> int:
        """The batch that the file was written with."""

    def outputs(self, inputs: tuple[Any, ...]) -> list[Tensor]:
        """All outputs of a batch of any size."""


@dataclass(frozen=True)
class Device:
    """A runtime that shows no sites.

    Attributes:
        name: in sentences.
        package: the distribution, whose version is recorded.
        network: from the path of a file to the running file.
        write: from an integer model and an example batch to the file. The same ones give the same bytes.
    """

    name: str
    package: str
    network: Callable[[str | Path], FixedNetwork]
    write: Callable[[nn.Module, Any], Written]

    def verify(
        self,
        path: str | Path,
        integer: nn.Module,
        batches: Iterable[Any],
        prepared: nn.Module | None = None,
        record: bool = False,
    ) -> Verification:
        """`qat.verify` for a file of this device.

        The class of the largest output may differ for `TIES_ALLOWED` of the samples, and every output by `ERROR` of its spread.
        The file is compared byte by byte with the integer model written anew; every layer with codes in and out has to be
        computed in integers.

        Args:
            path: the file.
            integer: what it was written from.
            batches: inputs.
            prepared: the network that was converted, if it is to be compared, too.
            record: not used: such files keep no results.

        Raises:
            ValueError: this is not an integer model with a graph, there are no batches, the file is of another model or
                damaged.
            ImportError: the runtime is not installed.
        """
        model, network, kept = with_graph(integer), self.network(path), list(batches)
        version = f"{self.name} {metadata.version(self.package)}"
        result = compare(
            model, kept, prepared, lambda inputs, codes=None: FileOutputs(network.outputs(inputs), {}), version
        )
        example = tree_map_only(
            Tensor, lambda x: resized(x, (network.fixed_batch, *x.shape[1:])), positional_arguments(model, kept[0])
        )
        anew = self.write(model, example)
        layers = [m for m in model.modules() if isinstance(m, IntegerLayer)]
        result.operators = anew.operators
        result.constants_compared = sum(m.weight.numel() + m.bias.numel() for m in layers)
        if anew.content != Path(path).read_bytes():
            text = "is not what is written of the integer model here and now"
            result.stored.append(StoredDifference("content", 1, text))
        wanted = sum(m.output is not None for m in layers)
        if (missing := wanted - anew.integer_layers) > 0:
            text = f"are computed in float: {anew.integer_layers} of {wanted} with codes in and out are not"
            result.stored.append(StoredDifference("layers", missing, text))
        result.sum_up()
        return result
